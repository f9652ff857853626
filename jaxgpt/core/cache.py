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
    shape = (batch, config.n_head, length, config.n_embd // config.n_head)
    zeros = jnp.zeros(shape, accumulator(config.dtype))
    return tuple((zeros, zeros) for _ in range(config.n_layer))


def write(
    layer: LayerCache, k_BHTK: jax.Array, v_BHTK: jax.Array, start: jax.Array
) -> LayerCache:
    """Writes T keys and values at slots start .. start + T of every row."""
    at = (0, 0, start, 0)
    return (
        lax.dynamic_update_slice(layer[0], k_BHTK, at),
        lax.dynamic_update_slice(layer[1], v_BHTK, at),
    )
