"""A state that advances: what training and a replay of one of its steps share."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from jaxgpt import optim, sharding
from jaxgpt.checkpoint import Checkpoints
from jaxgpt.core import random
from jaxgpt.run import read_start
from jaxgpt.step import init_state, make_step
from jaxgpt.systems import System


class Stepper:
    """The state of a run after `step` steps, and how it comes to the next."""

    def __init__(
        self,
        system: System,
        data: Any,
        checkpoints: Checkpoints,
        before: float = math.inf,
    ):
        """Restores the newest whole checkpoint of a step below `before`, or begins."""
        self.system, self.data, self.config = system, data, system.config
        c = self.config
        mesh = sharding.make_mesh(c.batch_size // c.accumulation)
        everywhere, self.rows = sharding.replicated(mesh), sharding.by_row(mesh)
        self.optimizer = optim.make(c)

        def init(key):
            ema = c.optimizer.ema_decay > 0
            return init_state(system.init(key), self.optimizer, ema)

        key = random.stream(c.seed, "params")
        abstract = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere),
            jax.eval_shape(init, key),
        )
        restored = checkpoints.restore_newest(abstract, before)
        self.state: dict[str, Any]
        if restored:
            self.step, self.state = restored
        else:
            self.step, self.state = 0, jax.jit(init, out_shardings=everywhere)(key)
            if c.init_from:
                given = read_start(c)[1]
                for name in {"params", "ema"} & self.state.keys():
                    self.state[name] = jax.device_put(given, everywhere)
        self.advance = make_step(system, self.optimizer)

    def batch(self, index: int) -> jax.Array:
        """Returns the tokens of the step that follows `index` steps, on the devices."""
        c = self.config
        tokens = self.data.batch_at(
            c.seed, "train", index, c.batch_size, self.system.window
        )
        return jax.device_put(tokens, self.rows)

    def run_step(self) -> dict[str, jax.Array]:
        """Starts one optimizer step; returns its metrics, not yet computed."""
        self.state, metrics = self.advance(
            self.state, np.int32(self.step), self.batch(self.step)
        )
        self.step += 1
        return metrics
