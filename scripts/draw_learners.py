"""Tables and draws what learners have left to learn of graphs, from a study's results.

python -m scripts.draw_learners --results=runs/gssm_learners/results.csv --output=F.png

Means over seeds with standard errors; a share is of what a bigram model is above the
floor on the same sequences.
"""

from __future__ import annotations

import argparse
import csv
import pathlib
import statistics
from typing import Any

from jaxgpt import drawing
from jaxgpt.commands.study import short

MIXER, GRAPH = "model.mixer", "gssm.graph"
# A controller is known by the table of its states, which is no name.
NAMES = {"controller": "flips"}
LEAST = 1e-4  # Smaller shares, chance below 0 too, are drawn here.


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the runs, with the graph's short name, the gap and its share."""
    with open(path, newline="") as stream:
        runs: list[dict[str, Any]] = list(csv.DictReader(stream))
    for run in runs:
        name = short(run[GRAPH]).split(":")[0]
        run[GRAPH] = NAMES.get(name, name)
        run["gap"] = float(run["val_gap"])
        floor = float(run["val_loss"]) - run["gap"]
        run["bigram"] = float(run["val_loss_bigram"]) - floor
        run["share"] = run["gap"] / run["bigram"]
    return runs


def mean(values: list[float]) -> tuple[float, float]:
    """Returns the mean and its standard error, 0 of a single value."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.fmean(values), error


def table(runs: list[dict[str, Any]]) -> str:
    """Returns a line for each graph and learner."""
    form = "{:<12} {:<10} {:>4} {:>8} {:>18} {:>14} {:>8} {:>6}"
    lines = [
        form.format(
            "graph", "learner", "runs", "bigram", "gap", "share", "weights", "CPU s"
        )
    ]
    for graph in dict.fromkeys(run[GRAPH] for run in runs):
        for mixer in dict.fromkeys(run[MIXER] for run in runs):
            of = [run for run in runs if (run[GRAPH], run[MIXER]) == (graph, mixer)]
            if not of:
                continue
            column = lambda key, of=of: [float(run[key]) for run in of]
            bigram, (gap, error) = (
                statistics.fmean(column("bigram")),
                mean(column("gap")),
            )
            share, share_error = mean(column("share"))
            cpu = statistics.fmean(column("cpu_seconds"))
            lines.append(
                form.format(
                    graph,
                    mixer,
                    len(of),
                    f"{bigram:.4f}",
                    f"{gap:.4f} +- {error:.4f}",
                    f"{share:.3f} +- {share_error:.3f}",
                    of[0]["parameters"],
                    f"{cpu:.0f}",
                )
            )
    return "\n".join(lines)


def draw(record: pathlib.Path, output: pathlib.Path) -> None:
    """Draws the share of every run, and their medians, by graph and learner."""
    runs = read(record)
    graphs = list(dict.fromkeys(run[GRAPH] for run in runs))
    mixers = list(dict.fromkeys(run[MIXER] for run in runs))
    with drawing.picture(output, 4.5) as figure:
        axes = figure.subplots()
        for i, mixer in enumerate(mixers):
            color, offset = drawing.COLOURS[i], 0.17 * (i - (len(mixers) - 1) / 2)
            for x, graph in enumerate(graphs):
                shares = [
                    max(run["share"], LEAST)
                    for run in runs
                    if (run[GRAPH], run[MIXER]) == (graph, mixer)
                ]
                if not shares:
                    continue
                at = x + offset
                axes.plot([at] * len(shares), shares, "o", color=color, alpha=0.4)
                bar = {"marker": "_", "markersize": 18, "markeredgewidth": 2}
                label = mixer if x == 0 else None
                axes.plot(
                    [at], [statistics.median(shares)], color=color, label=label, **bar
                )
        axes.axhline(1, color=drawing.GREY, linewidth=1)
        drawing.log_scale(axes, "y")
        axes.set_xticks(range(len(graphs)), graphs)
        axes.set(
            ylabel="share of a bigram model's gap\n(0.0001: or less)",
            title="Which learner closes which gap",
        )
        axes.legend(ncols=len(mixers), loc="upper center", bbox_to_anchor=(0.5, -0.1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    args = parser.parse_args()
    print(table(read(args.results)))
    draw(args.results, args.output)


if __name__ == "__main__":
    main()
