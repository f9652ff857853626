"""Checks of σ-GPT's --sampler, --order and the like; read without JAX."""

from __future__ import annotations

import re
from typing import Any

from jaxgpt.errors import UserError
from jaxgpt.sampling.options import OF_DIFFUSION, check_sampler, refuse
from jaxgpt.systems.sigma.config import SAMPLERS

LOW_ENTROPY_FIRST = "low-entropy-first"
AUTO = "auto"  # The faster of the two exact samplers: samplers/fastest.py.
UNMASKING = ("top-k-unmasking", "entropy-bounded-unmasking")
# The samplers that have an option.
NEEDS = {
    "num_orders": ("burst",),
    "tokens_per_pass": UNMASKING,
    "entropy_bound": UNMASKING[1:],
}


def check_sampling(sampling: Any) -> None:
    """Checks options against each other.

    Args:
      sampling: has `SamplingOptions` as attributes; "", 0 and None are the defaults.

    Raises:
      UserError: for an unknown sampler, no list of positions, or a contradiction.
    """
    name, order = check_sampler(sampling, (*SAMPLERS, AUTO), NEEDS), sampling.order
    if order and name == "burst":
        raise UserError(
            "--order is incompatible with --sampler=burst, which tries many orders"
        )
    if order and name in UNMASKING:
        raise UserError(
            f"--order is incompatible with --sampler={name}, which chooses its own"
        )
    if order == LOW_ENTROPY_FIRST and name not in ("ar", AUTO):
        raise UserError(
            f"--order={LOW_ENTROPY_FIRST} needs --sampler=ar: it chooses "
            "the next position after every token"
        )
    if sampling.block_length and order != "block":
        raise UserError("--block_length is for --order=block")
    refuse(sampling, OF_DIFFUSION, "is for masked diffusion: leave it out")
    read_positions(order)


def read_positions(order: str) -> list[int] | None:
    """Returns the positions that an order lists, "7,5,6"; None if it is a name.

    Raises:
      UserError: for anything else.
    """
    if not order or re.fullmatch(r"[A-Za-z][\w-]*", order):
        return None
    for word in order.split(","):
        # No text has 10^9 tokens, and Python refuses to read thousands of digits.
        if not re.fullmatch(r"\s*[0-9]{1,9}\s*", word):
            remedy = "write a name, or the missing positions, like 7,5,6"
            raise UserError(
                f"--order={_short(order)!r} has {_short(word)!r}, which is not a "
                f"position: {remedy}"
            )
    return [int(word) for word in order.split(",")]


def match_positions(positions: list[int], missing: list[int], order: str) -> None:
    """Raises UserError unless the positions that an order lists are those missing."""
    wrong = ""
    if unknown := sorted(set(positions) - set(missing)):
        wrong = f"{unknown[0]} is not missing"
    elif len(set(positions)) < len(positions):
        twice = next(p for p in positions if positions.count(p) > 1)
        wrong = f"{twice} is there twice"
    elif absent := sorted(set(missing) - set(positions)):
        wrong = f"{absent[0]} is left out"
    if wrong:
        raise UserError(
            f"--order={_short(order)} must name each of the {len(missing)} missing "
            f"positions once, counted from 0: {wrong}; missing are {_spans(missing)}"
        )


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."


def _spans(numbers: list[int]) -> str:
    """Returns ascending numbers as "2-5, 9"; the first few spans."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    shown = ["-".join(map(str, span)) for span in spans[:8]]
    return ", ".join([*shown, "..."] if len(spans) > 8 else shown) or "none"
