"""Cached autoregressive generation in one compiled loop, and its naive oracle.

A sequence is held in reading order: slot t is the t-th token read, wherever it stands
in the text. Left-to-right generation is the identity order.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxgpt.core import cache as kv
from jaxgpt.core.positions import Positions, in_order


def draw(
    uniform_B: jax.Array, logits_BV: jax.Array, temperature: jax.Array, top_k: int
) -> jax.Array:
    """Draws a token per row by inverting the cumulative distribution.

    Args:
      uniform_B: in [0, 1), one per row.
      logits_BV: unnormalised log-probabilities.
      temperature: scalar; 0 takes the likeliest token.
      top_k: only the k likeliest may be drawn; 0 allows all.

    Returns:
      int32 [B].
    """
    if top_k:
        least_B1 = lax.top_k(logits_BV, min(top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    scaled = logits_BV / jnp.where(temperature > 0, temperature, 1)
    cdf_BV = jnp.cumsum(jax.nn.softmax(scaled), -1)
    reached_BV = cdf_BV <= uniform_B[:, None] * cdf_BV[:, -1:]
    drawn_B = jnp.minimum(reached_BV.sum(-1), logits_BV.shape[-1] - 1)
    return jnp.where(temperature > 0, drawn_B, logits_BV.argmax(-1)).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("graphdef", "top_k", "cached"))
def complete(
    graphdef: nnx.GraphDef,
    params: dict,
    tokens_BT: jax.Array,
    known_B: jax.Array,
    where: Positions,
    end: jax.Array,
    key: jax.Array,
    temperature: jax.Array,
    *,
    top_k: int = 0,
    cached: bool = True,
) -> jax.Array:
    """Fills the slots known_B .. end of each row, one after another.

    Nothing is compiled again for another number of known or wanted tokens.

    Args:
      graphdef, params: a LanguageModel, split.
      tokens_BT: int32, the known tokens first; T is the model's block size.
      known_B: how many slots of each row are given, at least 1.
      where: position indices [B, T] of each slot (see core/positions.py).
      end: one past the last slot to fill.
      key: row b draws from fold_in(key, b), so that rows do not depend on B.
      temperature: scalar; 0 is greedy.
      top_k: only the k likeliest tokens are drawn; 0 allows all.
      cached: False recomputes every token from the whole sequence: the oracle.

    Returns:
      tokens_BT with the missing slots filled.
    """
    model = nnx.merge(graphdef, params)
    B, T = tokens_BT.shape
    keys_B = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(B))
    # Threefry inside the loop would cost as much as the model.
    uniform_BT = jax.vmap(lambda key: jax.random.uniform(key, (T,)))(keys_B)
    first = known_B.min() - 1

    def slot(array, t):
        return lax.dynamic_slice_in_dim(array, t, 1, axis=1)

    def cached_logits(tokens, layers, t):
        here = tuple(slot(index, t) for index in where)
        x_B1D, layers = model.extend(slot(tokens, t), here, layers, t)
        return model.head(x_B1D)[:, 0], layers

    def naive_logits(tokens, layers, t):
        return slot(model(tokens, where), t)[:, 0], layers

    def prefill(layers):
        return model.extend(tokens_BT, where, layers, 0)[1]

    def body(carry):
        t, tokens, layers = carry
        logits_BV, layers = (cached_logits if cached else naive_logits)(
            tokens, layers, t
        )
        uniform_B = slot(uniform_BT, t + 1)[:, 0]
        drawn_B = draw(uniform_B, logits_BV, temperature, top_k)
        next_B = jnp.where(t + 1 < known_B, slot(tokens, t + 1)[:, 0], drawn_B)
        tokens = lax.dynamic_update_slice(tokens, next_B[:, None], (0, t + 1))
        return t + 1, tokens, layers

    layers = kv.empty(model.config, B, T) if cached else ()
    if cached:
        # One pass over the whole block: the slots not yet known hold nonsense, and
        # each is overwritten before any later token attends to it.
        layers = lax.cond(first > 0, prefill, lambda layers: layers, layers)
    start = (first, tokens_BT, layers)
    return lax.while_loop(lambda carry: carry[0] + 1 < end, body, start)[1]


@functools.partial(jax.jit, static_argnames=("graphdef", "top_k"))
def slide(
    graphdef: nnx.GraphDef,
    params: dict,
    tokens_BN: jax.Array,
    start: jax.Array,
    key: jax.Array,
    temperature: jax.Array,
    *,
    top_k: int = 0,
) -> jax.Array:
    """Goes on past the block: each token from the last block_size, read left to right.

    The window's positions shift with every token, so nothing can be cached: a token
    costs a whole block (nanoGPT's generate).

    Args:
      graphdef, params: a LanguageModel, split.
      tokens_BN: int32, N above block_size; the first start are given.
      start: at least block_size.
      key, temperature, top_k: as in `complete`.

    Returns:
      tokens_BN filled to its end.
    """
    model = nnx.merge(graphdef, params)
    B, N = tokens_BN.shape
    block = model.config.block_size
    keys_B = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(B))
    uniform_BN = jax.vmap(lambda key: jax.random.uniform(key, (N,)))(keys_B)

    def body(t, tokens):
        window = lax.dynamic_slice(tokens, (0, t - block), (B, block))
        x_BTD = model.transformer(model.embed(window, in_order(block, model.config)))
        logits_BV = model.head(x_BTD[:, -1:])[:, 0]
        next_B = draw(uniform_BN[:, t], logits_BV, temperature, top_k)
        return lax.dynamic_update_slice(tokens, next_B[:, None], (0, t))

    return lax.fori_loop(start, N, body, tokens_BN)
