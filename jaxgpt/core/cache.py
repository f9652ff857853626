"""Keys and values of the tokens already read, one pair of arrays per block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from jaxgpt.core.cpu import accumulator

if TYPE_CHECKING:
    from jaxgpt.core.transformer import ModelConfig

LayerCache = tuple[jax.Array, jax.Array]
KVCache = tuple[LayerCache, ...]


def empty(config: ModelConfig, batch: int, length: int) -> KVCache:
    """Returns zeros: (keys, values), each [B, H, S, K] for S = length, per block."""
    shape, dtype = (batch, config.n_head, length), accumulator(config.dtype)
    keys = jnp.zeros((*shape, config.head_key_width), dtype)
    values = jnp.zeros((*shape, config.n_embd // config.n_head), dtype)
    return tuple((keys, values) for _ in range(config.n_layer))


def write(
    layer: LayerCache, k_BHTK: jax.Array, v_BHTK: jax.Array, start: jax.Array
) -> LayerCache:
    """Writes T keys and values at slots start .. start + T of every row.

    A scalar start is common to all rows; start [B] gives each its own, and what would
    run past the end is dropped.
    """
    if jnp.ndim(start):
        B, _, T, _ = k_BHTK.shape
        at = (jnp.arange(B)[:, None], slice(None), start[:, None] + jnp.arange(T))
        put = lambda old, new: old.at[at].set(new.transpose(0, 2, 1, 3), mode="drop")
    else:
        put = lambda old, new: lax.dynamic_update_slice(old, new, (0, 0, start, 0))
    return put(layer[0], k_BHTK), put(layer[1], v_BHTK)
