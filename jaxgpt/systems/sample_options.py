"""The options of jaxgpt.sample that depend on the system, checked without JAX."""

from __future__ import annotations

import argparse

from jaxgpt.sampling.options import check_left_to_right, check_one_by_one
from jaxgpt.systems.diffusion import config as diffusion
from jaxgpt.systems.registry import ANY_ORDER, LEFT_TO_RIGHT, MASKED
from jaxgpt.systems.sigma import options as sigma


def check_sampling(system: str, args: argparse.Namespace) -> None:
    """Checks --sampler, --order and what goes with them before anything is loaded.

    Args:
      system: the name of the run's; one from elsewhere checks once it is loaded.

    Raises:
      UserError: if the system would refuse them.
    """
    if system in ANY_ORDER:
        sigma.check_sampling(args)
    elif system in MASKED:
        diffusion.check_sampling(args)
    elif system in LEFT_TO_RIGHT:
        check_left_to_right(args.order)
        check_one_by_one(args)
