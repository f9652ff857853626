"""Config fields of masked diffusion."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from jaxgpt.config import OptionGroup, option
from jaxgpt.errors import require

SAMPLERS = ("ancestral", "top-k-unmasking", "entropy-bounded-unmasking")
# A token knows its own place and sees on both sides: those that are only read left to
# right (alibi) or that tell a token nothing of its place (none) do not fit.
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
