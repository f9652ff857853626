"""Config fields of a run and of its optimizer."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from jaxgpt.config import MAX_SEED, OptionGroup, option
from jaxgpt.errors import require
from jaxgpt.systems.registry import SYSTEMS


@dataclasses.dataclass(frozen=True)
class RunConfig(OptionGroup):
    """The fields without a group: length, batch, evaluation, checkpoints, tracking."""

    system: str = option(
        "sigma", "what is trained", choices=tuple(SYSTEMS), after_training=True
    )
    seed: int = option(1337, "seed of every random stream", min=0, max=MAX_SEED)
    steps: int = option(5000, "optimizer steps", min=1, resumable=True)
    batch_size: int = option(64, "sequences per step over all devices", min=1)
    accumulation: int = option(1, "micro-batches a step is split into", min=1)
    init_from: str = option(
        "", "start from the parameters of this run, or of a GPT-2 folder or name"
    )
    patience: int = option(
        0,
        "stop after this many evaluations without a lower loss; 0 never",
        min=0,
        resumable=True,
    )
    deterministic: bool = option(
        False,
        "sum gradients in a fixed order: the same bits on any number of devices that "
        "divides deterministic_groups",
    )
    deterministic_groups: int = option(
        8, "groups of rows that deterministic sums one after another", min=1
    )
    eval_interval: int = option(250, "steps between evaluations", min=1, resumable=True)
    eval_sequences: int = option(
        256, "fixed windows per split and evaluation", min=1, resumable=True
    )
    checkpoint_interval: int = option(
        250, "steps between checkpoints", min=1, resumable=True
    )
    keep: int = option(
        2, "latest checkpoints kept, in addition to the best", min=1, resumable=True
    )
    nonfinite: str = option(
        "stop",
        "a step whose loss or gradient is not finite stops the run, or is skipped",
        choices=("stop", "skip"),
        resumable=True,
    )
    log_interval: int = option(10, "steps between metrics lines", min=1, resumable=True)
    profile: str = option(
        "",
        "steps to trace for XProf, FIRST:LAST, into profile/ of the run; also reports "
        "where the time of a step goes",
        resumable=True,
    )
    tensorboard: bool = option(
        False, "also write TensorBoard events (extra: tracking)", resumable=True
    )
    wandb_project: str = option(
        "", "also log to this Weights & Biases project", resumable=True
    )

    @staticmethod
    def validate(config: ConfigDict) -> None:
        """Checks that the batch divides, and the format of `profile`."""
        rows, groups = config.batch_size, config.deterministic_groups
        require(
            rows % config.accumulation == 0,
            "batch_size",
            f"divisible by accumulation {config.accumulation}",
            rows,
        )
        require(
            not config.deterministic or rows % groups == 0,
            "batch_size",
            f"divisible by deterministic_groups {groups}",
            rows,
        )
        profiled_steps(config.profile)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(OptionGroup):
    """AdamW and its learning rate."""

    learning_rate: float = option(1e-3, "peak learning rate", min=0)
    min_learning_rate: float = option(1e-4, "where the cosine ends", min=0)
    warmup_steps: int = option(100, "steps of linear warmup", min=0)
    warmup_from_zero: bool = option(
        False, "the first step's rate is 0, not peak / (warmup_steps + 1)"
    )
    decay_steps: int = option(
        0, "step at which the cosine ends; 0 is the last step", min=0
    )
    rates: str = option(
        "",
        "instead of the cosine: rates from given steps on, like 2000:2e-5,6000:4e-6; "
        "learning_rate before the first",
    )
    beta1: float = option(0.9, "AdamW: decay of the first moment", min=0)
    beta2: float = option(0.99, "AdamW: decay of the second moment", min=0)
    weight_decay: float = option(0.1, "AdamW: decay of parameters", min=0)
    decays: str = option(
        "matrices", "AdamW: which parameters decay", choices=("matrices", "all")
    )
    grad_clip: float = option(1.0, "maximum global gradient norm; 0 never clips", min=0)
    ema_decay: float = option(
        0.0,
        "keep an average of the parameters with this decay per step, and evaluate and "
        "sample with it; 0 keeps none",
        min=0,
        below=1,
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
