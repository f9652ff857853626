"""Config fields of σ-GPT, with text or tasks."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from jaxgpt.config import OptionGroup, option
from jaxgpt.errors import require


@dataclasses.dataclass(frozen=True)
class SigmaConfig(OptionGroup):
    """The orders σ-GPT is trained in, and what it adds to the model."""

    order: str = option(
        "random",
        "generation orders in training",
        choices=("random", "left-to-right", "fractal", "curriculum"),
    )
    order_start: float = option(
        0.0, "curriculum: share of random orders at step 0", min=0, max=1
    )
    left_to_right_share: float = option(
        0.0, "share of sequences read left to right whatever the order", min=0, max=1
    )
    begin_token: bool = option(
        False, "read a begin token first, so that the first token is modelled too"
    )
    adaptive_norm: bool = option(
        False, "scale and shift each block's norms by the target position (AdaLN)"
    )

    @staticmethod
    def validate(config: ConfigDict) -> None:
        """Checks that σ-GPT's positions can be double: own and target position."""
        positions = config.model.positions
        require(
            not config.system.startswith("sigma")
            or positions in ("learned", "sinusoidal"),
            "model.positions",
            "learned or sinusoidal for σ-GPT",
            positions,
            "its positions are double, the others are for causal models",
        )
