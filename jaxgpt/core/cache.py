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
    """Writes T keys and values at slots start .. start + T of every row.

    A scalar start is common to all rows; start [B] gives each its own. Where a row's
    slots would run past the end, all of them move back (as dynamic_update_slice).
    """
    update = lambda old, new, at: lax.dynamic_update_slice(old, new, (0, 0, at, 0))
    if jnp.ndim(start):
        row = lambda old, new, at: lax.dynamic_update_slice(old, new, (0, at, 0))
        update = jax.vmap(row)
    return update(layer[0], k_BHTK, start), update(layer[1], v_BHTK, start)
