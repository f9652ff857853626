"""The options of sampling and their ranges; read without JAX."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from jaxgpt.config import MAX_INT, MAX_SEED
from jaxgpt.errors import UserError, require

RANGES = {
    "max_new_tokens": (0, math.inf),  # The text's length is checked.
    "num_samples": (1, 1 << 20),
    "temperature": (0, math.inf),
    "top_k": (1, MAX_INT),
    "num_orders": (1, 1 << 16),
    "block_length": (1, MAX_INT),
    "tokens_per_pass": (1, MAX_INT),
    "entropy_bound": (0, math.inf),
    "num_steps": (1, 1 << 20),
    "seed": (0, MAX_SEED),
}
REAL = ("temperature", "entropy_bound")
# Options of only some samplers or orders: of σ-GPT, of masked diffusion, and of both.
OF_SIGMA = ("num_orders", "block_length")
OF_DIFFUSION = ("num_steps",)
OF_UNMASKING = ("tokens_per_pass", "entropy_bound")


class SamplingOptions(TypedDict, total=False):
    """How tokens are drawn, as keyword arguments: the options of `jaxgpt.sample`."""

    # of σ-GPT: exact-burst (its default), ar, ...; of masked diffusion: ancestral, ...
    sampler: str
    order: str  # of σ-GPT: random (its default), left-to-right, ...; "7,5,6" or a list
    temperature: float  # 1.0; 0 is greedy
    top_k: int | None  # draw from the k likeliest tokens; None from all
    top_p: float  # draw from the likeliest tokens that reach this probability; 1.0
    num_orders: int | None  # of burst; 5
    block_length: int | None  # of order block; 16
    tokens_per_pass: int | None  # of unmasking; 4, at most 16 if entropy-bounded
    entropy_bound: float | None  # of entropy-bounded unmasking, in nats; 0.5
    num_steps: int | None  # of ancestral sampling; None is one for each token


def check_ranges(values: Mapping[str, Any]) -> None:
    """Raises UserError for a value out of range; None is the default of an option."""
    for name, (least, most) in RANGES.items():
        value = values.get(name)
        if value is not None:
            kind = numbers.Real if name in REAL else numbers.Integral
            rule = "a number" if name in REAL else "an integer"
            fits = isinstance(value, kind) and not isinstance(value, bool)
            require(fits, f"--{name}", rule, value)
            require(value >= least, f"--{name}", f">= {least}", value)
            require(value <= most, f"--{name}", f"<= {most}", value)
    top_p, temperature = values.get("top_p"), values.get("temperature")
    top_p = 1.0 if top_p is None else top_p
    require(isinstance(top_p, numbers.Real), "--top_p", "a number", top_p)
    require(0 < top_p <= 1, "--top_p", "in (0, 1]", top_p)
    finite = temperature is None or temperature <= 1e38  # float32 ends at 3e38.
    require(finite, "--temperature", "finite, and at most 1e38", temperature)


def check_left_to_right(order: str) -> None:
    """Raises UserError for another order; "" is the default."""
    fits = order in ("", "left-to-right")
    require(fits, "--order", "left-to-right for this model", order)


def check_one_by_one(sampling: Any) -> None:
    """Raises UserError for anything but one token after the other.

    Args:
      sampling: has `SamplingOptions` as attributes; "", 0 and None are the defaults.
    """
    ar = sampling.sampler in ("", "ar")
    require(ar, "--sampler", "ar for this model", sampling.sampler)
    owners = {
        "σ-GPT": OF_SIGMA,
        "masked diffusion": OF_DIFFUSION,
        "σ-GPT and masked diffusion": OF_UNMASKING,
    }
    for owner, names in owners.items():
        refuse(sampling, names, f"is for {owner}: this model reads left to right")


def check_sampler(
    sampling: Any, samplers: Sequence[str], needs: Mapping[str, Sequence[str]]
) -> str:
    """Returns the name of the sampler, the first one by default.

    Args:
      sampling: as for `check_one_by_one`.
      samplers: names that are known.
      needs: the samplers that have an option, for those that not all have.

    Raises:
      UserError: for an unknown sampler, or one without an option that is set.
    """
    name = sampling.sampler or samplers[0]
    require(name in samplers, "--sampler", f"one of {', '.join(samplers)}", name)
    for option, owners in needs.items():
        if getattr(sampling, option) and name not in owners:
            needed = " or ".join(owners)
            raise UserError(f"--{option} needs --sampler={needed}, got {name}")
    return name


def refuse(sampling: Any, names: Iterable[str], reason: str) -> None:
    """Raises UserError if one of these options is set."""
    for name in names:
        if getattr(sampling, name):
            raise UserError(f"--{name} {reason}")
