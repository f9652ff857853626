"""Orders: permutations of positions, in which a text is read and generated."""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.systems.sigma.config import ORDERS

SPAN = 8  # Tokens of the spans that `gaps` cuts a text into, on average.


def fractal(T: int) -> np.ndarray:
    """Returns the bisection order [T]: the middle, then the middles of what is left.

    Level by level, as in σ-GPT's text program: the first split goes right first; a left
    half keeps its parent's direction, a right half reverses it.
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


def far_apart(decoded_T: np.ndarray) -> np.ndarray:
    """Returns the missing positions, each as far as possible from all before it.

    Tokens far apart are nearly independent, so that many of them can be decoded at
    once. Farthest-first traversal (Gonzalez 1985): every next position has the largest
    distance to the decoded ones, the leftmost of equals.

    Args:
      decoded_T: true where the token is known.

    Returns:
      int32 positions, as many as decoded_T has false.
    """
    T = len(decoded_T)
    index = np.arange(T)
    distance = np.full(T, T)
    for position in np.flatnonzero(decoded_T):
        distance = np.minimum(distance, abs(index - position))
    order = np.empty(T - decoded_T.sum(), np.int32)
    for step in range(len(order)):
        order[step] = distance.argmax()
        distance = np.minimum(distance, abs(index - order[step]))
    return order


def blocks(decoded_T: np.ndarray, length: int) -> np.ndarray:
    """Returns the missing positions block by block, far apart inside each.

    Args:
      decoded_T: true where the token is known.
      length: of a block; the blocks follow one another left to right.
    """
    decoded_T = decoded_T.copy()
    order = [np.zeros(0, np.int32)]
    for start in range(0, len(decoded_T), length):
        # Known tokens after this block are left out, so as not to repel its positions.
        upto = slice(0, start + length)
        order.append(far_apart(decoded_T[upto]))
        decoded_T[upto] = True
    return np.concatenate(order)


def _missing(prompt_mask_T: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~prompt_mask_T).astype(np.int32)


# Generation orders by name: functions of (prompt_mask_T, true where the token is given;
# noise_T, distinct random numbers; the length of a block) that return the missing
# positions, int32, in the order in which they are generated.
GENERATION: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "random": lambda mask_T, noise_T, _: _missing(mask_T)[
        np.argsort(noise_T[_missing(mask_T)])
    ],
    "left-to-right": lambda mask_T, *_: _missing(mask_T),
    "right-to-left": lambda mask_T, *_: _missing(mask_T)[::-1],
    "fractal": lambda mask_T, *_: _missing(mask_T)[fractal(len(_missing(mask_T)))],
    "far-apart": lambda mask_T, *_: far_apart(mask_T),
    "block": lambda mask_T, _, length: blocks(mask_T, length),
}


def left_to_right(B: int, T: int) -> jax.Array:
    """Returns the identity order [B, T]."""
    return jnp.broadcast_to(jnp.arange(T), (B, T))


def fixed(kind: str, key: jax.Array, B: int, T: int) -> jax.Array:
    """Returns the one order [T] in which a whole text is generated, [B, T]."""
    del key
    order_T = GENERATION[kind](np.zeros(T, bool), np.zeros(T), BLOCK_LENGTH)
    return jnp.broadcast_to(jnp.asarray(order_T, jnp.int32), (B, T))


BLOCK_LENGTH = 16
LEFT_TO_RIGHT = functools.partial(fixed, "left-to-right")
RIGHT_TO_LEFT = functools.partial(fixed, "right-to-left")
FRACTAL = functools.partial(fixed, "fractal")
FAR_APART = functools.partial(fixed, "far-apart")
BLOCK = functools.partial(fixed, "block")


def random(key: jax.Array, B: int, T: int) -> jax.Array:
    """Returns uniform orders [B, T], one per row."""
    return jnp.argsort(jax.random.uniform(key, (B, T)), -1)


def gaps(key: jax.Array, B: int, T: int) -> jax.Array:
    """Returns orders [B, T] that read some spans first, then fill the gaps.

    Both left to right, as a template is filled with --order=left-to-right. Spans have
    `SPAN` tokens on average; the share of them that is read first is uniform over rows.
    """
    return prompt_first(left_to_right(B, T), read_first(key, B, T))


def read_first(key: jax.Array, B: int, T: int) -> jax.Array:
    """Returns which tokens `gaps` reads first, bool [B, T]."""
    cut_key, span_key, share_key = jax.random.split(key, 3)
    begins_BT = jax.random.uniform(cut_key, (B, T)) < 1 / SPAN
    draws_BT = jax.random.uniform(span_key, (B, T + 1))
    draw_BT = jnp.take_along_axis(draws_BT, jnp.cumsum(begins_BT, 1), 1)
    return draw_BT < jax.random.uniform(share_key, (B, 1))


def prompt_first(order_BT: jax.Array, prompt_mask_BT: jax.Array) -> jax.Array:
    """Returns orders that begin with the prompt, left to right; the rest as it was."""
    T = order_BT.shape[1]
    in_prompt_BT = jnp.take_along_axis(prompt_mask_BT, order_BT, 1)
    rank_BT = jnp.where(in_prompt_BT, order_BT - T, jnp.arange(T))
    return jnp.take_along_axis(order_BT, jnp.argsort(rank_BT, -1), 1)


def prompt_first_fractal(prompt_mask_BT: jax.Array) -> jax.Array:
    """Returns orders that begin with the prompt, then bisect what is missing."""
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
    infill: float = 0.0,
) -> jax.Array:
    """Returns the orders [B, T] of a training batch.

    Args:
      kind: of `config.ORDERS`, or "curriculum": each row is random with a probability
        that grows linearly from start to 1, else left to right. The original's two
        curricula are start = 0 and a start above it.
      start: that probability at step 0.
      progress: share of training done, in [0, 1].
      straight: share of rows read left to right in any case, but for those of infill.
      infill: share of rows read as `gaps` says.
    """
    straight_BT = left_to_right(B, T)
    order_BT = pkgutil.resolve_name(ORDERS[kind])(key, B, T)
    share = start + (1 - start) * progress if kind == "curriculum" else 1.0
    coin_B1 = jax.random.uniform(jax.random.fold_in(key, 1), (B, 1))
    order_BT = jnp.where(coin_B1 < share * (1 - straight), order_BT, straight_BT)
    if not infill:
        return order_BT
    coin_B1 = jax.random.uniform(jax.random.fold_in(key, 2), (B, 1))
    gaps_BT = gaps(jax.random.fold_in(key, 3), B, T)
    return jnp.where(coin_B1 < infill, gaps_BT, order_BT)
