"""Exact bursts: many tokens a round, distributed as if decoded one by one.

A round drafts the next k tokens of the order from the same context, verifies them in
one causal pass along that order, accepts the longest prefix that holds, and resamples
the first rejected token from what the draft lacked. Speculative sampling (Leviathan et
al. 2023, arXiv 2211.17192), with the model as its own draft (Guo & Ermon 2025, arXiv
2504.20456).
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
from jaxgpt.sampling.state import DecodeParams, Decoder, DecodeState, SamplingParams
from jaxgpt.systems.sigma.samplers import window

SHORTEST_DRAFT = 4  # Unless fewer tokens are missing.


def make_sampler(sampling: SamplingParams, max_draft_length: int):
    """Returns `advance` for at most max_draft_length drafted tokens a round."""
    del sampling
    return functools.partial(advance, max_draft_length=max_draft_length)


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
    """Fills the slots of each row at its own pace, max_draft_length a round at most.

    A round is two forward passes and decodes at least two tokens; the last token needs
    one pass. Hence there are no more passes than tokens.
    """
    # One number a slot for each use, drawn before the loop. A slot whose draft was not
    # decided on gets the same numbers in the next round: as nothing that was decoded
    # depends on them, they are as good as new ones.
    B, S = state.tokens_BS.shape
    uniform_3BS = uniforms(decode_params.key_B, (B, 3, S)).transpose(1, 0, 2)

    def length_B(state):
        draft_length_B = jnp.minimum(state.draft_length_B, max_draft_length)
        return jnp.clip(decode_params.end_B - state.num_decoded_B, 0, draft_length_B)

    def advance_round(state, W):
        return _round(
            decoder, params, state, decode_params, uniform_3BS, length_B(state), W
        )

    return window.run_rounds(
        advance_round, length_B, state, max_draft_length, decode_params, limit
    )


def _round(decoder, params, state, decode_params, uniform_3BS, length_B, W):
    """Drafts, verifies and resamples the next length_B <= W tokens of each row."""
    n_B = state.num_decoded_B
    propose, accept, resample = (window.take(u_BS, n_B, W) for u_BS in uniform_3BS)
    draft = window.draft(decoder, params, state, decode_params, propose)
    tokens_BW, logits_BWV, cache = draft.tokens_BW, draft.logits_BWV, draft.cache
    # The draft's first query is already that of a causal pass.
    positions = draft.position_BW[:, :-1], draft.position_BW[:, 1:]
    rest_logits, cache = decoder.forward(
        params, tokens_BW[:, :-1], positions, cache, n_B
    )
    logits_BWV = jnp.concatenate([logits_BWV[:, :1], rest_logits], 1)
    # Why the result is exact: with p what a token was drafted from, and q its true
    # conditional given the tokens before it, a draft x is accepted with probability
    # min(1, q(x) / p(x)) and otherwise resampled from max(0, q - p), normalised. So
    # x comes out with probability min(p, q) + max(0, q - p) = q. Neither the order
    # nor the draft length depends on a draft that is still undecided.
    q_BWV = sampling_probs(logits_BWV, decode_params)
    p_BW = window.at_tokens(draft.p_BWV, tokens_BW)
    accepted = accept * p_BW < window.at_tokens(q_BWV, tokens_BW)
    index_W = jnp.arange(W)
    # The first draft has p = q: it is always accepted, so that every round decodes
    # at least two tokens.
    accepted = (accepted | (index_W == 0)) & (index_W < length_B[:, None])
    num_accepted_B = jnp.cumprod(accepted, 1).sum(1, dtype=jnp.int32)
    num_new_B = jnp.minimum(num_accepted_B + 1, length_B)
    rejected_B1 = jnp.minimum(num_accepted_B, W - 1)[:, None]
    at_rejected = lambda array: jnp.take_along_axis(array, rejected_B1[..., None], 1)[
        :, 0
    ]
    p_BV, q_BV = at_rejected(draft.p_BWV), at_rejected(q_BWV)
    residual_BV = jnp.maximum(q_BV - p_BV, 0)
    # Rounding may leave no residual where p and q are equal.
    nonzero_B1 = residual_BV.sum(-1, keepdims=True) > 0
    resampled_B = sample_token(
        jnp.take_along_axis(resample, rejected_B1, 1)[:, 0],
        jnp.where(nonzero_B1, residual_BV, q_BV),
    )
    tokens_BW = jnp.where(
        index_W == num_accepted_B[:, None], resampled_B[:, None], tokens_BW
    )
    # A window of one needs no verification: its draft is the true conditional.
    num_passes_B = (length_B > 0).astype(jnp.int32) + (length_B > 1)
    state = window.decode(
        state,
        tokens_BW,
        token_log_prob(logits_BWV, tokens_BW),
        num_new_B,
        num_passes_B,
        tokens_processed_B=length_B * num_passes_B - (num_passes_B > 1),
    )
    return state.replace(
        cache=cache,
        # Twice what was decoded: a row whose drafts hold soon drafts long windows, and
        # one whose drafts fail wastes little.
        draft_length_B=jnp.maximum(2 * num_new_B, SHORTEST_DRAFT),
    )
