"""Progress for the person watching: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import datetime
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bar

from jaxgpt.errors import log

# Seconds of training on a CPU from which the smaller variant of a config is suggested.
SLOW_RUN_S = 15 * 60


class Progress:
    """Shows steps, rows of metrics and evaluations of a run."""

    def __init__(self, start: int, steps: int, smaller: str = ""):
        """Is for the steps after `start`; `smaller` names a config to suggest."""
        self.start, self.steps, self.smaller = start, steps, smaller
        self.last = start
        # Step and time of the first row: until then programs were compiled.
        self.measured_from: tuple[int, float] | None = None
        self.bar: Bar | None = None
        if sys.stderr.isatty():
            self.bar = Bar(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
                refresh_per_second=4,
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=steps, completed=start)

    def seconds_left(self) -> float | None:
        """Returns the seconds left at the pace since the first row; None until then."""
        if self.measured_from is None or self.measured_from[0] == self.last:
            return None
        step, began = self.measured_from
        pace = (time.monotonic() - began) / (self.last - step)
        return pace * (self.steps - self.last)

    def update(self, step: int, row: dict[str, Any]) -> None:
        """Shows a row of metrics."""
        self.last = step
        if self.measured_from is None:
            self.measured_from = step, time.monotonic()
        parts = [f"{row['tokens_per_second']:,.0f} tok/s"]
        if "loss" in row:  # Not if the step was skipped.
            parts.insert(0, f"loss {row['loss']:.4f}")
        if "mfu" in row:
            parts.append(f"MFU {row['mfu']:.1%}")
        left = self.seconds_left()
        if left is not None:
            parts.append(f"ETA {format_duration(left)}")
        text = "  ".join(parts)
        if self.bar:
            self.bar.update(self.task, completed=step, description=text)
        else:
            log(f"step {step}/{self.steps}  {text}")

    def evaluated(self, step: int, losses: dict[str, float]) -> None:
        """Shows an evaluation: the main training loss and all on held-out text."""
        parts = [
            f"{name.replace('_loss', '').replace('_', ' ')} {value:.4f}"
            for name, value in losses.items()
            if name == "train_loss" or name.startswith("val")
        ]
        self.line(f"step {step}: loss " + ", ".join(parts))

    def suggest_smaller(self) -> None:
        """Points to the smaller config, if there is one, where training takes long."""
        left = self.seconds_left() or 0
        if self.smaller and left > SLOW_RUN_S:
            self.line(
                f"note: about {format_duration(left)} left on this CPU; "
                f"--config={shlex.quote(self.smaller)} trains in minutes"
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


def format_duration(seconds: float) -> str:
    """Returns seconds as "1:02:00"."""
    return str(datetime.timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def counting(text: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Shows how many of `total` are done; yields what is called with the number.

    A bar on a terminal; elsewhere a line every ten seconds.
    """
    if sys.stderr.isatty():
        columns = TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn()
        with Bar(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task(text, total=total, completed=done)
            yield lambda count: bar.update(task, completed=count)
        return
    shown = time.monotonic()

    def show(count: int) -> None:
        nonlocal shown
        if time.monotonic() > shown + 10:
            shown = time.monotonic()
            log(f"{text} {count:,}/{total:,}")

    yield show


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """Shows what is being done, and for how long; on a terminal, while it lasts."""
    if not sys.stderr.isatty():
        yield
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(text, total=None)
        yield
