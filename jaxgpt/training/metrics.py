"""What a run says of itself: files always, trackers where they work."""

from __future__ import annotations

import contextlib
import csv
import json
import pathlib
import sys
import time
from typing import Any

from jaxgpt.errors import log

# Peak bfloat16 FLOP/s of one device, by a part of JAX's device_kind (vendors' sheets).
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak of a device, or None where it is not known."""
    return next((peak for name, peak in PEAKS.items() if name in device_kind), None)


# While training goes on figures are drawn at most this often: each drawing keeps the
# loop waiting for half a second.
DRAWING_INTERVAL_S = 10.0


class Recorder:
    """Writes metrics.jsonl as it goes, metrics.csv and figures at evaluations."""

    def __init__(
        self, workdir: pathlib.Path, start: int, trackers: list, writes: bool = True
    ):
        """Keeps rows without writing them where another process does."""
        self.workdir, self.writes = workdir, writes
        self.trackers = trackers
        self.failed: set[str] = set()
        self.curves: dict[str, Any] = {}
        self.drawn = time.monotonic()
        # A run that starts over writes its step 0 again.
        before = read_rows(workdir) if start else []
        self.rows = [row for row in before if row["step"] <= start]
        self._rewrite()

    def _rewrite(self) -> None:
        if not self.writes:
            return
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        temporary = self.workdir / "metrics.tmp"
        temporary.write_text(text)
        temporary.replace(self.workdir / "metrics.jsonl")

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row, or adds to that of the same step.

        A tracker that fails is dropped, with a line.
        """
        again = self.rows and self.rows[-1]["step"] == row["step"]
        self.rows.append(self.rows.pop() | row if again else row)
        if not self.writes:
            return
        with self._tolerating_a_full_disk("metrics.jsonl"):
            path = self.workdir / "metrics.jsonl"
            if again or not path.exists():
                self._rewrite()
            else:
                with open(path, "a") as stream:
                    stream.write(json.dumps(row) + "\n")
        for tracker in list(self.trackers):
            try:
                tracker(row)
            except Exception as error:
                self.trackers.remove(tracker)
                log(f"warning: a tracker failed and is off from here: {error}")

    def summarise(self, last: bool = True) -> None:
        """Rewrites metrics.csv, and the figures if the last ones are old enough.

        Args:
          last: draws the figures in any case, since nothing comes after.
        """
        if not self.writes:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with (
            self._tolerating_a_full_disk("metrics.csv"),
            open(self.workdir / "metrics.csv", "w", newline="") as stream,
        ):
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(self.rows)
        now = time.monotonic()
        if not last and now - self.drawn < DRAWING_INTERVAL_S:
            return
        self.drawn = now
        with self._tolerating_a_full_disk("loss.png"):
            plot_losses(self.rows, self.workdir / "loss.png")
        if self.curves:
            with self._tolerating_a_full_disk("position.png"):
                plot_positions(self.curves, self.workdir / "position.png")

    def write_positions(self, curves: dict[str, Any]) -> None:
        """Rewrites position.csv, means [T] at an evaluation; `summarise` draws them."""
        if not curves or not self.writes:
            return
        self.curves = curves
        with (
            self._tolerating_a_full_disk("position.csv"),
            open(self.workdir / "position.csv", "w", newline="") as stream,
        ):
            writer = csv.writer(stream)
            writer.writerow(["position", *curves])
            values = zip(*curves.values(), strict=True)
            writer.writerows([i + 1, *row] for i, row in enumerate(values))

    @contextlib.contextmanager
    def _tolerating_a_full_disk(self, name: str):
        """Says once per file that it cannot be written; training goes on."""
        try:
            yield
        except OSError as error:
            if name not in self.failed:
                log(f"warning: '{self.workdir / name}' cannot be written: {error}")
            self.failed.add(name)


def read_rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl; a line cut off by a crash is left out."""
    path = workdir / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def out_of_patience(rows: list[dict[str, Any]], patience: int) -> bool:
    """Returns whether the best validation loss was too many evaluations ago."""
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    if not (losses and patience):
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= patience


def plot_losses(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws every loss of the rows against the step; dashed one that never changes.

    Where there is a floor, a second panel has what is left above it.
    """
    from matplotlib.figure import Figure

    gaps = [row for row in rows if "val_gap" in row]
    figure = Figure(figsize=(8, 7 if gaps else 4.5), layout="constrained")
    axes, *below = figure.subplots(1 + bool(gaps), sharex=True, squeeze=False)[:, 0]
    names = [n for n in dict.fromkeys(k for row in rows for k in row) if "loss" in n]
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        batch = name == "loss"
        level = len(points) > 1 and len({value for _, value in points}) == 1
        axes.plot(
            *zip(*points, strict=True),
            label="batch" if batch else name.replace("_", " "),
            color="0.8" if batch else None,
            linewidth=0.8 if batch else 1.6,
            linestyle="--" if level else "-",
            zorder=1 if batch else 2,
        )
    for panel in below:
        _draw_gap(panel, gaps, {line.get_label(): line for line in axes.lines})
    (below or [axes])[-1].set_xlabel("step")
    _finish(figure, axes, path)


def _draw_gap(axes: Any, rows: list[dict[str, Any]], above: dict[str, Any]) -> None:
    """Draws the validation gap, and those of the baselines, which are dashed.

    Args:
      axes: drawn on.
      rows: with a gap each.
      above: {label: line} of the losses, whose colors are taken up.
    """
    steps = [row["step"] for row in rows]
    gaps = [row["val_gap"] for row in rows]
    errors = [2 * row["val_gap_error"] for row in rows]
    color = above["val loss"].get_color()
    label = "val gap, ± 2 standard errors"
    axes.errorbar(steps, gaps, errors, label=label, color=color, linewidth=1.6)
    floors = [row["val_loss"] - row["val_gap"] for row in rows]
    for name in [name for name in rows[0] if name.startswith("val_loss_")]:
        excess = [row[name] - floor for row, floor in zip(rows, floors, strict=True)]
        if min(excess) > 1e-6:  # Not the floor itself.
            color = above[name.replace("_", " ")].get_color()
            label = name.removeprefix("val_loss_")
            axes.plot(steps, excess, "--", label=label, color=color, linewidth=1.6)
    if min(gaps) > 0:
        axes.set_yscale("log")
    _dress(axes)
    axes.set_ylabel("nats per token above the floor")


def plot_positions(curves: dict[str, Any], path: pathlib.Path) -> None:
    """Draws means [T] against the position of the predicted token, from 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, label=name, linewidth=1.6)
    axes.set(xlabel="position", xscale="log")
    _finish(figure, axes, path)


def _finish(figure: Any, axes: Any, path: pathlib.Path) -> None:
    _dress(axes)
    figure.savefig(path, dpi=120)


def _dress(axes: Any) -> None:
    axes.set_ylabel("nats per token")
    axes.grid(color="0.93")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)


def open_trackers(config, workdir: pathlib.Path) -> list:
    """Returns the trackers asked for, as functions of a row; failures are one line."""
    trackers = []
    for wanted, opener in (
        (config.tensorboard, _tensorboard),
        (config.wandb_project, _wandb),
    ):
        if wanted:
            try:
                trackers.append(opener(config, workdir))
            except Exception as error:
                log(f"warning: {opener.__name__[1:]} is off: {error}")
    return trackers


def _tensorboard(config, workdir: pathlib.Path):
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(workdir / "tensorboard"))

    def track(row):
        for name, value in row.items():
            writer.add_scalar(name, value, row["step"])

    return track


def _wandb(config, workdir: pathlib.Path):
    import wandb

    run = wandb.init(
        project=config.wandb_project,
        name=workdir.name,
        dir=str(workdir),
        id=workdir.name,
        resume="allow",
        config=config.to_dict(),
    )
    return lambda row: run.log(row, step=row["step"])


class Progress:
    """A bar on a terminal, plain lines elsewhere."""

    def __init__(self, start: int, steps: int):
        self.start, self.steps, self.began = start, steps, time.monotonic()
        self.bar, self.shown = None, 0
        if sys.stderr.isatty():
            self.bar = _bar()
            self.bar.start()
            self.task = self.bar.add_task("", total=steps, completed=start)

    def eta(self, step: int) -> float:
        """Returns the seconds left at the pace so far, evaluations included."""
        pace = (time.monotonic() - self.began) / max(step - self.start, 1)
        return pace * (self.steps - step)

    def update(self, step: int, row: dict[str, Any]) -> None:
        """Shows where training stands."""
        self.shown = step - self.start
        parts = [f"{row['tokens_per_second']:,.0f} tok/s"]
        if "loss" in row:  # Not where the step was skipped.
            parts.insert(0, f"loss {row['loss']:.4f}")
        if "mfu" in row:
            parts.append(f"MFU {row['mfu']:.1%}")
        if self.bar:
            self.bar.update(self.task, completed=step, description="  ".join(parts))
        else:
            left = clock(self.eta(step))
            log(f"step {step}/{self.steps}  {'  '.join(parts)}  ETA {left}")

    def evaluated(self, step: int, losses: dict[str, float]) -> None:
        """Shows an evaluation: the main training loss and all on held-out text."""
        parts = [
            f"{name.replace('_loss', '').replace('_', ' ')} {value:.4f}"
            for name, value in losses.items()
            if name == "train_loss" or name.startswith("val")
        ]
        self.line(f"step {step}: loss " + ", ".join(parts))

    def suggest(self, limit: float) -> None:
        """Points to the smaller size where training will take longer than limit."""
        eta = self.eta(self.start + self.shown)
        if eta > limit:
            self.line(
                f"note: about {clock(eta)} to go on this CPU; a config's :laptop "
                "variant trains in minutes"
            )

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        if self.bar:
            self.bar.console.print(text, highlight=False, markup=False)
        else:
            log(text)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self.bar:
            self.bar.stop()


def _bar():
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as RichProgress,
    )

    return RichProgress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.description}"),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        refresh_per_second=4,
    )


def clock(seconds: float) -> str:
    """Returns seconds as "1h02m", "4m10s" or "9s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
