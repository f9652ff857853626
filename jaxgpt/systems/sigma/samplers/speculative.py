"""Exact burst sampling: many tokens a round, with the law of one-by-one generation.

A round drafts the next k tokens of the order from the same context, verifies them in
one causal pass along that order, keeps the longest accepted prefix, and draws the
first rejected token from what the draft lacked. Speculative sampling (Leviathan et al.
2023, arXiv 2211.17192), with the model as its own draft (Guo & Ermon 2025, arXiv
2504.20456).

Why the law is that of one-by-one generation along the same order: a draft x of
probability p(x) is kept with probability min(1, q(x) / p(x)), where q is the true
conditional given the tokens before it; together with a draw from max(0, q - p) where
it is not, x is settled with min(p, q) + (q - p)_+ = q. The order and the number of
tokens tried never depend on a draft that is still undecided.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.sampling.logits import (
    sample_token,
    sampling_probs,
    token_log_prob,
    uniforms,
)
from jaxgpt.sampling.state import DecodeParams, Decoder, DecodeState
from jaxgpt.systems.sigma.samplers import window


@functools.partial(
    jax.jit, static_argnames=("decoder", "max_draft_length"), donate_argnums=2
)
def advance(
    decoder: Decoder,
    params: Any,
    state: DecodeState,
    decode_params: DecodeParams,
    limit: jax.Array,
    *,
    max_draft_length: int,
) -> DecodeState:
    """Fills the slots of each row to the end, at its own pace.

    A round is two calls, and settles two tokens at least; the last token needs one
    call. Hence no more calls than tokens. A row tries twice as many tokens as its last
    round settled.

    Args:
      reader, params: a model that can be read.
      state: from generate.start; donated.
      task: what to sample.
      limit: about how many calls to make at most.
      max_draft_length: tokens tried in a round, at most.
    """
    # One number a slot for each use: numbers spent on drafts that were never decided
    # on told nothing, and may be spent again.
    B, S = state.tokens_BS.shape
    uniform_3BS = uniforms(decode_params.key, (B, 3, S)).transpose(1, 0, 2)

    def wanted_B(state):
        draft_length_B = jnp.minimum(state.draft_length_B, max_draft_length)
        return jnp.clip(decode_params.end - state.num_decoded_B, 0, draft_length_B)

    def round_(state, W):
        return _round(
            decoder, params, state, decode_params, uniform_3BS, wanted_B(state), W
        )

    return window.rounds(
        round_, wanted_B, state, max_draft_length, decode_params.end, limit
    )


def _round(decoder, params, state, decode_params, uniform_3BS, wanted_B, W):
    n_B = state.num_decoded_B
    propose, accept, resample = (window.take(u_BS, n_B, W) for u_BS in uniform_3BS)
    drafted = window.draft(decoder, params, state, decode_params, propose)
    tokens_BW, cache, logits_BWV = drafted.tokens_BW, state.cache, drafted.logits_BWV
    kept_B, gain_B, num_forward_passes_B = (
        wanted_B,
        wanted_B,
        (wanted_B > 0).astype(jnp.int32),
    )
    if W > 1:
        read_BW, own_BW = drafted.read_as()
        positions = (own_BW, drafted.position_BW)
        logits_BWV, cache = decoder.read(params, read_BW, positions, cache, n_B - 1)
        q_BWV = sampling_probs(logits_BWV, decode_params)
        ratio_holds = accept * window.at_tokens(
            drafted.p_BWV, tokens_BW
        ) < window.at_tokens(q_BWV, tokens_BW)
        index_W = jnp.arange(W)
        # The first draft has p = q but for rounding: refusing it would gain nothing.
        holds = (ratio_holds | (index_W == 0)) & (index_W < wanted_B[:, None])
        kept_B = jnp.cumprod(holds, 1).sum(1)
        gain_B = jnp.minimum(kept_B + 1, wanted_B)
        cut = jnp.minimum(kept_B, W - 1)[:, None]
        pick = lambda array: jnp.take_along_axis(array, cut[..., None], 1)[:, 0]
        p_BV, q_BV = pick(drafted.p_BWV), pick(q_BWV)
        lacking_BV = jnp.maximum(q_BV - p_BV, 0)
        some = lacking_BV.sum(-1, keepdims=True) > 0
        instead_B = sample_token(
            jnp.take_along_axis(resample, cut, 1)[:, 0],
            jnp.where(some, lacking_BV, q_BV),
        )
        tokens_BW = jnp.where(index_W == kept_B[:, None], instead_B[:, None], tokens_BW)
        num_forward_passes_B += wanted_B > 1
    log_p_BW = token_log_prob(logits_BWV, tokens_BW)
    total_B = state.num_forward_passes_B + num_forward_passes_B
    number_BW = jnp.broadcast_to(total_B[:, None], tokens_BW.shape)
    return state.replace(
        tokens_BS=window.put(state.tokens_BS, n_B, tokens_BW, gain_B),
        num_decoded_B=n_B + gain_B,
        cache=cache,
        num_forward_passes_B=total_B,
        tokens_processed_B=state.tokens_processed_B + wanted_B * num_forward_passes_B,
        log_p_BS=window.put(state.log_p_BS, n_B, log_p_BW, gain_B),
        decode_step_BS=window.put(state.decode_step_BS, n_B, number_BW, gain_B),
        draft_length_B=jnp.maximum(2 * gain_B, window.SMALLEST),
    )
