"""The original's burst sampling: the best of N orders. Biased; kept to compare.

A round drafts every missing token once, verifies the draft along N random orders, and
keeps the longest accepted prefix among them.

The draft's positions are corrected: the original gives the last token, which asks for
every slot, a wrong position of its own for all slots but the first.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.sampling.logits import sampling_probs, token_log_prob
from jaxgpt.sampling.state import DecodeParams, Decoder, DecodeState, SamplingParams
from jaxgpt.systems.sigma.samplers import window

NUM_ORDERS = 5  # The original's default.


def make_sampler(sampling: SamplingParams, max_draft_length: int):
    """Returns `advance` for `num_orders`."""
    del max_draft_length
    return functools.partial(advance, num_orders=sampling.num_orders or NUM_ORDERS)


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
    """Fills the slots of each row at its own pace, in the best of num_orders orders."""

    def missing_B(state):
        return jnp.maximum(decode_params.end_B - state.num_decoded_B, 0)

    def advance_round(state, W):
        return _round(
            decoder, params, state, decode_params, num_orders, missing_B(state), W
        )

    S = state.tokens_BS.shape[1]
    return window.run_rounds(advance_round, missing_B, state, S, decode_params, limit)


def _uniforms(key_B: jax.Array, round_B: jax.Array, count: int, W: int) -> jax.Array:
    """Returns uniform numbers [B, count, W] of each row's round.

    Those of a slot are the same whatever W is, which depends on the other rows.
    """

    def row(key, index):
        return jax.random.uniform(jax.random.fold_in(key, index), (W, count)).T

    return jax.vmap(row)(key_B, round_B)


def _round(decoder, params, state, decode_params, N, missing_B, W):
    n_B, B = state.num_decoded_B, len(state.num_decoded_B)
    # A row's passes so far number its rounds.
    uniform = _uniforms(decode_params.key_B, state.num_forward_passes_B, 2 + N, W)
    draft = window.draft(decoder, params, state, decode_params, uniform[:, 0])
    # Orders of the missing slots; those past the end stay last.
    past_BW = jnp.arange(W) >= missing_B[:, None]
    perm_BNW = jnp.argsort(uniform[:, 2:] + past_BW[:, None], -1)
    perm_NW = perm_BNW.reshape(B * N, W)
    repeat = lambda array: jnp.repeat(array, N, axis=0)
    ordered = lambda array_BW: jnp.take_along_axis(repeat(array_BW), perm_NW, 1)
    tokens_NW, position_NW = ordered(draft.tokens_BW), ordered(draft.position_BW)
    logits_NWV, cache = decoder.forward(
        params,
        window.shift(repeat(draft.last_B1), tokens_NW),
        (window.shift(repeat(draft.own_B1), position_NW), position_NW),
        jax.tree.map(repeat, draft.cache),
        repeat(n_B) - 1,
    )
    p_NW = ordered(window.at_tokens(draft.p_BWV, draft.tokens_BW))
    q_NW = window.at_tokens(sampling_probs(logits_NWV, decode_params), tokens_NW)
    index_W = jnp.arange(W)
    accepted_NW = (ordered(uniform[:, 1]) * p_NW < q_NW) | (index_W == 0)
    accepted_NW &= index_W < repeat(missing_B)[:, None]
    num_accepted_N = jnp.cumprod(accepted_NW, 1).sum(1, dtype=jnp.int32)
    num_accepted_BN = num_accepted_N.reshape(B, N)
    # Two things bias this, the more so the larger N is. A rejected token is drawn from
    # q in the next round, not from max(0, q - p): it comes out with probability
    # min(p, q) + (1 - b) q, where b is the sum of min(p, q). And of two orders the one
    # whose draft was accepted is kept, so that a pair with r = q / p < 1 survives with
    # probability 2 r - r^2 instead of r.
    best_B = num_accepted_BN.argmax(1)
    chosen = lambda array: array.reshape(B, N, *array.shape[1:])[jnp.arange(B), best_B]
    own_BS = window.put(state.own_BS, n_B, chosen(position_NW), missing_B)
    state = window.decode(
        state,
        chosen(tokens_NW),
        chosen(token_log_prob(logits_NWV, tokens_NW)),
        num_accepted_BN.max(1),
        jnp.minimum(missing_B, 2),
        tokens_processed_B=missing_B * jnp.where(missing_B > 1, 1 + N, 1),
    )
    return state.replace(
        own_BS=own_BS,
        target_BS=jnp.roll(own_BS, -1, 1),
        cache=jax.tree.map(chosen, cache),
    )
