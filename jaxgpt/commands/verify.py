"""Checks a run's checkpoints against their digests."""

from __future__ import annotations

import argparse

import jax

from jaxgpt import backend, cli
from jaxgpt import config as configs
from jaxgpt.systems.registry import build_system
from jaxgpt.training import optimizers
from jaxgpt.training.checkpoint import Checkpoints, DamagedError
from jaxgpt.training.step import fresh_state


def execute(args: argparse.Namespace) -> int:
    """Prints a line per checkpoint; returns 1 where one is damaged."""
    backend.set_up_jax()
    workdir = configs.user_path(args.workdir)
    config = configs.load_frozen(workdir)
    backend.use_float64(config.model.dtype)
    system = build_system(config)
    optimizer = optimizers.make_optimizer(config)
    abstract = jax.eval_shape(
        lambda key: fresh_state(system, optimizer, key), jax.random.key(0)
    )
    checkpoints = Checkpoints(workdir, read_only=True)
    checkpoints.pick("last")  # Refuses a run without checkpoints.
    damaged = {}
    for step in checkpoints.steps():
        try:
            checkpoints.restore(step, abstract, with_host=True)
        except DamagedError as error:
            damaged[str(step)] = str(error)  # Text, as JSON's keys are.
        if not args.json:
            print(f"checkpoint {step}: {damaged.get(str(step), 'intact')}")
    if args.json:
        cli.print_json({"checkpoints": checkpoints.steps(), "damaged": damaged})
    return 1 if damaged else 0
