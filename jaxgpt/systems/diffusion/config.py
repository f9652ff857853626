"""Config fields and sampling options of masked diffusion; read without JAX."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from jaxgpt.config import OptionGroup, option
from jaxgpt.errors import UserError, require
from jaxgpt.sampling.options import OF_SIGMA, check_sampler, refuse

SAMPLERS = ("ancestral", "top-k-unmasking", "entropy-bounded-unmasking")
# The samplers that have an option.
NEEDS = {
    "num_steps": SAMPLERS[:1],
    "tokens_per_pass": SAMPLERS[1:],
    "entropy_bound": SAMPLERS[2:],
}
# Those that tell tokens apart in a text that is read in both directions: alibi is
# causal, and with none all masks would be alike.
POSITIONS = ("learned", "sinusoidal", "rope")


@dataclasses.dataclass(frozen=True)
class DiffusionConfig(OptionGroup):
    """The blocks of masked diffusion, and how its loss is estimated."""

    block_length: int = option(
        0, "tokens of a block, which sees the blocks before it; 0 is the whole text",
        min=0,
    )  # fmt: skip
    eval_masks: int = option(
        4,
        "masks drawn for each text of an evaluation",
        min=1,
        max=1 << 12,
        resumable=True,
        after_training=True,
    )

    @staticmethod
    def validate(config: ConfigDict) -> None:
        """Checks that blocks fill the text, and what a token must know to be masked."""
        if config.system != "masked-diffusion":
            return
        m, length = config.model, config.diffusion.block_length
        ending = "with system=masked-diffusion"
        rule = f"attention {ending}"
        require(m.mixer == "attention", "model.mixer", rule, m.mixer)
        rule = f"one of {', '.join(POSITIONS)} {ending}"
        require(m.positions in POSITIONS, "model.positions", rule, m.positions)
        fits = length == 0 or m.block_size % length == 0
        rule = f"0, or a divisor of model.block_size {m.block_size}"
        require(fits, "diffusion.block_length", rule, length)


def check_sampling(sampling: Any) -> None:
    """Checks options against each other.

    Args:
      sampling: has `SamplingOptions` as attributes; "", 0 and None are the defaults.

    Raises:
      UserError: for an unknown sampler, or a contradiction.
    """
    check_sampler(sampling, SAMPLERS, NEEDS)
    check_order(sampling.order)
    refuse(sampling, OF_SIGMA, "is for σ-GPT: leave it out")


def check_order(order: str) -> None:
    """Raises UserError for any order: the sampler chooses it."""
    if order:
        raise UserError(
            f"--order={order} is for σ-GPT: a masked diffusion model unmasks tokens in "
            "an order that its sampler chooses"
        )
