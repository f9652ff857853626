"""Attention on a TPU: a kernel that never holds the T x T scores in memory."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from jaxgpt.model.config import ModelConfig
from jaxgpt.parallel import sharding
from jaxgpt.parallel.sharding import BATCH, TENSOR

LANES = 128  # The kernel's blocks are multiples of it.
BLOCK = 512


def can_attend(config: ModelConfig, seed_2: jax.Array | None) -> bool:
    """Returns whether the kernel has what a model needs.

    It drops no weights, knows no bias of positions (ALiBi), takes keys and values of
    one width, and multiplies in no more than float32.
    """
    dropped = seed_2 is not None and config.dropout > 0
    return (
        not dropped
        and not config.key_width
        and config.encoding.bias is None
        and config.dtype != "float64"
    )


def causal_attention(
    q_BHTK: jax.Array, k_BHTK: jax.Array, v_BHTK: jax.Array, dtype: str
) -> jax.Array:
    """Returns causal attention [B, H, T, K] in float32, operands in dtype.

    Lengths that the kernel's blocks do not divide are padded at the end, where nothing
    looks. Under a mesh every device runs it on its own rows and heads.
    """
    B, H, T, K = q_BHTK.shape
    S = -(-T // LANES) * LANES
    block = math.gcd(S, BLOCK)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )

    def attend(q, k, v):
        own_heads = q.shape[1]
        kernel = splash.make_splash_mha(
            mask=splash.MultiHeadMask([splash.CausalMask((S, S))] * own_heads),
            head_shards=1,
            q_seq_shards=1,
            block_sizes=sizes,
        )
        return jax.vmap(kernel)(q, k, v)

    place = sharding.fit((B, H, S, K), (BATCH, TENSOR, None, None))
    attend = sharding.by_device(attend, (place,) * 3, place)
    pad = ((0, 0), (0, 0), (0, S - T), (0, 0))
    q, k, v = (
        jnp.pad(x.astype(dtype), pad) for x in (q_BHTK / math.sqrt(K), k_BHTK, v_BHTK)
    )
    return attend(q, k, v)[:, :, :T].astype(jnp.float32)
