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
    begin_token: bool = option(False, "a token read first, to model the first one too")
    adaptive_norm: bool = option(False, "norms depend on the target position (AdaLN)")

    @staticmethod
    def validate(config: ConfigDict) -> None:
        """Checks that σ-GPT's positions can be double: own and target position."""
        rule, positions = "learned or sinusoidal for σ-GPT", config.model.positions
        if config.system.startswith("sigma"):
            double = positions in ("learned", "sinusoidal")
            require(double, "model.positions", rule, positions)
