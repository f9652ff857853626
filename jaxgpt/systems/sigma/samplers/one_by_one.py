"""One token a forward pass: in a fixed order, or lowest entropy first.

Lowest entropy first looks at all missing tokens in every pass and decodes the surest.
A pass decodes one token from its true conditional, so the result is exact for the
order that it chooses.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxgpt.sampling.autoregressive import autoregress
from jaxgpt.sampling.logits import (
    sample_token,
    sampling_probs,
    token_log_prob,
    uniforms,
)
from jaxgpt.sampling.state import DecodeParams, Decoder, DecodeState, SamplingParams
from jaxgpt.systems.sigma.options import LOW_ENTROPY_FIRST
from jaxgpt.systems.sigma.samplers import window


def make_sampler(sampling: SamplingParams, max_draft_length: int):
    """Returns the sampler for an order: a fixed one, or lowest entropy first."""
    del max_draft_length
    if sampling.order == LOW_ENTROPY_FIRST:
        return advance
    return functools.partial(autoregress, cached=sampling.cached)


@functools.partial(jax.jit, static_argnames="decoder", donate_argnums=2)
def advance(
    decoder: Decoder,
    params: Any,
    state: DecodeState,
    decode_params: DecodeParams,
    limit: jax.Array,
) -> DecodeState:
    """Fills the slots of each row, lowest entropy first."""
    # Of positions, not slots: slots change places until they are decoded.
    uniform_BS = uniforms(decode_params.key_B, state.tokens_BS.shape)
    last_B = state.num_forward_passes_B + limit

    def unfinished(state):
        return (
            (state.num_decoded_B < decode_params.end_B)
            & (state.num_forward_passes_B < last_B)
        ).any()

    def step(state):
        return _decode_surest(decoder, params, state, decode_params, uniform_BS)

    return lax.while_loop(unfinished, step, state)


def _decode_surest(decoder, params, state, decode_params, uniform_BS):
    B, S = state.tokens_BS.shape
    n_B = state.num_decoded_B
    missing_B = jnp.maximum(decode_params.end_B - n_B, 0)
    # The cache lacks the token that the last pass decoded, so this pass reads it first
    # and then asks for all missing slots, each by the last decoded token.
    is_new_BS = (state.decode_step_BS == state.num_forward_passes_B[:, None]) & (
        state.decode_step_BS > 0
    )
    unread_B = is_new_BS.sum(1)
    read_B = n_B - 1 - unread_B
    query_BS = window.take(state.own_BS, n_B, S)
    widen = lambda array_B1: jnp.broadcast_to(array_B1, (B, S))
    read_and_ask = lambda array_BS, asked_BS: jnp.concatenate(
        [window.take(array_BS, read_B, 1), asked_BS], 1
    )
    last = lambda array_BS: widen(window.take(array_BS, n_B - 1, 1))
    logits, cache = decoder.forward(
        params,
        read_and_ask(state.tokens_BS, last(state.tokens_BS)),
        (
            read_and_ask(state.own_BS, last(state.own_BS)),
            read_and_ask(state.target_BS, query_BS),
        ),
        state.cache,
        read_B,
        _mask(unread_B, S),
    )
    logits_BSV = logits[:, 1:]
    p_BSV = sampling_probs(logits_BSV, decode_params)
    tokens_BS = sample_token(jnp.take_along_axis(uniform_BS, query_BS, 1), p_BSV)
    entropy_BS = -jax.scipy.special.xlogy(p_BSV, p_BSV).sum(-1)
    is_missing_BS = jnp.arange(S) < missing_B[:, None]
    perm_BS = jnp.argsort(jnp.where(is_missing_BS, entropy_BS, jnp.inf), -1)
    ordered = lambda array_BS: jnp.take_along_axis(array_BS, perm_BS, 1)
    own_BS = window.put(state.own_BS, n_B, ordered(query_BS), missing_B)
    state = window.decode(
        state,
        ordered(tokens_BS),
        ordered(token_log_prob(logits_BSV, tokens_BS)),
        jnp.minimum(missing_B, 1),
        missing_B > 0,
        tokens_processed_B=jnp.where(missing_B > 0, unread_B + missing_B, 0),
    )
    return state.replace(own_BS=own_BS, target_BS=jnp.roll(own_BS, -1, 1), cache=cache)


def _mask(unread_B: jax.Array, S: int) -> jax.Array:
    """Returns what the token read and S queries see of each other.

    Shape [B, 1, 1 + S, 1 + S]. A query sees itself, and the token read where that was
    not in the cache.
    """
    row, column = jnp.arange(1 + S)[:, None], jnp.arange(1 + S)
    sees_read = column < unread_B[:, None, None]
    return ((column == row) | (row > 0) & sees_read)[:, None]
