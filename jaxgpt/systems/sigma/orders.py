"""Orders: permutations of positions, in which a text is read and generated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def fractal(T: int) -> np.ndarray:
    """Returns the bisection order [T]: the middle, then the middles of what is left.

    Level by level. The first split goes right first; a left half keeps the direction
    of what it is half of, a right half turns it (the order of σ-GPT's text program).
    """
    level: list[tuple[int, int, bool]] = [(0, T, True)]
    order: list[int] = []
    while level:
        halves: list[tuple[int, int, bool]] = []
        for low, high, right_first in level:
            if low == high:
                continue
            middle = (low + high) // 2
            order.append(middle)
            pair = [(low, middle, right_first), (middle + 1, high, not right_first)]
            halves += reversed(pair) if right_first else pair
        level = halves
    return np.array(order, np.int32)


def left_to_right(B: int, T: int) -> jax.Array:
    """Returns the identity order [B, T]."""
    return jnp.broadcast_to(jnp.arange(T), (B, T))


def random(key: jax.Array, B: int, T: int) -> jax.Array:
    """Returns uniform orders [B, T], one per row."""
    return jnp.argsort(jax.random.uniform(key, (B, T)), -1)


def training(
    key: jax.Array,
    B: int,
    T: int,
    kind: str,
    start: float,
    progress: jax.Array,
    straight: float = 0.0,
) -> jax.Array:
    """Returns the orders [B, T] of a training batch.

    Args:
      key: of this step.
      B, T: rows and tokens.
      kind: "random", "left-to-right", "fractal", or "curriculum": each row is
        random with a probability that grows linearly from start to 1, else left to
        right (the original's two curricula: start 0, and start given).
      start: that probability at step 0.
      progress: share of training done, in [0, 1].
      straight: share of rows read left to right in any case.
    """
    if kind == "left-to-right":
        return left_to_right(B, T)
    if kind == "fractal":
        order_BT = jnp.broadcast_to(jnp.asarray(fractal(T)), (B, T))
    else:
        order_BT = random(key, B, T)
    share = start + (1 - start) * progress if kind == "curriculum" else 1.0
    coin_B1 = jax.random.uniform(jax.random.fold_in(key, 1), (B, 1))
    return jnp.where(coin_B1 < share * (1 - straight), order_BT, left_to_right(B, T))
