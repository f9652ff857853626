"""The original's burst sampling: the best of N orders. Biased; kept to compare.

A round drafts every missing token once, verifies the draft along N random orders, and
keeps the longest accepted prefix among them. Two things bend the law, and more so with
N: a rejected token is drawn anew from q rather than from max(0, q - p), so that it
comes out as min(p, q) + (1 - b) q with b the sum of min(p, q), not as q; and of two
orders the one whose draft was accepted is kept, so that a pair with r = q / p < 1
survives with 2 r - r^2 instead of r.

The draft's positions are the corrected ones: the original asks for all but the first
slot with the last token at a position where it does not stand.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.sampling.logits import sampling_probs, token_log_prob
from jaxgpt.sampling.state import DecodeParams, Decoder, DecodeState
from jaxgpt.systems.sigma.samplers import window


@functools.partial(jax.jit, static_argnames=("decoder", "num_orders"), donate_argnums=2)
def advance(
    decoder: Decoder,
    params: Any,
    state: DecodeState,
    decode_params: DecodeParams,
    limit: jax.Array,
    *,
    num_orders: int,
) -> DecodeState:
    """Fills the slots of each row to the end, at its own pace, in orders of its own.

    Args:
      reader, params: a model that can be read.
      state: from generate.start; donated.
      task: what to sample.
      limit: about how many calls to make at most.
      num_orders: N, the orders tried in every round.
    """

    def wanted_B(state):
        return jnp.maximum(decode_params.end - state.num_decoded_B, 0)

    def round_(state, W):
        return _round(
            decoder, params, state, decode_params, num_orders, wanted_B(state), W
        )

    S = state.tokens_BS.shape[1]
    return window.rounds(round_, wanted_B, state, S, decode_params.end, limit)


def _random(
    key: jax.Array, num_forward_passes_B: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Returns uniform numbers [B, ...] for a round, known by its rows' calls."""

    def row(b, calls):
        at = jax.random.fold_in(jax.random.fold_in(key, b), calls)
        return jax.random.uniform(at, shape)

    return jax.vmap(row)(jnp.arange(len(num_forward_passes_B)), num_forward_passes_B)


def _round(decoder, params, state, decode_params, N, wanted_B, W):
    n_B, B = state.num_decoded_B, len(state.num_decoded_B)
    random = _random(decode_params.key, state.num_forward_passes_B, (2 + N, W))
    drafted = window.draft(decoder, params, state, decode_params, random[:, 0])
    # Orders of the missing slots; those past the end stay behind.
    behind_BW = jnp.arange(W) >= wanted_B[:, None]
    perm_BNW = jnp.argsort(random[:, 2:] + behind_BW[:, None], -1)
    perm_NW = perm_BNW.reshape(B * N, W)
    rows = lambda array: jnp.repeat(array, N, axis=0)
    ordered = lambda array_BW: jnp.take_along_axis(rows(array_BW), perm_NW, 1)
    shift = lambda first_B1, rest: jnp.concatenate([rows(first_B1), rest[:, :-1]], 1)
    tokens_NW, position_NW = ordered(drafted.tokens_BW), ordered(drafted.position_BW)
    positions = (shift(drafted.own_B1, position_NW), position_NW)
    logits_NWV, cache = decoder.read(
        params,
        shift(drafted.last_B1, tokens_NW),
        positions,
        jax.tree.map(rows, state.cache),
        rows(n_B) - 1,
    )
    p_NW = ordered(window.at_tokens(drafted.p_BWV, drafted.tokens_BW))
    q_NW = window.at_tokens(sampling_probs(logits_NWV, decode_params), tokens_NW)
    index_W = jnp.arange(W)
    holds_NW = (ordered(random[:, 1]) * p_NW < q_NW) | (index_W == 0)
    holds_NW &= index_W < rows(wanted_B)[:, None]
    kept_BN = jnp.cumprod(holds_NW, 1).sum(1).reshape(B, N)
    best_B, gain_B = kept_BN.argmax(1), kept_BN.max(1)
    chosen = lambda array: array.reshape(B, N, *array.shape[1:])[jnp.arange(B), best_B]
    log_p_BW = chosen(token_log_prob(logits_NWV, tokens_NW))
    num_forward_passes_B = state.num_forward_passes_B + jnp.minimum(wanted_B, 2)
    own_BS = window.put(state.own_BS, n_B, chosen(position_NW), wanted_B)
    number_BW = jnp.broadcast_to(num_forward_passes_B[:, None], log_p_BW.shape)
    passes_B = jnp.where(wanted_B > 1, 1 + N, 1)
    return state.replace(
        tokens_BS=window.put(state.tokens_BS, n_B, chosen(tokens_NW), gain_B),
        own_BS=own_BS,
        target_BS=jnp.roll(own_BS, -1, 1),
        num_decoded_B=n_B + gain_B,
        cache=jax.tree.map(chosen, cache),
        num_forward_passes_B=num_forward_passes_B,
        tokens_processed_B=state.tokens_processed_B + wanted_B * passes_B,
        log_p_BS=window.put(state.log_p_BS, n_B, log_p_BW, gain_B),
        decode_step_BS=window.put(state.decode_step_BS, n_B, number_BW, gain_B),
    )
