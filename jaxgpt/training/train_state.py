"""A state that advances: what training and a replay of one of its steps share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxgpt.model import rng
from jaxgpt.parallel import sharding
from jaxgpt.systems.base import System
from jaxgpt.training import optimizers
from jaxgpt.training.checkpoint import AS_SAVED, Checkpoints
from jaxgpt.training.profiling import Clock
from jaxgpt.training.step import init_state, make_step


class TrainState:
    """The state of a run after `step` steps, and how it comes to the next."""

    def __init__(
        self,
        system: System,
        data: Any,
        checkpoints: Checkpoints,
        before: float = math.inf,
        initial_params: Callable[[dict], dict] | None = None,
    ):
        """Restores the newest whole checkpoint of a step below `before`, or begins.

        What it begins with is fresh, or what `initial_params` makes of that.
        """
        self.system, self.data, self.config = system, data, system.config
        c = self.config
        self.mesh = sharding.make_mesh(c)
        self.optimizer = optimizers.make_optimizer(c)

        def init(key):
            ema, host = c.optimizer.ema_decay > 0, system.host
            carried = host.recurrent_state(c.batch_size) if host else None
            return init_state(system.init(key), self.optimizer, ema, carried)

        key = rng.stream(c.seed, "params")
        shapes = jax.eval_shape(init, key)
        self.layout = sharding.layout(shapes, self.mesh, c.batch_size)
        abstract = self.layout.abstract(shapes)
        restored = checkpoints.restore_newest(abstract, before, AS_SAVED)
        self.state: dict[str, Any]
        if restored:
            self.step, self.state = restored
        else:
            places = self.layout.state
            self.step, self.state = 0, jax.jit(init, out_shardings=places)(key)
            if initial_params:
                given = initial_params(self.state["params"])
                for name in {"params", "ema"} & self.state.keys():
                    self.state[name] = jax.device_put(given, self.layout.state[name])
        self.clock = Clock()
        host = self.state.pop(AS_SAVED, {})
        if system.host:
            system.host.on_restore(self.state["carried"], host)
        self.advance = make_step(system, self.optimizer, self.layout)

    def given(self, index: int) -> Any:
        """Returns what the data gives for the step that follows `index` steps."""
        c = self.config
        return self.data.batch_at(
            c.seed, "train", index, c.batch_size, self.system.window
        )

    def batch(self, index: int) -> Any:
        """Returns it on the devices."""
        return jax.tree.map(self.layout.put_rows, self.given(index))

    def named_batch(self, index: int) -> dict[str, np.ndarray]:
        """Returns it by name, on the host."""
        given = self.given(index)
        named = given if isinstance(given, dict) else {"tokens": given}
        return {name: np.asarray(array) for name, array in named.items()}

    def run_step(self) -> dict[str, jax.Array]:
        """Starts one optimizer step; returns its metrics, not yet computed."""
        with self.clock.part("data"):
            tokens = self.batch(self.step)
        with self.clock.part("host"):
            self.state, metrics = self.advance(self.state, np.int32(self.step), tokens)
            if self.system.host:
                self.system.host.on_step_end(self.state["carried"])
        self.step += 1
        self.clock.steps += 1
        return metrics

    def saved(self) -> dict[str, Any]:
        """Returns what a checkpoint holds: the state, and the host's part of it."""
        host = self.system.host.host_state() if self.system.host else {}
        return self.state | ({AS_SAVED: host} if host else {})
