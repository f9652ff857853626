"""What the options of jaxgpt.sample may be for masked diffusion; read without JAX."""

from __future__ import annotations

from typing import Any

from jaxgpt.errors import UserError, require
from jaxgpt.sampling.options import OF_SIGMA, refuse
from jaxgpt.systems.diffusion.config import SAMPLERS

# Which samplers have an option.
OPTIONS = {
    "num_steps": SAMPLERS[:1],
    "tokens_per_pass": SAMPLERS[1:],
    "entropy_bound": SAMPLERS[2:],
}


def check_sampling(sampling: Any) -> None:
    """Checks options against each other.

    Args:
      sampling: has `SamplingOptions` as attributes; "", 0 and None are the defaults.

    Raises:
      UserError: for an unknown sampler, or a contradiction.
    """
    name = sampling.sampler or "ancestral"
    require(name in SAMPLERS, "--sampler", f"one of {', '.join(SAMPLERS)}", name)
    check_order(sampling.order)
    refuse(sampling, OF_SIGMA, "is for σ-GPT: leave it out")
    for option, samplers in OPTIONS.items():
        if getattr(sampling, option) and name not in samplers:
            needed = " or ".join(samplers)
            raise UserError(f"--{option} needs --sampler={needed}, got {name}")


def check_order(order: str) -> None:
    """Raises UserError for any order: the sampler chooses it."""
    if order:
        raise UserError(
            f"--order={order} is for σ-GPT: a masked diffusion model unmasks tokens in "
            "an order that its sampler chooses"
        )
