"""The next W slots of every row, each row at its own place."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxgpt.sampling.logits import sample_token, sampling_probs
from jaxgpt.sampling.state import DecodeParams, Decoder, DecodeState

SMALLEST = 4


def widths(max_draft_length: int) -> tuple[int, ...]:
    """Returns the widths for which a pass is compiled: 1, 4, 8, ... and the maximum."""
    found = [1, SMALLEST]
    while 2 * found[-1] <= max_draft_length:
        found.append(2 * found[-1])
    return (*found[:-1], max(max_draft_length, SMALLEST))


def take(array_BS: jax.Array, start_B: jax.Array, W: int) -> jax.Array:
    """Returns [B, W]: the slots from start_B on; past the end, the last one."""
    slot_BW = start_B[:, None] + jnp.arange(W)
    return jnp.take_along_axis(array_BS, jnp.minimum(slot_BW, array_BS.shape[1] - 1), 1)


def put(
    array_BS: jax.Array, start_B: jax.Array, new_BW: jax.Array, count_B: jax.Array
) -> jax.Array:
    """Returns array_BS with the first count_B of new_BW written from start_B on."""
    offset_BS = jnp.arange(array_BS.shape[1]) - start_B[:, None]
    value_BS = jnp.take_along_axis(
        new_BW, jnp.clip(offset_BS, 0, new_BW.shape[1] - 1), 1
    )
    inside_BS = (offset_BS >= 0) & (offset_BS < count_B[:, None])
    return jnp.where(inside_BS, value_BS.astype(array_BS.dtype), array_BS)


@dataclasses.dataclass(frozen=True)
class Draft:
    """Tokens for the next W slots, each drawn as if it came next.

    Attributes:
      tokens_BW: the drafted tokens.
      position_BW: where they stand.
      logits_BWV, p_BWV: what they were drawn from.
      last_B1, own_B1: the last settled token and its position.
    """

    tokens_BW: jax.Array
    position_BW: jax.Array
    logits_BWV: jax.Array
    p_BWV: jax.Array
    last_B1: jax.Array
    own_B1: jax.Array

    def read_as(self) -> tuple[jax.Array, jax.Array]:
        """Returns tokens and positions [B, W] read so that each draft comes next."""
        shift = lambda first, rest: jnp.concatenate([first, rest[:, :-1]], 1)
        return (
            shift(self.last_B1, self.tokens_BW),
            shift(self.own_B1, self.position_BW),
        )


def draft(
    decoder: Decoder,
    params: Any,
    state: DecodeState,
    decode_params: DecodeParams,
    uniform_BW: jax.Array,
) -> Draft:
    """Drafts the next W slots in one pass.

    Every slot is asked for by the last settled token, with that token's own position
    and the slot's as target: the exact conditional given what is settled.
    """
    B, W = uniform_BW.shape
    before_B = state.num_decoded_B - 1
    last_B1, own_B1 = (
        take(state.tokens_BS, before_B, 1),
        take(state.own_BS, before_B, 1),
    )
    position_BW = take(state.own_BS, state.num_decoded_B, W)
    wide = lambda array_B1: jnp.broadcast_to(array_B1, (B, W))
    logits_BWV, _ = decoder.read(
        params,
        wide(last_B1),
        (wide(own_B1), position_BW),
        state.cache,
        before_B,
        jnp.eye(W, dtype=bool),
    )
    p_BWV = sampling_probs(logits_BWV, decode_params)
    tokens_BW = sample_token(uniform_BW, p_BWV)
    return Draft(tokens_BW, position_BW, logits_BWV, p_BWV, last_B1, own_B1)


def at_tokens(p_BWV: jax.Array, tokens_BW: jax.Array) -> jax.Array:
    """Returns [B, W]: p at each token."""
    return jnp.take_along_axis(p_BWV, tokens_BW[..., None], -1)[..., 0]


def rounds(
    advance: Callable[..., DecodeState],
    wanted_B: Callable[[DecodeState], jax.Array],
    state: DecodeState,
    max_draft_length: int,
    end: jax.Array,
    limit: jax.Array,
) -> DecodeState:
    """Runs rounds until all rows are full, or those that are not made limit calls.

    Each round is compiled for a few widths and runs in the narrowest that holds every
    row's wanted window. A while loop for each width, inside one over all: a switch
    would copy the cache.

    Args:
      advance: (state, W=width) -> state, one round.
      wanted_B: state -> slots each row wants to look at, 0 where it is full.
      state: where to begin.
      max_draft_length: the largest window wanted.
      end: one past the last slot to fill.
      limit: calls.
    """
    most_B = state.num_forward_passes_B + limit

    def going(state):
        return (
            (state.num_decoded_B < end) & (state.num_forward_passes_B < most_B)
        ).any()

    def sweep(state):
        below = 0
        for W in widths(max_draft_length):

            def fits(state, below=below, W=W):
                wanted = wanted_B(state).max()
                return going(state) & (wanted > below) & (wanted <= W)

            state = lax.while_loop(fits, functools.partial(advance, W=W), state)
            below = W
        return state

    return lax.while_loop(going, sweep, state)
