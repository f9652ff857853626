"""Steps whose loss or gradient is not finite: recorded, then skipped or fatal."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import jax
import numpy as np

from jaxgpt.errors import atomic_write, log
from jaxgpt.model import rng
from jaxgpt.training.train_state import TrainState

# After so many skipped steps in a row a run is not expected to recover.
MAX_SKIPPED = 20


class DivergedError(Exception):
    """The loss or the gradient of `step` is not finite."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class NonFinitePolicy:
    """Checks the metrics of every step as `config.nonfinite` says."""

    def __init__(self, train_state: TrainState, workdir: pathlib.Path):
        self.train_state, self.folder = train_state, workdir / "nonfinite"
        self.skipped_in_a_row = 0

    def check(self, metrics: dict[str, jax.Array], step: int) -> dict[str, float]:
        """Waits for the metrics of a step and returns those that are finite.

        Raises:
          DivergedError: if one is not and `config.nonfinite` is "stop", or the steps
            before were skipped too.
        """
        values = {name: float(value) for name, value in metrics.items()}
        finite = {k: v for k, v in values.items() if math.isfinite(v)}
        if finite == values:
            self.skipped_in_a_row = 0
            return values
        self.record(step, values)
        name = next(name for name in values if name not in finite)
        message = f"step {step}: the {name} is {values[name]}"
        if self.train_state.config.nonfinite == "stop":
            raise DivergedError(message, step)
        if self.skipped_in_a_row == MAX_SKIPPED:
            raise DivergedError(
                f"{message}, as in the {MAX_SKIPPED} steps before", step
            )
        self.skipped_in_a_row += 1
        log(f"warning: {message}: skipped, its batch is in '{self.folder}'")
        return finite

    def record(self, step: int, values: dict[str, float]) -> None:
        """Writes nonfinite/STEP.npz: the batch, its random keys, and the metrics."""
        seed, index = self.train_state.config.seed, step - 1
        record: dict[str, Any] = {
            f"{name}_key": jax.random.key_data(rng.at(seed, name, index))
            for name in ("order", "dropout")
        }
        record |= {**self.train_state.named_batch(index), **values}
        if jax.process_index():
            return
        try:
            self.folder.mkdir(exist_ok=True)
            with atomic_write(self.folder / f"{step}.npz", "wb") as stream:
                np.savez(stream, step=step, seed=seed, **record)
        except OSError as error:
            log(f"warning: the batch of step {step} cannot be written: {error}")
