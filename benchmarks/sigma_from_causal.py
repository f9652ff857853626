"""σ-GPT from the weights of a causal model, and the same from scratch: loss by step.

    python -m benchmarks.sigma_from_causal [--figure=docs/sigma_from_causal.png]

Trains a plain GPT on Shakespeare's characters, then σ-GPT twice, half of the sequences
in random order and half left to right: once from the GPT's weights and once from fresh
ones. Scores the same characters of the whole validation split as sigma_quality does.
Finished runs are kept in --workdir and not repeated; one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from benchmarks.alternate import machine
from benchmarks.sigma_quality import SIGMA, score
from jaxgpt import drawing

POSITIONS = ("rope", "learned")
SCORES = ("random", "left_to_right")
KINDS = {"val_loss": "random order", "val_loss_left_to_right": "left to right"}


def contenders(positions: str, folder: pathlib.Path) -> dict[str, dict[str, str]]:
    """Returns the changes of each run, by its name."""
    model = {"model.positions": positions, "model.rope_theta": "100"}
    sigma = model | {"sigma.left_to_right_share": "0.5"}
    return {
        "causal": model | {"system": "causal"},
        "scratch": sigma,
        "start": sigma | {"init_from": str(folder / f"{positions}-causal")},
    }


def curves(workdir: pathlib.Path) -> dict[str, list[float]]:
    """Returns the steps and the losses of a run's evaluations."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    found = [line for line in lines if "val_loss_left_to_right" in line]
    return {name: [line[name] for line in found] for name in ("step", *KINDS)}


def draw_figure(record: dict, path: pathlib.Path) -> None:
    """Writes the picture."""
    names = list(dict.fromkeys(row["positions"] for row in record["runs"]))
    with drawing.picture(path, 4) as figure:
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, positions in zip(panels, names, strict=True):
            for row in record["runs"]:
                if row["positions"] != positions or "curves" not in row:
                    continue
                start = row["name"] == "start"
                for color, (key, kind) in enumerate(KINDS.items()):
                    axes.plot(
                        row["curves"]["step"],
                        row["curves"][key],
                        color=f"C{color}",
                        ls="-" if start else ":",
                        label=f"{kind}, {'from the GPT' if start else 'from scratch'}",
                    )
            axes.set(title=f"{positions} positions", xlabel="step", ylim=(1.5, 3.5))
        panels[0].set(ylabel="validation loss, nats per character")
        panels[0].legend(loc="upper right")
        figure.suptitle("σ-GPT from a GPT's weights and from scratch")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="runs/sigma_from_causal")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--positions", nargs="+", default=POSITIONS, choices=POSITIONS)
    parser.add_argument(
        "--figure",
        type=pathlib.Path,
        default=pathlib.Path("docs/sigma_from_causal.png"),
    )
    args = parser.parse_args()
    from jaxgpt import backend, config
    from jaxgpt.commands.train import train

    backend.set_up_jax()
    print(machine())
    rows = []
    for positions in args.positions:
        folder = pathlib.Path(args.workdir)
        for name, changes in contenders(positions, folder).items():
            fixed = {"steps": str(args.steps), "eval_interval": "100"}
            fixed |= {"checkpoint_interval": "300", "optimizer.learning_rate": "8e-3"}
            c = config.load(SIGMA, changes | fixed)
            workdir = folder / f"{positions}-{name}"
            if status := train(c, workdir, given=changes.keys()):
                sys.exit(status)
            row = {"positions": positions, "name": name}
            if name != "causal":
                row["curves"] = curves(workdir)
            rows.append(row | score(workdir, c.model.block_size))
    print(f"{'positions':12} {'run':10} {'random':>10} {'left to right':>14}")
    for row in rows:
        cells = [f"{row[k]:.4f}" if k in row else "" for k in SCORES]
        print(f"{row['positions']:12} {row['name']:10} {cells[0]:>10} {cells[1]:>14}")
        if "curves" in row:
            for key, kind in KINDS.items():
                by_step = zip(row["curves"]["step"], row["curves"][key], strict=True)
                print(f"  {kind}: " + ", ".join(f"{s} {v:.3f}" for s, v in by_step))
    record = {"machine": machine(), "steps": args.steps, "runs": rows}
    drawing.write_record(record, args.figure)
    draw_figure(record, args.figure)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
