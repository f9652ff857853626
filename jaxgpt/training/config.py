"""Config fields of a run and of its optimizer."""

from __future__ import annotations

import dataclasses
import functools

from ml_collections import ConfigDict

from jaxgpt.config import MAX_SEED, OptionGroup, option
from jaxgpt.errors import require
from jaxgpt.systems.registry import SYSTEMS

_resumable = functools.partial(option, resumable=True)


@dataclasses.dataclass(frozen=True)
class RunConfig(OptionGroup):
    """The fields without a group: length, batch, evaluation, checkpoints, tracking."""

    system: str = option(
        "sigma", "what is trained", choices=SYSTEMS, after_training=True
    )
    seed: int = option(1337, "seed of every random stream", min=0, max=MAX_SEED)
    steps: int = _resumable(5000, "optimizer steps", min=1)
    batch_size: int = option(64, "sequences per step over all devices", min=1)
    accumulation: int = option(1, "micro-batches a step is split into", min=1)
    init_from: str = option(
        "", "start from the parameters of this run, or of a GPT-2 folder or name"
    )
    patience: int = _resumable(
        0, "stop after this many evaluations without a lower loss; 0 never", min=0
    )
    deterministic: bool = option(
        False, "the same bits on any number of devices dividing deterministic_groups"
    )
    deterministic_groups: int = option(
        8, "groups of rows that deterministic sums in a fixed order", min=1
    )
    eval_interval: int = _resumable(250, "steps between evaluations", min=1)
    eval_sequences: int = _resumable(256, "windows per split and evaluation", min=1)
    checkpoint_interval: int = _resumable(250, "steps between checkpoints", min=1)
    keep: int = _resumable(2, "latest checkpoints kept, besides the best", min=1)
    nonfinite: str = _resumable(
        "stop",
        "what to do when loss or gradient is not finite",
        choices=("stop", "skip"),
    )
    log_interval: int = _resumable(10, "steps between metrics lines", min=1)
    profile: str = _resumable(
        "", "steps to trace, FIRST:LAST, for XProf; also times the parts of a step"
    )
    tensorboard: bool = _resumable(False, "also write TensorBoard events")
    wandb_project: str = _resumable("", "also log to this Weights & Biases project")

    @staticmethod
    def validate(config: ConfigDict) -> None:
        """Checks that the batch divides, and the format of `profile`."""
        rows, parts = config.batch_size, config.accumulation
        rule = f"divisible by accumulation {parts}"
        require(rows % parts == 0, "batch_size", rule, rows)
        if config.deterministic:
            rule = f"divisible by deterministic_groups {config.deterministic_groups}"
            divides = rows % config.deterministic_groups == 0
            require(divides, "batch_size", rule, rows)
        profiled_steps(config.profile)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(OptionGroup):
    """AdamW or Muon, and the learning rate."""

    name: str = option(
        "adamw", "adamw; muon (AdamW outside the matrices of blocks); or your own"
    )
    learning_rate: float = option(1e-3, "peak learning rate", min=0)
    min_learning_rate: float = option(1e-4, "where the cosine ends", min=0)
    warmup_steps: int = option(100, "steps of linear warmup", min=0)
    warmup_from_zero: bool = option(
        False, "the first step's rate is 0, not peak / (warmup_steps + 1)"
    )
    decay_steps: int = option(0, "step the cosine ends at; 0 is the last", min=0)
    rates: str = option(
        "", "constant rates from steps on, not the cosine: 2000:2e-5,6000:4e-6"
    )
    beta1: float = option(0.9, "AdamW: decay of the first moment", min=0, below=1)
    beta2: float = option(0.99, "AdamW: decay of the second moment", min=0, below=1)
    momentum: float = option(0.95, "Muon: decay of the momentum", min=0, below=1)
    weight_decay: float = option(0.1, "decay of parameters, times the rate", min=0)
    decays: str = option("matrices", "AdamW: what decays", choices=("matrices", "all"))
    grad_clip: float = option(1.0, "maximum global gradient norm; 0 never clips", min=0)
    # Evaluation and sampling then use the average.
    ema_decay: float = option(
        0.0, "decay per step of an average of parameters; 0 keeps none", min=0, below=1
    )

    @staticmethod
    def validate(config: ConfigDict) -> None:
        """Checks the format of `rates`."""
        rate_steps(config.optimizer.rates)


def profiled_steps(text: str) -> range:
    """Returns the steps that `profile`, FIRST:LAST, names, both included.

    Raises:
      UserError: for any other text but the empty one.
    """
    first, _, last = text.partition(":")
    if not text:
        return range(0)
    valid = first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)
    require(valid, "profile", "FIRST:LAST, steps such as 10:15", text)
    return range(int(first), int(last) + 1)


def rate_steps(text: str) -> list[tuple[int, float]]:
    """Returns [(step, learning rate from there on)] of `rates`, steps ascending.

    Raises:
      UserError: for any other format.
    """
    try:
        pairs = [word.split(":") for word in text.split(",") if text]
        found = [(int(step), float(rate)) for step, rate in pairs]
        valid = found == sorted(set(found)) and all(s >= 0 <= r for s, r in found)
    except ValueError:
        valid = False
    require(valid, "optimizer.rates", "like 2000:2e-5,6000:4e-6", text)
    return found
