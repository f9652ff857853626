"""Multi-head attention over a block and, while decoding, over a KV cache."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxgpt.model import cpu, gpu, layers, tpu
from jaxgpt.model.config import ModelConfig
from jaxgpt.model.positions import Positions
from jaxgpt.parallel import sharding
from jaxgpt.parallel.sharding import BATCH, TENSOR

LayerCache = tuple[jax.Array, jax.Array]
KVCache = tuple[LayerCache, ...]
# Attends to more than the block's own tokens, such as a memory: (q, k, v and the
# attention's output [B, H, T, K], log of its softmax's divisor [B, H, T]) ->
# ([B, H, T, K] to add to the heads' outputs, anything that the caller gets back).
AttentionHook = Callable[
    [jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]
]


def slot_axis(config: ModelConfig) -> int:
    """Returns which axis of a cache's arrays its slots are.

    1 in [B, S, H, K], as cuDNN reads keys and values: to transpose a cache for every
    token would cost more than to attend to it. Elsewhere 2, in [B, H, S, K].
    """
    return 1 if gpu.can_attend(config, None) else 2


def empty_cache(config: ModelConfig, batch: int, length: int) -> KVCache:
    """Returns zeros: (keys, values) of S >= length slots per block; see `slot_axis`.

    In 16 bits on a GPU that computes in 16 bits, since decoding reads all of it for
    every token; in float32 on a CPU even with bfloat16, where narrowing it for every
    token took most of the time.
    """
    axis, H = slot_axis(config), config.n_head
    if axis == 1:
        length += -length % gpu.SLOTS_ALIGNED
    dtype = config.dtype if gpu.in_half(config) else cpu.accumulator(config.dtype)
    shape = (batch, length, H) if axis == 1 else (batch, H, length)
    keys = jnp.zeros((*shape, config.head_key_width), dtype)
    values = jnp.zeros((*shape, config.n_embd // H), dtype)
    return tuple((keys, values) for _ in range(config.n_layer))


def write_cache(
    layer: LayerCache,
    keys: jax.Array,
    values: jax.Array,
    start: jax.typing.ArrayLike,
    axis: int,
) -> LayerCache:
    """Writes T keys and values at slots start .. start + T of every row.

    A scalar start is common to all rows; start [B] gives each its own, and drops
    what would run past the end.

    Args:
      layer: keys and values of S slots.
      keys, values: of T tokens; their axes are the cache's.
      start: a slot.
      axis: of the slots.
    """
    if jnp.ndim(start):
        B, T = len(keys), keys.shape[axis]
        slot_BT = jnp.asarray(start)[:, None] + jnp.arange(T)
        at = (jnp.arange(B)[:, None], *(slice(None),) * (axis - 1), slot_BT)
        put = lambda old, new: old.at[at].set(jnp.moveaxis(new, axis, 1), mode="drop")
    else:
        put = lambda old, new: lax.dynamic_update_slice_in_dim(old, new, start, axis)
    return (
        put(layer[0], keys.astype(layer[0].dtype)),
        put(layer[1], values.astype(layer[1].dtype)),
    )


def visible_slots(
    mask_TT: jax.Array | None, start: jax.typing.ArrayLike, T: int, S: int
) -> jax.Array:
    """Returns which of S cache slots T tokens see, [B, 1, T, S], or 1 without B.

    They are written at start .. start + T and see all slots before; among themselves
    they see what mask_TT says, see `Attention.__call__`.
    """
    nth_BS = jnp.arange(S) - jnp.reshape(start, (-1, 1))
    nth = nth_BS[:, None, None]
    if mask_TT is None:
        return nth <= jnp.arange(T)[:, None]
    mask_B1TT = jnp.broadcast_to(mask_TT, (len(nth_BS), 1, T, T))
    new_B1TS = jnp.take_along_axis(mask_B1TT, jnp.clip(nth, 0, T - 1), -1)
    return (nth < 0) | (nth < T) & new_B1TS


class Attention(nnx.Module):
    """Self-attention, causal unless it is masked otherwise or bidirectional.

    `qkv` holds the three projections side by side.
    """

    empty_cache = staticmethod(empty_cache)

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, HK = config.n_embd, config.n_head * config.head_key_width
        bias = config.bias and config.attention_bias
        std = layers.residual_std(config.n_layer)
        self.qkv = layers.Linear(D, 2 * HK + D, config, bias=bias, rngs=rngs)
        self.out = layers.Linear(D, D, config, std=std, bias=bias, rngs=rngs)
        self.config = config

    def project(
        self,
        x_BTD: jax.Array,
        length: int,
        start: jax.typing.ArrayLike = 0,
        positions: Positions | None = None,
    ) -> jax.Array:
        """Returns fused queries, keys and values [B, T, C].

        If devices split the heads, or in training on a GPU, they are [B, T, 3, D].

        Args:
          x_BTD: tokens at positions start .. start + T.
          length: above any of these positions.
          start: a scalar or one for each row [B].
          positions: of each token and its target, in a model that reads in any order.
        """
        c = self.config
        split = sharding.size(TENSOR) > 1 and not c.key_width
        if split:
            qkv_BTC = self.project_heads(x_BTD)
        elif gpu.projects_apart(x_BTD, c):
            qkv_BTC = gpu.project(x_BTD, self.qkv.kernel[...], self.qkv.bias, c.dtype)
        else:
            qkv_BTC = self.qkv(x_BTD)
        if c.qk_norm:
            qkv_BTC = layers.normalise_heads(qkv_BTC, c.n_head)
        if c.encoding.rotate:
            qkv_BTC = c.encoding.rotate(qkv_BTC, positions, start, length, c)
        return qkv_BTC

    def project_heads(self, x_BTD: jax.Array) -> jax.Array:
        """Returns queries, keys and values [B, T, 3, D], the last axis split by heads.

        Three products: the fused axis, cut into equal pieces, would leave a device with
        the queries of some heads and the keys of others.
        """
        bias = self.qkv.bias
        parts = []
        for i, w_DD in enumerate(jnp.split(self.qkv.kernel[...], 3, -1)):
            w_DD = sharding.constrain(w_DD, None, TENSOR)
            y_BTD = layers.matmul(x_BTD, w_DD, self.config)
            if bias is not None:
                y_BTD += jnp.split(bias[...], 3)[i]
            parts.append(sharding.constrain(y_BTD, BATCH, None, TENSOR))
        return jnp.stack(parts, 2)

    def __call__(
        self,
        x_BTD: jax.Array,
        seed_2: jax.Array | None = None,
        layer: LayerCache | None = None,
        start: jax.typing.ArrayLike = 0,
        mask_TT: jax.Array | None = None,
        hook: AttentionHook | None = None,
        positions: Positions | None = None,
    ) -> tuple[jax.Array, LayerCache | None, Any]:
        """Attends T tokens to themselves and to those in the cache.

        Args:
          x_BTD: the tokens, at cache slots start .. start + T.
          seed_2: turns dropout of the weights on.
          layer: keys and values so far; a token sees the slots before start.
          start: the first slot, a scalar or one for each row [B]; for causal models'
            RoPE and ALiBi a token's slot is its position.
          mask_TT: which of these tokens a token sees, [T, T] or [B, 1, T, T]; None is
            causal, or all of them where the model is bidirectional.
          positions: of each token and its target, in a model that reads in any order.

        Returns:
          (output [B, T, D], the cache with these tokens, what the hook returned).
        """
        c, T = self.config, x_BTD.shape[1]
        if mask_TT is None and c.bidirectional:
            mask_TT = jnp.ones((T, T), bool)
        axis = slot_axis(c)
        S = layer[0].shape[axis] if layer else 0
        qkv_BTC = self.project(x_BTD, S or T, start, positions)
        y_BTD = written = None
        # A hook needs the softmax's divisor, which no kernel but the CPU's returns.
        if layer and not hook and gpu.can_attend(c, seed_2):
            y_BTD, written = self.fused_with_cache(qkv_BTC, layer, start, mask_TT)
        elif not layer and (c.kernels == "cpu" or not hook):
            y_BTD, total_BHT = self.fused(qkv_BTC, seed_2, mask_TT)
        if y_BTD is None or hook:
            q, k, v = split_heads(qkv_BTC, c.n_head, c.key_width)
        if y_BTD is None:
            own_BT = jnp.reshape(start, (-1, 1)) + jnp.arange(T)
            if layer:
                # All reads come after the write: XLA then updates the cache in place.
                as_slots = lambda heads: jnp.swapaxes(heads, 2, axis)
                written = write_cache(layer, as_slots(k), as_slots(v), start, axis)
                keys, values = map(as_slots, written)
                mask, slots = visible_slots(mask_TT, start, T, S), jnp.arange(S)[None]
            else:
                keys, values = k.astype(c.dtype), v.astype(c.dtype)
                causal_TT = jnp.tril(jnp.ones((T, T), bool))
                mask, slots = causal_TT if mask_TT is None else mask_TT, own_BT
            biased = c.encoding.bias
            bias = biased(own_BT, slots, c) if biased else 0
            y_BHTK, total_BHT = attend(q, keys, values, mask, c, seed_2, bias)
            y_BTD = merge_heads(y_BHTK)
        extra = None
        if hook:
            assert total_BHT is not None
            y_BHTK = y_BTD.reshape(*y_BTD.shape[:2], c.n_head, -1).swapaxes(1, 2)
            more_BHTK, extra = hook(q, k, v, y_BHTK, total_BHT)
            y_BTD = y_BTD + merge_heads(more_BHTK)
        return self.out(y_BTD), written, extra

    def fused_with_cache(
        self,
        qkv_BTC: jax.Array,
        layer: LayerCache,
        start: jax.typing.ArrayLike,
        mask_TT: jax.Array | None,
    ) -> tuple[jax.Array, LayerCache]:
        """Returns a GPU's attention [B, T, D] to the cache, and the cache written."""
        B, T = qkv_BTC.shape[:2]
        q, k, v = gpu.split_heads(qkv_BTC, self.config.n_head)
        keys, values = written = write_cache(layer, k, v, start, 1)
        S = keys.shape[1]
        length_B = jnp.minimum(jnp.broadcast_to(start, B) + T, S)
        # A single token sees all that its row then holds.
        single = T == 1 and mask_TT is None
        mask = None if single else visible_slots(mask_TT, start, T, S)
        y_BTHK = gpu.cached_attention(q, keys, values, mask, length_B)
        return y_BTHK.reshape(B, T, -1), written

    def fused(
        self,
        qkv_BTC: jax.Array,
        seed_2: jax.Array | None,
        mask_TT: jax.Array | None,
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """Returns attention [B, T, D] by this platform's kernel, None if it cannot.

        And the logarithm of each softmax's divisor [B, H, T], from the CPU's kernel.
        """
        c = self.config
        slopes = c.encoding.slopes(c.n_head) if c.encoding.slopes else ()
        # The CPU's kernel takes a slope per head as its only bias, and one mask for
        # all rows.
        causal = mask_TT is None
        fits = not c.key_width and (c.encoding.bias is None or (slopes and causal))
        one_mask = mask_TT is None or mask_TT.ndim == 2
        if c.kernels == "cpu" and qkv_BTC.ndim == 3 and fits and one_mask:
            return cpu.attention(
                qkv_BTC, seed_2, c.n_head, c.dtype, c.dropout, slopes, mask_TT
            )
        if not causal:
            return None, None
        if c.kernels == "tpu" and tpu.can_attend(c, seed_2):
            q, k, v = split_heads(qkv_BTC, c.n_head)
            return merge_heads(tpu.causal_attention(q, k, v, c.dtype)), None
        if c.kernels == "gpu" and gpu.can_attend(c, seed_2):
            q, k, v = gpu.split_heads(qkv_BTC, c.n_head)
            y_BTHK = gpu.causal_attention(q, k, v, c.dtype)
            return y_BTHK.reshape(*y_BTHK.shape[:2], -1), None
        return None, None


def split_heads(
    qkv_BTC: jax.Array, n_head: int, key_width: int = 0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Splits fused projections [B, T, C] into three arrays [B, H, T, K].

    Also those of shape [B, T, 3, H K]. With a key width, queries and keys are so wide
    and values take what is left.
    """
    if key_width:
        HK = n_head * key_width
        parts = jnp.split(qkv_BTC, (HK, 2 * HK), -1)
        shape = (*qkv_BTC.shape[:2], n_head, -1)
        heads = [part.reshape(shape).swapaxes(1, 2) for part in parts]
    else:
        thirds = qkv_BTC.reshape(*qkv_BTC.shape[:2], 3, n_head, -1)
        heads = list(thirds.transpose(2, 0, 3, 1, 4))
    q, k, v = (sharding.constrain(x, BATCH, TENSOR, None, None) for x in heads)
    return q, k, v


def merge_heads(y_BHTK: jax.Array) -> jax.Array:
    """Joins the heads: [B, H, T, K] to [B, T, H K]."""
    B, H, T, K = y_BHTK.shape
    return y_BHTK.transpose(0, 2, 1, 3).reshape(B, T, H * K)


def attend(
    q_BHTK: jax.Array,
    k_BHSK: jax.Array,
    v_BHSK: jax.Array,
    mask: jax.Array,
    config: ModelConfig,
    seed_2: jax.Array | None = None,
    bias: jax.typing.ArrayLike = 0,
) -> tuple[jax.Array, jax.Array]:
    """Returns softmax(q k / sqrt(K) + bias) v [B, H, T, K] over where mask is true.

    And the logarithm of each softmax's divisor [B, H, T].

    Args:
      k_BHSK, v_BHSK: keys and values; the products' operands are in their dtype.
      mask: which slots a query sees, [T, S] or [B, 1, T, S].
      config: its rate of dropout.
      seed_2: turns dropout of the weights on.
      bias: added to the scores, of a shape that broadcasts to [B, H, T, S].
    """
    dtype = k_BHSK.dtype
    accum = cpu.accumulator(dtype)
    # Queries are scaled, not scores: they are fewer, and not yet rounded to 16 bits.
    q = (q_BHTK / math.sqrt(q_BHTK.shape[-1])).astype(dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=accum)
    scores_BHTS = product("bhtk,bhsk->bhts", q, k_BHSK) + bias
    scores_BHTS = jnp.where(mask, scores_BHTS, -jnp.inf)
    weights = jax.nn.softmax(scores_BHTS, -1)
    weights = layers.dropout(weights, config.dropout, seed_2).astype(dtype)
    y_BHTK = product("bhts,bhsk->bhtk", weights, v_BHSK)
    return y_BHTK, jax.nn.logsumexp(scores_BHTS, -1)
