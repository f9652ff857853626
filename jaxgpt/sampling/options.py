"""What --sampler and --order may be for a model that reads left to right; no JAX."""

from __future__ import annotations

from jaxgpt.errors import UserError, require


def check_left_to_right(order: str) -> None:
    """Raises UserError for another order; "" is the default."""
    fits = order in ("", "left-to-right")
    require(fits, "--order", "left-to-right for this model", order)


def check_one_by_one(
    sampler: str, num_orders: int | None, block_length: int | None
) -> None:
    """Raises UserError for all but one token after the other; "" is the default."""
    require(sampler in ("", "ar"), "--sampler", "ar for this model", sampler)
    for name, value in (("num_orders", num_orders), ("block_length", block_length)):
        if value:
            raise UserError(f"--{name} is for σ-GPT: this model reads left to right")
