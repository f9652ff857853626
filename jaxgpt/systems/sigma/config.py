"""Config fields of σ-GPT, with text or tasks."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from jaxgpt.config import OptionGroup, option
from jaxgpt.errors import require
from jaxgpt.model.config import DOUBLE_POSITIONS

# By the name of --sampler: make_sampler(sampling, max_draft_length) -> advance, as
# text: --help lists them without JAX.
SAMPLERS = {
    "exact-burst": "jaxgpt.systems.sigma.samplers.speculative:make_sampler",
    "burst": "jaxgpt.systems.sigma.samplers.best_of:make_sampler",
    "top-k-unmasking": "jaxgpt.systems.sigma.samplers.unmasking:make_sampler",
    "entropy-bounded-unmasking": "jaxgpt.systems.sigma.samplers.unmasking:make_sampler",
    "ar": "jaxgpt.systems.sigma.samplers.one_by_one:make_sampler",
}
# Orders of whole texts by name: a function (key, B, T) -> permutations [B, T], as text.
ORDERS = {
    "random": "jaxgpt.systems.sigma.orders:random",
    "left-to-right": "jaxgpt.systems.sigma.orders:LEFT_TO_RIGHT",
    "right-to-left": "jaxgpt.systems.sigma.orders:RIGHT_TO_LEFT",
    "fractal": "jaxgpt.systems.sigma.orders:FRACTAL",
    "far-apart": "jaxgpt.systems.sigma.orders:FAR_APART",
    "block": "jaxgpt.systems.sigma.orders:BLOCK",
    "curriculum": "jaxgpt.systems.sigma.orders:random",  # At its end.
}
# Samplers whose samples do not follow the model, and why.
INEXACT = {
    "burst": "it keeps the best of several orders",
    "top-k-unmasking": "tokens of one pass do not see each other",
    "entropy-bounded-unmasking": "tokens of one pass do not see each other",
}


@dataclasses.dataclass(frozen=True)
class SigmaConfig(OptionGroup):
    """The orders σ-GPT is trained in, and what it adds to the model."""

    order: str = option(
        "random",
        "generation orders in training",
        choices=ORDERS,
    )
    order_start: float = option(
        0.0, "curriculum: share of random orders at step 0", min=0, max=1
    )
    left_to_right_share: float = option(
        0.0, "share of sequences read left to right whatever the order", min=0, max=1
    )
    infill_share: float = option(
        0.0,
        "share of sequences that read spans first, then fill the gaps",
        min=0,
        max=1,
    )
    max_gap: int = option(
        0,
        "longest gap of unknown length, <missing:1-N>, that infill_share trains for; "
        "0 has no end-of-gap token",
        min=0,
    )
    begin_token: bool = option(False, "a token read first, to model the first one too")
    adaptive_norm: bool = option(False, "norms depend on the target position (AdaLN)")
    separate_tables: bool = option(
        False,
        "a table for own positions and another for targets, each as wide as the model, "
        "not half; init_from sets it to begin as a causal model",
        architecture=True,
    )

    @staticmethod
    def validate(config: ConfigDict) -> None:
        """Checks that positions can be double, and that tasks keep their prompts."""
        shares_prompts = config.sigma.infill_share and config.system == "sigma-task"
        rule, remedy = "0 with system=sigma-task", "a task has its own prompts"
        share = config.sigma.infill_share
        require(not shares_prompts, "sigma.infill_share", rule, share, remedy)
        most, infills = config.sigma.max_gap, config.sigma.infill_share > 0
        require(most == 0 or infills, "sigma.max_gap", "0 without infill_share", most)
        rule = "less than half of model.block_size"
        require(2 * most < config.model.block_size, "sigma.max_gap", rule, most)
        if config.system.startswith("sigma"):
            mixer = config.model.mixer
            require(mixer == "attention", "model.mixer", "attention for σ-GPT", mixer)
            positions = double_positions(config.model.positions)
            sines = config.sigma.separate_tables and positions == "double-sinusoidal"
            rule = "False with model.positions=sinusoidal"
            require(not sines, "sigma.separate_tables", rule, True)


def double_positions(name: str) -> str:
    """Returns the key of `DOUBLE_POSITIONS` for σ-GPT with these `model.positions`.

    Raises:
      UserError: where an encoding has no double.
    """
    doubles = {key.removeprefix("double-"): key for key in DOUBLE_POSITIONS}
    doubles["learned"] = doubles.pop("double")
    rule = f"one of {', '.join(sorted(doubles))} for σ-GPT"
    require(name in doubles, "model.positions", rule, name)
    return doubles[name]
