"""The state of a run as it advances, in training and in the replay of a step."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxgpt.data.dataset import Dataset
from jaxgpt.model import rng
from jaxgpt.parallel import sharding
from jaxgpt.systems.base import System
from jaxgpt.training.checkpoint import HOST, Checkpoints
from jaxgpt.training.profiling import Clock
from jaxgpt.training.step import fresh_state, make_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that a resolved config names, made once (by `commands.setup`).

    Attributes:
      workdir: folder of the run.
      initial_params: maps fresh parameters to those that a new run begins with.
      freeze: writes the config and the tokenizer to the folder.
    """

    system: System
    data: Dataset
    mesh: jax.sharding.Mesh
    optimizer: optax.GradientTransformation
    workdir: pathlib.Path
    initial_params: Callable[[dict], dict]
    freeze: Callable[[], None]

    @property
    def config(self) -> ConfigDict:
        """The resolved config."""
        return self.system.config


def abstract_state(setup: Setup) -> tuple[sharding.Layout, dict[str, Any]]:
    """Returns how the state of a run lies on the devices, and its shapes."""
    init = functools.partial(fresh_state, setup.system, setup.optimizer)
    shapes = jax.eval_shape(init, jax.random.key(0))
    layout = sharding.layout(shapes, setup.mesh, setup.config.batch_size)
    return layout, layout.abstract(shapes)


class TrainState:
    """The arrays of a run after `step` steps, and how they advance."""

    def __init__(
        self, setup: Setup, checkpoints: Checkpoints, before: float = math.inf
    ):
        """Restores the newest whole checkpoint of a step < before, or begins."""
        self.setup, self.system = setup, setup.system
        self.config = c = setup.config
        key = rng.stream(c.seed, "params")
        init = functools.partial(fresh_state, setup.system, setup.optimizer)
        self.layout, abstract = abstract_state(setup)
        restored = checkpoints.restore_newest(abstract, before, with_host=True)
        self.arrays: dict[str, Any]
        if restored:
            self.step, self.arrays = restored
        else:
            shardings = self.layout.state
            self.step, self.arrays = 0, jax.jit(init, out_shardings=shardings)(key)
            fresh = self.arrays["params"]
            params = setup.initial_params(fresh)
            if params is not fresh:
                for name in {"params", "ema"} & self.arrays.keys():
                    # The average is a copy: a step frees the arrays of both.
                    self.arrays[name] = jax.device_put(
                        params, shardings[name], may_alias=name == "params"
                    )
        self.clock = Clock()
        host = self.arrays.pop(HOST, {})
        if self.system.host:
            self.system.host.on_restore(self.arrays["carried"], host)
        self.advance = make_step(self.system, setup.optimizer, self.layout)

    def host_batch(self, index: int) -> Any:
        """Returns the data of the step that follows `index` steps."""
        c = self.config
        return self.setup.data.batch_at(
            c.seed, "train", index, c.batch_size, self.system.window
        )

    def batch(self, index: int) -> Any:
        """Returns `host_batch` on the devices."""
        return jax.tree.map(self.layout.put_rows, self.host_batch(index))

    def named_batch(self, index: int) -> dict[str, np.ndarray]:
        """Returns `host_batch` as NumPy arrays by name."""
        batch = self.host_batch(index)
        named = batch if isinstance(batch, dict) else {"tokens": batch}
        return {name: np.asarray(array) for name, array in named.items()}

    def run_step(self) -> dict[str, jax.Array]:
        """Starts one optimizer step; returns its metrics, not yet computed."""
        with self.clock.part("data"):
            batch = self.batch(self.step)
        with self.clock.part("host"):
            self.arrays, metrics = self.advance(self.arrays, np.int32(self.step), batch)
            if self.system.host:
                self.system.host.on_step_end(self.arrays["carried"])
        self.step += 1
        self.clock.steps += 1
        return metrics

    def checkpoint_items(self) -> dict[str, Any]:
        """Returns what a checkpoint holds: the arrays, and the host's part of them."""
        host = self.system.host.host_state() if self.system.host else {}
        return self.arrays | ({HOST: host} if host else {})
