"""The next W slots of every row, each row at its own place in the order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxgpt.sampling.logits import sample_token, sampling_probs
from jaxgpt.sampling.state import Cache, DecodeParams, Decoder, DecodeState

# Narrower passes would save little, and every width must be traced, and compiled or
# loaded, before the first token.
NARROWEST = 8


def widths(max_length: int) -> tuple[int, ...]:
    """Returns the widths for which a pass is compiled: 8, 16, 32, ..., the maximum."""
    found = [NARROWEST]
    while 2 * found[-1] <= max_length:
        found.append(2 * found[-1])
    return (*found[:-1], max(max_length, 2))  # The least that a burst can verify.


def take(array_BS: jax.Array, start_B: jax.Array, W: int) -> jax.Array:
    """Returns [B, W]: the slots from start_B on; past the end, the last one."""
    slot_BW = start_B[:, None] + jnp.arange(W)
    return jnp.take_along_axis(array_BS, jnp.minimum(slot_BW, array_BS.shape[1] - 1), 1)


def put(
    array_BS: jax.Array, start_B: jax.Array, new_BW: jax.Array, count_B: jax.Array
) -> jax.Array:
    """Returns array_BS with the first count_B of new_BW written from start_B on."""
    # A gather and a select, which fuse: XLA:CPU scatters one number at a time.
    offset_BS = jnp.arange(array_BS.shape[1]) - start_B[:, None]
    value_BS = jnp.take_along_axis(
        new_BW, jnp.clip(offset_BS, 0, new_BW.shape[1] - 1), 1
    )
    inside_BS = (offset_BS >= 0) & (offset_BS < count_B[:, None])
    return jnp.where(inside_BS, value_BS.astype(array_BS.dtype), array_BS)


def shift(first_B1: jax.Array, rest_BW: jax.Array) -> jax.Array:
    """Returns [B, W]: what precedes each of rest_BW, first_B1 before the first."""
    return jnp.concatenate([first_B1, rest_BW[:, :-1]], 1)


def at_tokens(p_BWV: jax.Array, tokens_BW: jax.Array) -> jax.Array:
    """Returns [B, W]: p at each token."""
    return jnp.take_along_axis(p_BWV, tokens_BW[..., None], -1)[..., 0]


def decode(
    state: DecodeState,
    tokens_BW: jax.Array,
    log_p_BW: jax.Array,
    num_new_B: jax.Array,
    num_passes_B: jax.Array,
    *,
    tokens_processed_B: jax.Array,
) -> DecodeState:
    """Returns the state with the first num_new_B of tokens_BW decoded.

    num_passes_B and tokens_processed_B are what this took.
    """
    n_B = state.num_decoded_B
    total_B = state.num_forward_passes_B + num_passes_B
    step_BW = jnp.broadcast_to(total_B[:, None], tokens_BW.shape)
    return state.replace(
        tokens_BS=put(state.tokens_BS, n_B, tokens_BW, num_new_B),
        num_decoded_B=n_B + num_new_B,
        num_forward_passes_B=total_B,
        tokens_processed_B=state.tokens_processed_B + tokens_processed_B,
        log_p_BS=put(state.log_p_BS, n_B, log_p_BW, num_new_B),
        decode_step_BS=put(state.decode_step_BS, n_B, step_BW, num_new_B),
    )


class Draft(NamedTuple):
    """Tokens for the next W slots, each drawn as if it came next.

    Attributes:
      tokens_BW: the drafted tokens.
      position_BW: their positions.
      logits_BWV, p_BWV: what they were drawn from.
      last_B1, own_B1: the last decoded token and its position.
      cache: with W slots, from that token's on, to be overwritten.
    """

    tokens_BW: jax.Array
    position_BW: jax.Array
    logits_BWV: jax.Array
    p_BWV: jax.Array
    last_B1: jax.Array
    own_B1: jax.Array
    cache: Cache


def draft(
    decoder: Decoder,
    params: Any,
    state: DecodeState,
    decode_params: DecodeParams,
    uniform_BW: jax.Array,
) -> Draft:
    """Drafts the next W slots in one pass."""
    B, W = uniform_BW.shape
    before_B = state.num_decoded_B - 1
    last_B1 = take(state.tokens_BS, before_B, 1)
    own_B1 = take(state.own_BS, before_B, 1)
    position_BW = take(state.own_BS, state.num_decoded_B, W)
    widen = lambda array_B1: jnp.broadcast_to(array_B1, (B, W))
    # The last decoded token is read W times, at its own position, with each slot's
    # position as the target. Each copy sees what is decoded and itself: so its logits
    # are the exact conditional of its slot given what is decoded.
    logits_BWV, cache = decoder.forward(
        params,
        widen(last_B1),
        (widen(own_B1), position_BW),
        state.cache,
        before_B,
        jnp.eye(W, dtype=bool),
    )
    p_BWV = sampling_probs(logits_BWV, decode_params)
    tokens_BW = sample_token(uniform_BW, p_BWV)
    return Draft(tokens_BW, position_BW, logits_BWV, p_BWV, last_B1, own_B1, cache)


def run_rounds(
    advance_round: Callable[..., DecodeState],
    length_B: Callable[[DecodeState], jax.Array],
    state: DecodeState,
    max_length: int,
    decode_params: DecodeParams,
    limit: jax.Array,
) -> DecodeState:
    """Runs rounds until every row is full or has made `limit` forward passes.

    Or until a row has decoded `decode_params.stop` slots.

    Args:
      advance_round: (state, W=width) -> state.
      length_B: state -> slots that each row's next round looks at, 0 where it is full.
      max_length: the largest of these lengths.
    """
    last_B = state.num_forward_passes_B + limit

    def unfinished(state):
        n_B = state.num_decoded_B
        more_B = (n_B < decode_params.end_B) & (state.num_forward_passes_B < last_B)
        return more_B.any() & (n_B < decode_params.stop).all()

    # A round is compiled for a few widths and runs in the narrowest that holds every
    # row's window: one loop for each width, inside one over all. A lax.switch between
    # the widths would copy the cache.
    def sweep(state):
        below = 0
        for W in widths(max_length):

            def fits(state, below=below, W=W):
                length = length_B(state).max()
                return unfinished(state) & (length > below) & (length <= W)

            state = lax.while_loop(fits, functools.partial(advance_round, W=W), state)
            below = W
        return state

    return lax.while_loop(unfinished, sweep, state)
