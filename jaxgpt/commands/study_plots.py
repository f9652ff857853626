"""Draws the results of a study, and the power law in them."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import statistics
from typing import Any

import numpy as np

from jaxgpt import drawing
from jaxgpt.commands.power_law import Measurement, PowerLaw, fit
from jaxgpt.commands.study import Study, short_key

METRICS = {
    "val_loss": "validation loss, nats per token",
    "val_gap": "validation loss above the floor,\nnats per token",
    "val_gap_at_least": "least validation loss above the floor,\nnats per token",
    "val_gap_at_most": "most validation loss above the floor,\nnats per token",
    "test_gap": "test loss above the floor,\nnats per token",
    "test_kl": "KL(exact || model) on test sequences,\nnats per token",
    "flops": "FLOPs of training",
    "flops_per_token": "FLOPs per token",
}


def draw(
    study: Study, results: list[dict], path: pathlib.Path
) -> dict[str, PowerLaw | str]:
    """Draws the results of a study.

    Args:
      study: whose results they are.
      results: the rows of results.csv, whose numbers may be text.
      path: of the .png file.

    Returns:
      {line: its power law, or why there is none}, empty without `study.fit`.
    """
    results = [run | {study.y: float(run[study.y])} for run in results]
    fitted = fits(study, results) if study.fit else {}
    laws = {line: law for line, law in fitted.items() if isinstance(law, PowerLaw)}
    if study.grid:
        plot(study, results, path, laws)
    else:
        plot_points(study, results, path)
    return fitted


def lines_of(study: Study) -> list[str]:
    """Returns the values that have a line each, [""] if all share one."""
    return list(map(str, study.grid[study.lines])) if study.lines else [""]


def runs_of(study: Study, results: list[dict], line: str) -> list[dict]:
    """Returns the results of a line."""
    return [run for run in results if not study.lines or run[study.lines] == line]


def fits(study: Study, results: list[dict]) -> dict[str, PowerLaw | str]:
    """Returns {line: its power law, or why there is none}.

    Replicates are the runs whose fields ending in "seed" are the same.
    """
    seeds = [key for key in study.grid if key.endswith("seed") and key != study.lines]
    replicate = lambda run: str([run[key] for key in seeds])
    measurement = lambda run: Measurement(
        replicate(run), float(run[study.x]), run[study.y]
    )
    return {
        line: fit([*map(measurement, runs_of(study, results, line))], study.fit)
        for line in lines_of(study)
    }


def plot_points(study: Study, results: list[dict], path: pathlib.Path) -> None:
    """Draws y of every run in its own row, and a vertical line at the first."""
    with drawing.picture(path, 1.2 + 0.25 * len(results)) as figure:
        axes = figure.subplots()
        values = [run[study.y] for run in results]
        axes.plot(values, range(len(results)), "o")
        axes.axvline(values[0], color=drawing.GREY, linewidth=1)
        labels = [study.label(run["point"]) for run in results]
        axes.set_yticks(range(len(results)), labels)
        axes.invert_yaxis()
        axes.set(xlabel=y_name(study).replace("\n", " "))
        drawing.heading(figure, study.title)  # The labels are long: above them too.


def plot(
    study: Study,
    results: list[dict],
    path: pathlib.Path,
    laws: dict[str, PowerLaw],
) -> None:
    """Draws y of every run over x, and the medians, for each line.

    The medians are joined where x is a number, unless the line has a power law, which
    is drawn with the 95 % interval of its exponent.
    """
    labels = list(map(str, study.grid.get(study.x, ())))
    x_of, numeric = {label: float(i) for i, label in enumerate(labels)}, False
    with contextlib.suppress(ValueError):
        x_of, numeric = {label: float(label) for label in labels}, True
    of_run = lambda run: x_of[run[study.x]] if labels else float(run[study.x])
    numbers = sorted(x_of.values() if labels else map(of_run, results))
    ticks = [study.short(study.x, label) for label in labels]
    x_name = METRICS.get(study.x, study.x)
    if not numeric and (common := common_start(ticks)):
        ticks = [tick.removeprefix(common) for tick in ticks]
        x_name = f"{study.x}: {common}…"
    with drawing.picture(path, 4.5) as figure:
        axes = figure.subplots()
        drawn: list[Any] = []
        named: list[str] = []
        for line, color in zip(
            lines_of(study), itertools.cycle(drawing.COLOURS), strict=False
        ):
            by_x: dict[float, list[float]] = {}
            for run in runs_of(study, results, line):
                by_x.setdefault(of_run(run), []).append(run[study.y])
            xs = sorted(by_x)
            medians = [statistics.median(by_x[x]) for x in xs]
            joined = numeric and line not in laws
            form = "_-" if joined else "_"
            ends = axes.plot(xs, medians, form, color=color, ms=18, mew=2)
            name = line and f"{short_key(study.lines)} {study.short(study.lines, line)}"
            if line in laws:
                curve = np.geomspace(xs[0], xs[-1], 100)
                ends = axes.plot(curve, laws[line](curve), color=color)
                name = f"{name}\n{laws[line].text()}".strip()
            drawn += ends
            named.append(name or "median")
            for x in xs:
                ys = by_x[x]
                axes.plot([x] * len(ys), ys, "o", color=color, alpha=0.4)
        if all(run[study.y] > 0 for run in results):
            drawing.log_scale(axes, "y")
        wide = numeric and numbers[0] > 0 and numbers[-1] > 8 * numbers[0]
        if wide or laws:
            axes.set_xscale("log")
        if labels and (not numeric or axes.get_xscale() == "log"):
            axes.set_xticks(list(x_of.values()), ticks)
            axes.xaxis.minorticks_off()
        if not numeric:
            axes.set_xlim(-0.3, len(labels) - 0.7)
        axes.set(xlabel=x_name, ylabel=y_name(study), title=study.title)
        drawing.label_ends(axes, drawn, named)


def y_name(study: Study) -> str:
    """Returns what the metric of a study is, with its unit where that is known."""
    return METRICS.get(study.y, study.y.replace("_", " "))


def common_start(words: list[str]) -> str:
    """Returns the common prefix of all words up to its last underscore."""
    alike = itertools.takewhile(
        lambda letters: len(set(letters)) == 1, zip(*words, strict=False)
    )
    start = "".join(letters[0] for letters in alike)
    return start[: start.rfind("_") + 1]
