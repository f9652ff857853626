"""From logits to tokens: temperature, top-k, top-p, and draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxgpt.sampling.state import DecodeParams


def sampling_probs(logits: jax.Array, decode_params: DecodeParams) -> jax.Array:
    """Returns the probabilities [..., V] that tokens are drawn with.

    Args:
      logits: [..., V], unnormalised log-probabilities.
      decode_params: temperature, top-k and top-p, applied in this order.
    """
    # Logits over a near-zero temperature would overflow. At 0 the result is `greedy`.
    scaled = logits / jnp.maximum(decode_params.temperature, 1e-6)
    if decode_params.top_k:
        count = min(decode_params.top_k, logits.shape[-1])
        least = lax.top_k(scaled, count)[0][..., -1:]
        scaled = jnp.where(scaled < least, -jnp.inf, scaled)
    p = jax.nn.softmax(scaled, -1)
    if decode_params.nucleus:
        # A token stays if those likelier than it have less than top_p together: so the
        # likeliest always does.
        ordered = jnp.sort(p, -1, descending=True)
        before = jnp.cumsum(ordered, -1) - ordered
        # XLA flushes numbers below `tiny` to zero, which would leave no token.
        top_p = jnp.maximum(decode_params.top_p, jnp.finfo(jnp.float32).tiny)
        least = jnp.where(before < top_p, ordered, 2).min(-1, keepdims=True)
        p = jnp.where(p < least, 0, p)
        p = p / p.sum(-1, keepdims=True)
    greedy = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1], dtype=p.dtype)
    return jnp.where(decode_params.temperature > 0, p, greedy)


def sample_token(uniform: jax.Array, p: jax.Array) -> jax.Array:
    """Returns int32 tokens [...] drawn from unnormalised p [..., V].

    Args:
      uniform: [...], in [0, 1); the cumulative distribution is inverted at it.
      p: non-negative weights, not all zero.
    """
    cdf = jnp.cumsum(p, -1)
    reached = cdf <= uniform[..., None] * cdf[..., -1:]
    # With rounding, the sum reached may be past the last token that has any weight.
    last = p.shape[-1] - 1 - (p > 0)[..., ::-1].argmax(-1)
    return jnp.minimum(reached.sum(-1), last).astype(jnp.int32)


def uniforms(key_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns uniform numbers [B, ...]; a row's depend on its key alone.

    Samplers draw them before their loop: in it Threefry costs as much as a layer.
    """
    return jax.vmap(lambda key: jax.random.uniform(key, shape[1:]))(key_B)


def token_log_prob(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the log-probability of tokens [...] under logits [..., V]."""
    picked = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    return picked - jax.nn.logsumexp(logits, -1)
