"""Checks the arrays of checkpoints that were saved without a manifest."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from jaxgpt import backend
from jaxgpt.systems.registry import build_system
from jaxgpt.training import optimizers
from jaxgpt.training.checkpoint import Checkpoints, DamagedError
from jaxgpt.training.step import fresh_state


def damaged_arrays(
    config: ConfigDict, workdir: pathlib.Path, steps: Sequence[int]
) -> dict[str, str]:
    """Returns {step: what is damaged}; UserError for a run without checkpoints."""
    backend.set_up_jax()
    backend.use_float64(config.model.dtype)
    system = build_system(config)
    optimizer = optimizers.make_optimizer(config)
    init = functools.partial(fresh_state, system, optimizer)
    abstract = jax.eval_shape(init, jax.random.key(0))
    checkpoints = Checkpoints(workdir, read_only=True)
    checkpoints.pick("last")  # Refuses a run without checkpoints.
    damaged = {}
    for step in steps:
        try:
            checkpoints.restore(step, abstract, with_host=True)
        except DamagedError as error:
            damaged[str(step)] = str(error)
    return damaged
