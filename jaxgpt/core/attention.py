"""Multi-head attention: arithmetic, with the mask as an argument."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.core import cache as kv
from jaxgpt.core import cpu, init, layers

if TYPE_CHECKING:
    from jaxgpt.core.transformer import ModelConfig


class Attention(nnx.Module):
    """Causal self-attention; `qkv` holds the three projections side by side."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D = config.n_embd
        self.qkv = layers.Linear(D, 3 * D, config, rngs=rngs)
        self.out = layers.Linear(
            D, D, config, std=init.residual_std(config.n_layer), rngs=rngs
        )
        self.config = config

    def __call__(self, x_BTD: jax.Array, seed_2: jax.Array | None = None) -> jax.Array:
        """Attends each token to itself and the earlier ones."""
        c = self.config
        qkv_BTC = self.qkv(x_BTD)
        if c.kernels == "cpu":
            y_BTD = cpu.causal_attention(qkv_BTC, seed_2, c.n_head, c.dtype, c.dropout)
            return self.out(y_BTD)
        T = x_BTD.shape[1]
        mask_TS = jnp.tril(jnp.ones((T, T), bool))
        q, k, v = split_heads(qkv_BTC, c.n_head)
        return self.out(merge_heads(attend(q, k, v, mask_TS, c, seed_2)))

    def extend(
        self, x_BTD: jax.Array, layer: kv.LayerCache, start: jax.Array
    ) -> tuple[jax.Array, kv.LayerCache]:
        """Attends T tokens at cache slots start .. start + T to every slot so far."""
        q, k, v = split_heads(self.qkv(x_BTD), self.config.n_head)
        layer = kv.write(layer, k, v, start)
        slots_S = jnp.arange(layer[0].shape[2])
        mask_TS = slots_S <= (start + jnp.arange(x_BTD.shape[1]))[:, None]
        return self.out(merge_heads(attend(q, *layer, mask_TS, self.config))), layer


def split_heads(
    qkv_BTC: jax.Array, n_head: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Splits fused projections [B, T, 3 H K] into three arrays [B, H, T, K]."""
    B, T, C = qkv_BTC.shape
    heads = qkv_BTC.reshape(B, T, 3, n_head, C // 3 // n_head)
    q, k, v = heads.transpose(2, 0, 3, 1, 4)
    return q, k, v


def merge_heads(y_BHTK: jax.Array) -> jax.Array:
    """Joins the heads: [B, H, T, K] to [B, T, H K]."""
    B, H, T, K = y_BHTK.shape
    return y_BHTK.transpose(0, 2, 1, 3).reshape(B, T, H * K)


def attend(
    q_BHTK: jax.Array,
    k_BHSK: jax.Array,
    v_BHSK: jax.Array,
    mask_TS: jax.Array,
    config: ModelConfig,
    seed_2: jax.Array | None = None,
) -> jax.Array:
    """Returns softmax(q k / sqrt(K)) v [B, H, T, K] over the slots where mask is true.

    Scores and softmax are float32 or wider whatever config.dtype says.
    """
    accum = cpu.accumulator(config.dtype)
    operands = lambda *arrays: (array.astype(config.dtype) for array in arrays)
    q, k, v = operands(q_BHTK / math.sqrt(q_BHTK.shape[-1]), k_BHSK, v_BHSK)
    scores_BHTS = jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=accum)
    weights = jax.nn.softmax(jnp.where(mask_TS, scores_BHTS, -jnp.inf), -1)
    weights = layers.dropout(weights, config.dropout, seed_2).astype(config.dtype)
    return jnp.einsum("bhts,bhsk->bhtk", weights, v, preferred_element_type=accum)
