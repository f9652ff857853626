"""Figures of a run: losses by step, and means by position."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from jaxgpt.errors import atomic_write


def plot_losses(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws every loss in the rows of metrics.jsonl against the step.

    If there is a floor (`val_gap`), a second panel has what is left above it.
    """
    gaps = [row for row in rows if "val_gap" in row]
    figure = Figure(figsize=(8, 7 if gaps else 4.5), layout="constrained")
    axes, *below = figure.subplots(1 + bool(gaps), sharex=True, squeeze=False)[:, 0]
    names = [n for n in dict.fromkeys(k for row in rows for k in row) if "loss" in n]
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        batch = name == "loss"
        constant = len(points) > 1 and len({value for _, value in points}) == 1
        axes.plot(
            *zip(*points, strict=True),
            label="batch" if batch else name.replace("_", " "),
            color="0.8" if batch else None,
            linewidth=0.8 if batch else 1.6,
            linestyle="--" if constant else "-",
            zorder=1 if batch else 2,
        )
    _label(axes, "nats per token")
    for panel in below:
        _draw_gap(panel, gaps, {line.get_label(): line for line in axes.lines})
    (below or [axes])[-1].set_xlabel("step")
    _save(figure, path)


def _draw_gap(axes: Any, rows: list[dict[str, Any]], losses: dict[str, Any]) -> None:
    """Draws the validation gap, and dashed those of the baselines.

    Args:
      axes: drawn on.
      rows: with a gap each.
      losses: {label: line} of the losses; a gap has the color of its loss.
    """
    steps = [row["step"] for row in rows]
    gaps = [row["val_gap"] for row in rows]
    errors = [2 * row["val_gap_error"] for row in rows]
    color = losses["val loss"].get_color()
    label = "val gap, ± 2 standard errors"
    axes.errorbar(steps, gaps, errors, label=label, color=color, linewidth=1.6)
    floors = [row["val_loss"] - row["val_gap"] for row in rows]
    for name in [name for name in rows[0] if name.startswith("val_loss_")]:
        excess = [row[name] - floor for row, floor in zip(rows, floors, strict=True)]
        if min(excess) > 1e-6:  # Not the floor itself.
            color = losses[name.replace("_", " ")].get_color()
            label = name.removeprefix("val_loss_")
            axes.plot(steps, excess, "--", label=label, color=color, linewidth=1.6)
    if min(gaps) > 0:
        axes.set_yscale("log")
    _label(axes, "nats per token above the floor")


def plot_positions(curves: Mapping[str, Sequence[float]], path: pathlib.Path) -> None:
    """Draws means [T] against the position of the predicted token, from 1."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, label=name, linewidth=1.6)
    axes.set(xlabel="position", xscale="log")
    _label(axes, "nats per token")
    _save(figure, path)


def _label(axes: Any, y_label: str) -> None:
    axes.set_ylabel(y_label)
    axes.grid(color="0.93")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)


def _save(figure: Figure, path: pathlib.Path) -> None:
    with atomic_write(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=120)
