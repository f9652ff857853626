"""Trains a small model with each position encoding and reads on past its block.

    python -m benchmarks.extrapolation [--steps=1000]

3 layers, 4 heads, width 96, block 64, 16 windows a step, SwiGLU and RMSNorm, on
Shakespeare's characters; the validation loss over the same tokens at 1, 2, 4 and 8
times the block. Draws docs/extrapolation.png. A learned table ends with the block.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import numpy as np

from benchmarks.alternate import machine
from benchmarks.labels import label_points
from jaxgpt import backend, config, drawing
from jaxgpt.model.config import POSITIONS
from jaxgpt.systems.registry import build_system

DOCS = pathlib.Path(__file__).parents[1] / "docs"
TIMES = (1, 2, 4, 8)
SIZE = {
    "system": "causal",
    "batch_size": 16,
    "model.n_layer": 3,
    "model.n_head": 4,
    "model.n_embd": 96,
    "model.block_size": 64,
    "model.activation": "swiglu",
    "model.norm": "rms",
    "optimizer.learning_rate": 3e-3,
    "optimizer.min_learning_rate": 3e-4,
}


def losses(positions: str, steps: int) -> dict[int, float]:
    """Returns {times the block: validation loss} of a model trained for it."""
    import jax

    from jaxgpt.systems import scoring
    from jaxgpt.training import optimizers
    from jaxgpt.training.step import init_state, make_step

    changes = SIZE | {"steps": steps, "model.positions": positions}
    c = config.override(config.base(), changes | {"model.vocab_size": 65})
    system = build_system(c)
    data = system.open_data()
    optimizer = optimizers.make_optimizer(c)
    state = init_state(jax.jit(system.init)(jax.random.key(0)), optimizer, ema=False)
    advance = make_step(system, optimizer)
    for index in range(steps):
        batch = data.batch_at(0, "train", index, c.batch_size, system.window)
        state, _ = advance(state, np.int32(index), batch)
    table = system.model_config.ends_with_block
    block = c.model.block_size
    wanted = [block * n for n in TIMES if n == 1 or not table]
    found = scoring.losses_by_length(system, state["params"], data, "val", wanted)
    return {int(length) // block: loss for length, loss in found.items()}


def draw(record: dict, path: pathlib.Path) -> None:
    """Draws a line for each encoding, named where it ends."""
    names = {"learned": "learned,\nends here", "alibi": "ALiBi", "rope": "RoPE"}
    with drawing.picture(path, 4.5) as figure:
        axes = figure.subplots()
        lines, point = [], []
        for color, (name, losses) in zip(
            drawing.COLOURS, record["loss"].items(), strict=True
        ):
            at = [int(times) for times in losses], list(losses.values())
            alone = len(losses) == 1
            (line,) = axes.plot(*at, "X" if alone else "o-", color=color)
            (point if alone else lines).append((names.get(name, name), line))
        axes.set(
            title="Loss on texts longer than those trained on, by position encoding",
            xlabel="length of the text, in blocks of training",
            ylabel="validation loss, nats per character",
            xlim=(0.74, 8.5),
        )
        drawing.log_scale(axes, "x", TIMES)
        axes.xaxis.set_major_formatter("{x:g}x")
        drawing.label_ends(axes, [line for _, line in lines], [n for n, _ in lines])
        for name, line in point:
            label_points(axes, line.get_xydata(), [name])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    backend.set_up_jax()
    found = {}
    for name in POSITIONS:
        found[name] = losses(name, args.steps)
        row = "".join(f"  {n}x {loss:6.3f}" for n, loss in found[name].items())
        print(f"{name:20}{row}", flush=True)
    record = {"machine": machine(), "steps": args.steps, "loss": found}
    drawing.write_record(record, DOCS / "extrapolation.png")
    draw(record, DOCS / "extrapolation.png")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
