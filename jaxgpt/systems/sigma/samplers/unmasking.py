"""Parallel unmasking, as masked diffusion models generate: several tokens a call.

Every call looks at all missing tokens, ranks them, and decodes the first few, each
drawn on its own. Tokens of one call do not see each other, so the distribution
is biased unless they are independent; one token a call is exact for the order it
chooses.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxgpt.sampling.logits import (
    sample_token,
    sampling_probs,
    token_log_prob,
    uniforms,
)
from jaxgpt.sampling.state import (
    DecodeParams,
    Decoder,
    DecodeState,
    SamplingParams,
    grow,
)
from jaxgpt.sampling.unmasking import rule, surest
from jaxgpt.systems.sigma.samplers import window


def make_sampler(sampling: SamplingParams, max_draft_length: int):
    """Returns `advance` for the sampler's rule."""
    del max_draft_length
    return functools.partial(advance, **rule(sampling)._asdict())


@functools.partial(
    jax.jit, static_argnames=("decoder", "rank", "most"), donate_argnums=2
)
def advance(
    decoder: Decoder,
    params: Any,
    state: DecodeState,
    decode_params: DecodeParams,
    limit: jax.Array,
    *,
    rank: str,
    most: int,
    bound: jax.typing.ArrayLike,
) -> DecodeState:
    """Fills the slots of each row to the end.

    Args:
      state: from `prefill`; donated.
      decode_params: temperature and the like, and where to end.
      limit: calls to make, at most.
      rank, most, bound: of the `unmasking.Rule`.
    """
    # Shapes are static: a pass reads `most` decoded slots even if fewer are new, and
    # the queries after them reach as far past the end of the cache.
    slots = state.tokens_BS.shape[1] + most - 1
    shapes = jax.tree.map(jnp.shape, state.cache)
    state = grow(decoder, params, state, slots)
    # Drawn for positions, not slots: missing tokens change slots with every ranking.
    uniform_BS = uniforms(decode_params.key_B, state.tokens_BS.shape)
    last = state.num_forward_passes_B + limit

    def going(state):
        return (
            (state.num_decoded_B < decode_params.end_B)
            & (state.num_forward_passes_B < last)
        ).any()

    def body(state):
        return _call(
            decoder, params, state, decode_params, uniform_BS, rank, most, bound
        )

    state = lax.while_loop(going, body, state)
    fit = lambda array, shape: array[tuple(map(slice, shape))]
    return state.replace(cache=jax.tree.map(fit, state.cache, shapes))


def _call(decoder, params, state, decode_params, uniform_BS, rank, most, bound):
    B, S = state.tokens_BS.shape
    n_B = state.num_decoded_B
    left_B = jnp.maximum(decode_params.end_B - n_B, 0)
    # Not in the cache yet: what the call before decoded, and the token it asked with.
    fresh_BS = (state.decode_step_BS == state.num_forward_passes_B[:, None]) & (
        state.decode_step_BS > 0
    )
    unread_B = fresh_BS.sum(1, dtype=jnp.int32)
    read_B = n_B - 1 - unread_B
    query_BS = window.take(state.own_BS, n_B, S)
    wide = lambda array_B1: jnp.broadcast_to(array_B1, (B, S))
    asks = lambda array_BS: wide(window.take(array_BS, n_B - 1, 1))
    join = lambda first, second: jnp.concatenate([first, second], 1)
    news = lambda array_BS: window.take(array_BS, read_B, most)
    logits, cache = decoder.forward(
        params,
        join(news(state.tokens_BS), asks(state.tokens_BS)),
        (
            join(news(state.own_BS), asks(state.own_BS)),
            join(news(state.target_BS), query_BS),
        ),
        state.cache,
        read_B,
        _among(unread_B, most, S),
    )
    logits_BSV = logits[:, most:]
    p_BSV = sampling_probs(logits_BSV, decode_params)
    tokens_BS = sample_token(jnp.take_along_axis(uniform_BS, query_BS, 1), p_BSV)
    missing_BS = jnp.arange(S) < left_B[:, None]
    perm_BS, gain_B = surest(p_BSV, missing_BS, rank, most, bound)
    ordered = lambda array_BS: jnp.take_along_axis(array_BS, perm_BS, 1)
    own_BS = window.put(state.own_BS, n_B, ordered(query_BS), left_B)
    state = window.decode(
        state,
        ordered(tokens_BS),
        ordered(token_log_prob(logits_BSV, tokens_BS)),
        gain_B,
        left_B > 0,
        tokens_processed_B=jnp.where(left_B > 0, unread_B + left_B, 0),
    )
    return state.replace(own_BS=own_BS, target_BS=jnp.roll(own_BS, -1, 1), cache=cache)


def _among(unread_B: jax.Array, most: int, S: int) -> jax.Array:
    """Returns what `most` new tokens and S queries see of each other: [B, 1, T, T].

    New tokens see the new ones before them; a query sees the unread ones and itself.
    """
    T = most + S
    row, column = jnp.arange(T)[:, None], jnp.arange(T)
    causal = (row < most) & (column <= row)
    unread_B11 = unread_B[:, None, None]
    query = (row >= most) & ((column < unread_B11) | (column == row))
    return (causal | query)[:, None]
