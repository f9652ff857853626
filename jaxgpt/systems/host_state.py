"""What a system keeps from step to step besides its parameters."""

from __future__ import annotations

from typing import Protocol

import jax
import numpy as np

Batch = dict[str, jax.Array]


class HostState(Protocol):
    """State besides parameters: "carried" on the devices, and more on the host.

    Training hands what is carried from step to step; checkpoints hold both.
    """

    def recurrent_state(self, rows: int) -> dict:
        """Returns what the first step is given: a tree of arrays [rows, ...]."""

    def on_restore(self, carried: dict, host: dict[str, np.ndarray]) -> None:
        """Is called before the first step, with what is carried, fresh or restored.

        `host` is what `host_state` returned when it was saved, empty at first.
        """

    def on_step_end(self, carried: dict) -> None:
        """Is called after every step, with what it returned."""

    def host_state(self) -> dict[str, np.ndarray]:
        """Returns what a checkpoint must hold beyond parameters and what is carried."""

    def split_groups(
        self, batch: Batch, carried: dict, groups: int
    ) -> tuple[Batch, dict]:
        """Returns both cut into groups of rows: an axis of groups before all others.

        Deterministic training goes through them one at a time.
        """

    def merge_groups(self, carried: dict) -> dict:
        """Joins what the groups of `split_groups` carry."""
