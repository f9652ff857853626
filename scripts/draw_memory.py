"""Draw the loss against how far back a token last came, memory on and off.

python -m jaxgpt.evaluate --workdir=runs/memory_gpt2-laptop --split=test --json=- > F
python -m scripts.draw_memory --figures=F --output=docs/memory.png
"""

from __future__ import annotations

import argparse
import json
import pathlib


def main():
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", required=True, help="what evaluate printed")
    parser.add_argument("--output", default="docs/memory.png")
    args = parser.parse_args()
    text = pathlib.Path(args.figures).read_text().strip()
    found = json.loads(text.splitlines()[-1])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for way in ("on", "off"):
        losses = found[f"loss_by_distance_{way}"]
        axes.plot(
            list(losses), list(losses.values()), marker="o", label=f"memory {way}"
        )
    axes.set(xlabel="tokens since a token last came", ylabel="nats per token")
    axes.grid(color="0.93")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(args.output, dpi=120)
    print(args.output)


if __name__ == "__main__":
    main()
