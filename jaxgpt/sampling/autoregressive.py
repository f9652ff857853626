"""The autoregressive sampler: one token a forward pass, with a KV cache."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxgpt.sampling.logits import (
    sample_token,
    sampling_probs,
    token_log_prob,
    uniforms,
)
from jaxgpt.sampling.state import DecodeParams, Decoder, DecodeState


@functools.partial(jax.jit, static_argnames=("decoder", "cached"), donate_argnums=2)
def autoregress(
    decoder: Decoder,
    params: Any,
    state: DecodeState,
    decode_params: DecodeParams,
    limit: jax.Array,
    *,
    cached: bool = True,
) -> DecodeState:
    """Decodes one slot after another, for at most limit forward passes.

    All rows are at the same slot. A row whose prompt is longer reads its next token
    there, and one that is full waits.

    Args:
      state: donated.
      limit: forward passes, at most.
      cached: False computes every token from the whole sequence, as a reference.
    """
    uniform_BS = uniforms(decode_params.key_B, state.tokens_BS.shape)
    B, S = state.tokens_BS.shape
    # One slot for all rows, not one each: writes to the cache are slices, not scatters.
    end_B = jnp.minimum(decode_params.end_B, decode_params.stop)

    def next_slot(state):
        n_B = state.num_decoded_B
        return jnp.where(n_B < end_B, n_B, S).min()

    def slot(array, t):
        return lax.dynamic_slice_in_dim(array, t, 1, axis=1)

    def body(state):
        t = next_slot(state) - 1
        positions, cache = (state.own_BS, state.target_BS), state.cache
        if cached:
            here = tuple(slot(index, t) for index in positions)
            tokens_B1 = slot(state.tokens_BS, t)
            logits, cache = decoder.forward(params, tokens_B1, here, cache, t)
            logits_BV = logits[:, 0]
        else:
            nothing = decoder.init_cache(params, B, S)
            whole = state.tokens_BS
            logits, _ = decoder.forward(params, whole, positions, nothing, jnp.int32(0))
            logits_BV = slot(logits, t)[:, 0]
        drawn_B = sample_token(
            slot(uniform_BS, t + 1)[:, 0], sampling_probs(logits_BV, decode_params)
        )
        fills_B = (state.num_decoded_B == t + 1) & (t + 1 < end_B)
        next_B = jnp.where(fills_B, drawn_B, slot(state.tokens_BS, t + 1)[:, 0])
        log_p_B = jnp.where(fills_B, token_log_prob(logits_BV, next_B), 0)
        num_forward_passes_B = state.num_forward_passes_B + fills_B
        # With 64-bit arrays a plain 0 would be an index of another type.
        place = jnp.zeros_like(t), t + 1
        put = lambda array, new_B: lax.dynamic_update_slice(
            array, new_B[:, None].astype(array.dtype), place
        )
        return state.replace(
            tokens_BS=put(state.tokens_BS, next_B),
            num_decoded_B=state.num_decoded_B + fills_B,
            cache=cache,
            num_forward_passes_B=num_forward_passes_B,
            tokens_processed_B=state.tokens_processed_B + fills_B,
            log_p_BS=put(state.log_p_BS, log_p_B),
            decode_step_BS=put(
                state.decode_step_BS, jnp.where(fills_B, num_forward_passes_B, 0)
            ),
        )

    end = jnp.minimum(next_slot(state) + limit, S)
    return lax.while_loop(lambda state: next_slot(state) < end, body, state)


@functools.partial(jax.jit, static_argnames=("graphdef",))
def decode_sliding_window(
    graphdef: nnx.GraphDef,
    params: dict,
    tokens_BN: jax.Array,
    known_BN: jax.Array,
    first: jax.Array,
    decode_params: DecodeParams,
) -> tuple[jax.Array, jax.Array]:
    """Decodes past the block: each token from the last block_size tokens.

    Every token shifts the positions in the window, so that nothing can be cached: a
    token costs a whole block, as in nanoGPT's generate.

    Args:
      graphdef, params: a LanguageModel, split.
      tokens_BN: int32, N > block_size.
      known_BN: bool, true where the token is given, and stays.
      first: the first position to decode, >= block_size; all before it are known.
      decode_params: how to draw; its end is N.

    Returns:
      tokens_BN filled to its end, and the log-probabilities [B, N] of the new tokens.
    """
    model = nnx.merge(graphdef, params)
    B, N = tokens_BN.shape
    block = model.config.block_size
    uniform_BN = uniforms(decode_params.key_B, (B, N))

    def body(t, carry):
        tokens, log_p = carry
        window = lax.dynamic_slice_in_dim(tokens, t - block, block, axis=1)
        x_BTD, _ = model.hidden_states(window)
        logits_BV = model.head(x_BTD[:, -1:])[:, 0]
        next_B = sample_token(
            uniform_BN[:, t], sampling_probs(logits_BV, decode_params)
        )
        log_p_B = token_log_prob(logits_BV, next_B).astype(log_p.dtype)
        known_B = known_BN[:, t]
        return (
            tokens.at[:, t].set(jnp.where(known_B, tokens[:, t], next_B)),
            log_p.at[:, t].set(jnp.where(known_B, 0, log_p_B)),
        )

    return lax.fori_loop(first, N, body, (tokens_BN, jnp.zeros((B, N), jnp.float32)))
