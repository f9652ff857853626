"""Draws σ-GPT writing: one token a call above, exact bursts below.

python -m scripts.burst_gif --workdir=runs/sigma_plus_char-laptop
"""

from __future__ import annotations

import argparse
import pathlib

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

BACK, PLAIN, DIM, LIT, TITLE = "#12141a", "#d8dee9", "#4c566a", "#ebcb8b", "#88c0d0"
SIZE = 15
FONT = ImageFont.truetype(
    pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono.ttf", SIZE
)
WIDTH, HEIGHT = FONT.getlength("m"), SIZE + 5


def draw_text(draw, top: int, text: str, call_T: np.ndarray, call: int, step: int):
    """Draws what is settled after a number of calls; what came last is lit."""
    for t, letter in enumerate(text):
        settled = call_T[t] <= call
        fresh = settled and call_T[t] > max(call - step, 0)
        shown = {"\n": "↵", " ": " "}.get(letter, letter) if settled else "·"
        box = (12 + WIDTH * t, top, 12 + WIDTH * (t + 1), top + HEIGHT)
        if fresh:
            draw.rectangle(box, fill=LIT)
        color = BACK if fresh else PLAIN if settled else DIM
        draw.text(box[:2], shown, color, FONT)


def frame(panels, call: int, step: int) -> Image.Image:
    """Returns the picture after a number of calls."""
    texts = len(panels[0][1])
    length = len(panels[0][1][0])
    size = (int(24 + WIDTH * length), len(panels) * (texts + 2) * HEIGHT + 12)
    image = Image.new("RGB", size, BACK)
    draw = ImageDraw.Draw(image)
    top = 8
    for title, shown, decode_step_BT in panels:
        made = (decode_step_BT <= call).sum(1) - (decode_step_BT == 0).sum(1)
        used = min(call, int(decode_step_BT.max()))
        pace = f"{made.mean() / max(used, 1):.1f}" if used else "-"
        status = f"{title}: {used:2} model calls, {pace} tokens a call"
        draw.text((12, top), status, TITLE, FONT)
        for row, text in enumerate(shown):
            draw_text(
                draw, top + (row + 1) * HEIGHT, text, decode_step_BT[row], call, step
            )
        top += (texts + 2) * HEIGHT
    return image


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--output", default="docs/sigma_burst.gif")
    parser.add_argument("--texts", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from jaxgpt import backend
    from jaxgpt.model import rng
    from jaxgpt.run import open_run
    from jaxgpt.sampling.state import SamplingParams

    backend.set_up_jax()
    run = open_run(args.workdir)
    block = run.config.model.block_size
    known = np.zeros((args.texts, block), bool)
    tokens = np.zeros(known.shape, np.int32)
    if not run.system.model_config.begin_token:
        known[:, 0] = True
    panels = []
    for title, sampler in (("one by one", "ar"), ("exact burst", "exact-burst")):
        sampling = SamplingParams(sampler, order="far-apart", temperature=0.8)
        key = rng.stream(args.seed, "sample")
        filled = run.system.sample(run.params, tokens, known, key, sampling)
        shown = [run.tokenizer.decode(row) for row in filled.tokens_BT]
        panels.append((title, shown, filled.decode_step_BT))
    last = int(max(panel[2].max() for panel in panels))
    frames = [frame(panels, call, 2) for call in range(0, last + 2, 2)]
    times = [220] * (len(frames) - 1) + [3000]
    frames[0].save(
        args.output, save_all=True, append_images=frames[1:], duration=times, loop=0
    )
    print(f"{args.output}: {len(frames)} pictures")


if __name__ == "__main__":
    main()
