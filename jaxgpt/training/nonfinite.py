"""What becomes of a step whose loss or gradient is not finite."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import jax
import numpy as np

from jaxgpt.errors import log
from jaxgpt.model import rng
from jaxgpt.training.train_state import TrainState

# Skipped steps in a row after which nothing will get better.
PATIENCE = 20


class DivergedError(Exception):
    """The loss or the gradient of `step` is no finite number."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class NonFinitePolicy:
    """Checks every step's metrics; a bad step is written down, and skipped or fatal."""

    def __init__(self, train_state: TrainState, workdir: pathlib.Path):
        self.train_state, self.folder = train_state, workdir / "nonfinite"
        self.policy = train_state.config.nonfinite
        self.skipped = self.in_a_row = 0

    def check(self, metrics: dict[str, jax.Array], step: int) -> dict[str, float]:
        """Waits for the metrics of a step and returns those that are finite.

        Raises:
          DivergedError: where one is not, and `config.nonfinite` is "stop", or the
            steps before were skipped too.
        """
        values = {name: float(value) for name, value in metrics.items()}
        wrong = {k: v for k, v in values.items() if not math.isfinite(v)}
        if not wrong:
            self.in_a_row = 0
            return values
        self.write_down(step, values)
        name, value = next(iter(wrong.items()))
        message = f"step {step}: the {name} is {value}"
        self.in_a_row += 1
        if self.policy == "stop":
            raise DivergedError(message, step)
        if self.in_a_row > PATIENCE:
            raise DivergedError(f"{message}, as in the {PATIENCE} steps before", step)
        self.skipped += 1
        log(f"warning: {message}: skipped, its batch is in '{self.folder}'")
        return {k: v for k, v in values.items() if k not in wrong}

    def write_down(self, step: int, values: dict[str, float]) -> None:
        """Writes nonfinite/STEP.npz: the batch, its keys, and what came of it."""
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
            np.savez(self.folder / f"{step}.npz", step=step, seed=seed, **record)
        except OSError as error:
            log(f"warning: the batch of step {step} cannot be written: {error}")
