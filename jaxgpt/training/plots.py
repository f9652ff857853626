"""Figures of a run: losses by step, and means by position."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.ticker import MaxNLocator

from jaxgpt import drawing

SMOOTHING = 0.03  # The share of the batches that is averaged on each side of one.
MARKED = 40  # Up to so many evaluations are marked: nothing is known between them.
LOG_RATIO = 10  # Of the highest loss to the lowest: beyond it the scale is logarithmic.
Points = list[tuple[float, float]]


def plot_losses(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws every loss in the rows of metrics.jsonl against the step.

    If there is a floor (`val_gap`, or bounds of it), a second panel has what is left
    above it. The loss before the first step may be far above all others: then it is
    only written.
    """
    gaps = [row for row in rows if _gap_names(row)]
    with drawing.picture(path, 7.0 if gaps else 4.5) as figure:
        axes, *below = figure.subplots(1 + bool(gaps), sharex=True, squeeze=False)[:, 0]
        axes.set(title=_title(rows), ylabel="loss, nats per token")
        _draw_losses(axes, rows)
        for panel in below:
            panel.set(ylabel="loss above the floor, nats per token")
            _draw_gaps(panel, gaps)
        (below or [axes])[-1].set_xlabel("step")
        steps = [row["step"] for row in rows] or [0]
        first, last = min(steps), max(steps)
        axes.set_xlim(first, last + (0.01 * (last - first) or 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        for panel in (axes, *below):
            named = [line for line in panel.lines if line.get_label()[0] != "_"]
            texts = [f"{_last(line)} {line.get_label()}" for line in named]
            drawing.label_ends(panel, named, texts)


def _title(rows: list[dict[str, Any]]) -> str:
    evaluated = [row for row in rows if math.isfinite(row.get("val_loss", math.nan))]
    if not evaluated:
        return "Loss of the batches"
    best = min(evaluated, key=lambda row: row["val_loss"])
    gaps = [_written(best[name]) for name in _gap_names(best)]
    if len(gaps) == 2:
        loss = f"{' to '.join(gaps)} nats above the floor"
    elif gaps:
        loss = f"{gaps[0]} nats per token above the floor"
    else:
        loss = f"{_written(best['val_loss'])} nats per token"
    return f"Lowest validation loss: {loss}, at step {best['step']:,}"


def _gap_names(row: dict[str, Any]) -> list[str]:
    """Returns the gap, or where the floor is estimated those above and below it."""
    return [n for n in ("val_gap", "val_gap_at_least", "val_gap_at_most") if n in row]


def _draw_losses(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draws the batches, the evaluations of both splits, and dashed what is constant.

    The losses of a kind (its order, for example) have one colour.
    """
    names = [
        name
        for name in dict.fromkeys(key for row in rows for key in row)
        if "loss" in name and not name.endswith("_error")
    ]
    curves = {n: [(r["step"], r[n]) for r in rows if n in r] for n in names}
    if batches := curves.pop("loss", []):
        axes.plot(*_columns(batches), color="0.85", linewidth=0.8, label="_batches")
        style: dict[str, Any] = {"color": "0.5", "linewidth": 1.2}
        axes.plot(*_columns(_smoothed(batches)), label="batches, smoothed", **style)
    colours: dict[str, str] = {}
    for name, points in curves.items():
        split, _, kind = name.partition("_loss")
        kind = kind.strip("_").replace("_", " ")
        style = {"zorder": 3}
        if _constant(points):
            style |= {"color": drawing.GREY, "linestyle": "--", "linewidth": 1.2}
            label = kind or split
            if name in _floors(rows):
                style |= {"color": drawing.DARK}
                label += _floor_end(rows)
        else:
            style["color"] = colours.setdefault(
                kind, drawing.COLOURS[len(colours) % len(drawing.COLOURS)]
            )
            style["marker"] = "o" if len(points) <= MARKED else ""
            if split == "train":
                style |= {"linestyle": ":", "linewidth": 1.4, "markersize": 3}
            label = {"val": "validation", "train": "training"}.get(split, split)
            label += f", {kind}" if kind else ""
        axes.plot(*_columns(points), label=label, **style)
    _set_limits(axes, curves, batches)


def _set_limits(axes: Any, curves: dict[str, Points], batches: Points) -> None:
    """Cuts off the losses at step 0 if all later ones are far lower."""
    everything = [p for points in (*curves.values(), batches) for p in points]
    later = [loss for step, loss in everything if step > 0 and math.isfinite(loss)]
    low, high = min(later, default=0), max(later, default=0)
    if low > 0 and high / low > LOG_RATIO:
        drawing.log_scale(axes, "y")
    first_two = {
        name: points[:2]
        for name, points in curves.items()
        if len(points) > 2 and points[0][0] == 0 and points[0][1] > high
    }
    if "val_loss" not in first_two or axes.get_yscale() == "log":
        return
    top, start = high + 0.08 * (high - low), first_two["val_loss"][0][1]
    if high > low and start > high + 0.2 * (high - low):
        axes.set_ylim(low - 0.04 * (high - low), top)
        # Written next to where the last of the lines enters the picture.
        at = max(
            step * (before - top) / (before - after)
            for (_, before), (step, after) in first_two.values()
        )
        options = {"textcoords": "offset points", "va": "top", "color": drawing.GREY}
        text = f"{_written(start)} at step 0"
        axes.annotate(text, (at, top), (8, -2), **options, size=9)


def _floors(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the names of the losses that the gap is above, or those of its bounds."""
    gaps = [row for row in rows if _gap_names(row)]
    first = (gaps or [{}])[0]
    names = [name for name in first if name.startswith("val_loss_")]
    above = lambda row, name, gap: row["val_loss"] - row[gap] - row[name]
    return [
        name
        for name in names
        for gap in _gap_names(first)
        if all(abs(above(row, name, gap)) < 1e-6 for row in gaps)
    ]


def _floor_end(rows: list[dict[str, Any]]) -> str:
    return ", the floor" if len(_floors(rows)) == 1 else ", a bound"


def _draw_gaps(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draws the validation gap, and dashed those of the baselines."""
    steps, names = [row["step"] for row in rows], _gap_names(rows[0])
    curves = [[row[name] for row in rows] for name in names]
    for name, gaps in zip(names, curves, strict=True):
        errors = [2 * row[f"{name}_error"] for row in rows]
        bound = name.removeprefix("val_gap").replace("_", " ")
        label = f"validation{bound},\n± 2 standard errors"
        axes.plot(steps, gaps, color=drawing.BLUE, zorder=3, label=label)
        axes.errorbar(steps, gaps, errors, fmt="o", color=drawing.BLUE, label="_errors")
    axes.fill_between(steps, curves[0], curves[-1], color=drawing.BLUE, alpha=0.2)
    baselines = [
        name
        for name in rows[0]
        if name.startswith("val_loss_") and not name.endswith("_error")
    ]
    style = {"color": drawing.GREY, "linestyle": "--", "linewidth": 1.2}
    for name in [name for name in baselines if name not in _floors(rows)]:
        excess = [row[name] - row["val_loss"] + row[names[0]] for row in rows]
        if min(excess) > 0:  # One below the floor has no gap.
            label = name.removeprefix("val_loss_").replace("_", " ")
            axes.plot(steps, excess, label=label, **style)
    if min(min(gaps) for gaps in curves) > 0:
        drawing.log_scale(axes, "y")


def plot_positions(curves: Mapping[str, Sequence[float]], path: pathlib.Path) -> None:
    """Draws means [T] against the position of the predicted token, from 1.

    The first curve, the model's, lies thin on the second, the floor, which is a band
    where it is known by bounds; what lies below the floor is dashed. If there is one
    named "kl", a second panel has it, and the loss above the floor, whose expectation
    it is.
    """
    losses = {name: values for name, values in curves.items() if name != "kl"}
    length = max(map(len, curves.values()))
    places = range(1, length + 1)
    with drawing.picture(path, 7.0 if "kl" in curves else 4.5) as figure:
        rows = figure.subplots(1 + ("kl" in curves), sharex=True, squeeze=False)[:, 0]
        axes, *below = rows
        for index, (name, values) in enumerate(losses.items()):
            style: dict[str, Any] = {"color": drawing.BLUE, "linewidth": 1.4}
            if index == 1:
                style = {"color": drawing.AMBER, "linewidth": 4, "zorder": 1}
            elif name == "bayes_lower":
                upper = losses["bayes_estimate"]
                axes.fill_between(places, values, upper, color=drawing.AMBER, alpha=0.4)
                style = {"color": drawing.AMBER, "linewidth": 1.4, "zorder": 1}
            elif index:
                style = {"color": drawing.GREY, "linestyle": "--", "linewidth": 1.2}
            label = name.replace("_", " ")
            axes.plot(range(1, len(values) + 1), values, label=label, **style)
        axes.set(
            title="Loss by position in the sequence",
            ylabel="loss, nats per token",
            xlim=(1, max(length, 2)),
        )
        for panel in below:
            (_, model), (floor_name, floor) = list(losses.items())[:2]
            gap = [m - f for m, f in zip(model, floor, strict=True)]
            style = {"color": drawing.GREY, "marker": ".", "linestyle": ""}
            panel.plot(places, gap, label="loss above the floor", **style)
            panel.plot(places, curves["kl"], label=f"KL({floor_name} || model)")
            panel.set(ylabel="nats per token")
        rows[-1].set_xlabel("position of the predicted token")
        drawing.log_scale(axes, "x", [2**i for i in range(length.bit_length())])
        for panel in rows:
            texts = [f"{_last(line)} {line.get_label()}" for line in panel.lines]
            drawing.label_ends(panel, panel.lines, texts)


def _smoothed(points: Points) -> Points:
    """Returns means of each point and its neighbours, as many on either side.

    At the end there are those before it alone: a last batch says little.
    """
    radius = max(1, round(SMOOTHING * len(points)))
    values = [value for _, value in points]
    means = [
        fmean(values[max(0, i - min(i, radius)) : i + min(i, radius) + 1])
        for i in range(len(values))
    ]
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]


def _columns(points: Points) -> tuple[tuple[float, ...], ...]:
    return tuple(zip(*points, strict=True))


def _constant(points: Points) -> bool:
    return len(points) > 1 and len({value for _, value in points}) == 1


def _last(line: Any) -> str:
    return _written(float(line.get_ydata()[-1]))


def _written(loss: float) -> str:
    return f"{loss:.3f}" if loss >= 0.1 else f"{loss:.2g}"
