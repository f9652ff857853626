"""Where the time of a step goes, and a trace of chosen steps."""

from __future__ import annotations

import collections
import contextlib
import pathlib
import time
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from jaxgpt.errors import log
from jaxgpt.training.config import profiled_steps

# What the process that feeds the devices does; "device" is waiting for them.
PARTS = ("data", "host", "device", "checkpoint", "evaluation")


class Clock:
    """Adds up the seconds of each part of training."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.steps = 0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the time spent within it as that part's."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began

    def report(self) -> str:
        """Returns a line for each part: milliseconds per step, and its share."""
        total = sum(self.seconds.values()) or 1.0
        lines = [f"time of {self.steps} steps, ms each"]
        for name in PARTS:
            spent = self.seconds[name]
            each = 1e3 * spent / max(self.steps, 1)
            lines.append(f"  {name:<12}{each:10.2f}  {spent / total:6.1%}")
        return "\n".join(lines)


class Profiler:
    """Traces the steps that `config.profile` names, into a folder of the run."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path):
        self.steps = profiled_steps(config.profile)
        self.folder, self.tracing = workdir / "profile", False

    def before_step(self, step: int) -> None:
        """Begins the trace at the first of its steps, which count from 1."""
        if not self.tracing and step in self.steps:
            jax.profiler.start_trace(str(self.folder))
            self.tracing = True

    def after_step(self, step: int, metrics: object) -> None:
        """Ends the trace after the last of its steps."""
        if self.tracing and step == self.steps[-1]:
            jax.block_until_ready(metrics)  # Else the trace ends before the step runs.
            self.close()

    def close(self) -> None:
        """Ends a trace in progress, and logs where it is."""
        if self.tracing:
            self.tracing = False
            jax.profiler.stop_trace()
            log(f"trace written: xprof --logdir='{self.folder}' shows it")
