"""Orders: permutations of positions, in which a text is read and generated."""

from __future__ import annotations

import functools

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


def far_apart(settled_T: np.ndarray) -> np.ndarray:
    """Returns the unsettled positions, each as far as can be from all before it.

    What lies far apart is nearly independent, so that many of these positions can be
    settled at once. Farthest-first traversal (Gonzalez 1985): every next position has
    the largest distance to the settled ones, the leftmost of equals.

    Args:
      settled_T: true where the token is known.

    Returns:
      int32 positions, as many as settled_T has false.
    """
    T = len(settled_T)
    index = np.arange(T)
    distance = np.full(T, T)
    for position in np.flatnonzero(settled_T):
        distance = np.minimum(distance, abs(index - position))
    order = np.empty(T - settled_T.sum(), np.int32)
    for step in range(len(order)):
        order[step] = distance.argmax()
        distance = np.minimum(distance, abs(index - order[step]))
    return order


def blocks(settled_T: np.ndarray, length: int) -> np.ndarray:
    """Returns the unsettled positions block by block, far apart inside each.

    Args:
      settled_T: true where the token is known.
      length: of a block; the blocks follow one another left to right.
    """
    settled_T = settled_T.copy()
    order = []
    for start in range(0, len(settled_T), length):
        # What lies behind this block neither attracts nor repels.
        reach = slice(0, start + length)
        order.append(far_apart(settled_T[reach]))
        settled_T[reach] = True
    return np.concatenate(order) if order else np.zeros(0, np.int32)


def generation(
    prompt_mask_T: np.ndarray,
    kind: str,
    noise_T: np.ndarray,
    *,
    block_length: int = 16,
) -> np.ndarray:
    """Returns the missing positions of one text in the order they are generated in.

    Args:
      prompt_mask_T: true where the token is given.
      kind: one of `GENERATION`.
      noise_T: distinct random numbers, which random orders sort.
      block_length: for blocks.

    Returns:
      int32 positions, as many as prompt_mask_T has false.
    """
    missing = np.flatnonzero(~prompt_mask_T).astype(np.int32)
    if kind == "random":
        return missing[np.argsort(noise_T[missing])]
    if kind == "fractal":
        return missing[fractal(len(missing))]
    if kind == "far-apart":
        return far_apart(prompt_mask_T)
    if kind == "block":
        return blocks(prompt_mask_T, block_length)
    return missing


GENERATION = ("random", "left-to-right", "fractal", "far-apart", "block")


def left_to_right(B: int, T: int) -> jax.Array:
    """Returns the identity order [B, T]."""
    return jnp.broadcast_to(jnp.arange(T), (B, T))


def random(key: jax.Array, B: int, T: int) -> jax.Array:
    """Returns uniform orders [B, T], one per row."""
    return jnp.argsort(jax.random.uniform(key, (B, T)), -1)


def given_first(order_BT: jax.Array, prompt_mask_BT: jax.Array) -> jax.Array:
    """Returns orders that begin with what is given, left to right.

    Args:
      order_BT: in which the rest is read.
      prompt_mask_BT: true where the token is given.
    """
    T = order_BT.shape[1]
    known_first = jnp.take_along_axis(prompt_mask_BT, order_BT, 1)
    rank_BT = jnp.where(known_first, order_BT - T, jnp.arange(T))
    return jnp.take_along_axis(order_BT, jnp.argsort(rank_BT, -1), 1)


def fractal_rest(prompt_mask_BT: jax.Array) -> jax.Array:
    """Returns orders that read what is given, then bisect what is not."""
    T = prompt_mask_BT.shape[1]
    index_BT = jnp.cumsum(~prompt_mask_BT, 1) - 1
    count_B1 = (~prompt_mask_BT).sum(1, keepdims=True)
    rank_BT = jnp.asarray(_fractal_ranks(T))[count_B1, index_BT]
    return jnp.argsort(jnp.where(prompt_mask_BT, jnp.arange(T) - T, rank_BT), -1)


@functools.lru_cache(maxsize=4)
def _fractal_ranks(T: int) -> np.ndarray:
    """Returns [T + 1, T]: when each of n missing tokens is read, for every n."""
    ranks = np.zeros((T + 1, T), np.int32)
    for n in range(T + 1):
        ranks[n, fractal(n)] = np.arange(n)
    return ranks


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
