"""What makes an NVIDIA GPU fast: cuDNN's attention, and 16 bits between the layers.

Used where `ModelConfig.kernels == "gpu"`. XLA computes the rest: norms, activations and
the loss in float32, within the kernels that read and write what is here.
"""

from __future__ import annotations

import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxgpt.model import cpu
from jaxgpt.model.config import ModelConfig
from jaxgpt.parallel import sharding
from jaxgpt.parallel.sharding import BATCH, TENSOR

HALVES = ("bfloat16", "float16")
WIDEST = 128  # Channels of a head; GPUs before Hopper take no more.
FEWEST_SLOTS = 64  # Of a cache.
SLOTS_ALIGNED = 8  # Rows of a mask in 16 bits then begin at multiples of 16 bytes.
VECTORS = 8  # What a single row is padded to before a product.
APART = 4096  # Tokens from which copies cost more than two more products.


def in_half(config: ModelConfig) -> bool:
    """Returns whether a model's products are written in 16 bits, for a GPU."""
    return config.kernels == "gpu" and config.dtype in HALVES


def can_attend(config: ModelConfig, seed_2: jax.Array | None) -> bool:
    """Returns whether cuDNN's attention is available and supports the model.

    Not with dropout of attention weights, nor with a bias of positions (ALiBi);
    operands must have 16 bits and heads a width it takes.
    """
    # cuDNN can drop weights, but JAX fixes its seed in the program, and XLA counts each
    # device's calls since that was loaded. A resumed run would draw the first masks
    # again, all devices would draw the same ones, and with model.scan_layers a backward
    # pass, in reverse order, would draw others than its forward pass. Ours depend on
    # seed, step, layer and place alone.
    dropped = seed_2 is not None and config.dropout > 0
    width = config.n_embd // config.n_head
    return (
        in_half(config)
        and not dropped
        and not config.key_width
        and config.encoding.bias is None
        and width % 8 == 0
        and width <= WIDEST
        and has_cudnn()
    )


def has_cudnn() -> bool:
    """Returns whether JAX's plugin for CUDA, which brings cuDNN, is installed."""
    names = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    return any(importlib.util.find_spec(name) is not None for name in names)


def causal_attention(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, dtype: str
) -> jax.Array:
    """Returns causal attention [B, T, H, K] in float32, operands in dtype.

    The scores stay within cuDNN's kernel. An odd length, which it refuses, is padded at
    the end, where nothing looks. Under a mesh every device runs it on its own rows and
    heads.
    """
    T = q_BTHK.shape[1]
    pad = ((0, 0), (0, T % 2), (0, 0), (0, 0))
    q, k, v = (jnp.pad(x.astype(dtype), pad) for x in (q_BTHK, k_BTHK, v_BTHK))
    attend = functools.partial(
        jax.nn.dot_product_attention, is_causal=True, implementation="cudnn"
    )
    place = sharding.fit(q.shape, (BATCH, None, TENSOR, None))
    split = sharding.by_device(attend, (place,) * 3, place)
    return split(q, k, v)[:, :T].astype(jnp.float32)


def cached_attention(
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    mask: jax.Array | None,
    length_B: jax.Array,
) -> jax.Array:
    """Returns attention [B, T, H, K] in float32 to a cache, operands in its dtype.

    The causal mask that JAX gives cuDNN begins with the first slot, whereas each row's
    tokens follow what the row holds, and a draft's need not see each other. So what
    they see is a mask, in 16 bits and common to all heads; past a row's length the
    kernel reads nothing.

    Args:
      q_BTHK: queries.
      k_BSHK, v_BSHK: the cache.
      mask: which slots a query sees, [B, 1, T, S] or 1 without B; None is all.
      length_B: how many slots of each row hold something.
    """
    y_BTHK = jax.nn.dot_product_attention(
        q_BTHK.astype(k_BSHK.dtype),
        k_BSHK,
        v_BSHK,
        mask=mask,
        key_value_seq_lengths=length_B.astype(jnp.int32),
        implementation="cudnn",
    )
    return y_BTHK.astype(jnp.float32)


def projects_apart(x_BTD: jax.Array, config: ModelConfig) -> bool:
    """Returns whether queries, keys and values are three products, not one.

    cuDNN reads and writes three arrays: cutting one up and joining their gradients
    moves 12 times a block's activations. Few tokens are faster in fewer kernels, and
    so are queries and keys that are normalised or rotated in between.
    """
    between = config.qk_norm or config.encoding.rotate is not None
    enough = x_BTD.shape[0] * x_BTD.shape[1] >= APART
    return enough and not (between or config.dropout) and can_attend(config, None)


def project(
    x_BTD: jax.Array, w_DC: jax.Array, bias: nnx.Param | None, dtype: str
) -> jax.Array:
    """Returns queries, keys and values [B, T, 3, D]: `linear` of a third at a time."""
    B, T, D = x_BTD.shape
    parts = _products(x_BTD.reshape(B * T, D).astype(dtype), w_DC, dtype)
    parts = [part.reshape(B, T, D).astype(jnp.float32) for part in parts]
    if bias is not None:
        parts = [y + b for y, b in zip(parts, jnp.split(bias[...], 3), strict=True)]
    return jnp.stack(parts, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _products(x_ND, w_DC, dtype):
    return _products_fwd(x_ND, w_DC, dtype)[0]


def _products_fwd(x_ND, w_DC, dtype):
    saved = []
    for w_DD in jnp.split(w_DC, 3, -1):
        # XLA would merge products of the same x into one, and cut that up.
        x_ND = lax.optimization_barrier(x_ND)
        saved.append(_product_fwd(x_ND, w_DD, dtype))
    return tuple(y for y, _ in saved), tuple(one for _, one in saved)


def _products_bwd(dtype, saved, gs_ND):
    pairs = [_product_bwd(dtype, s, g) for s, g in zip(saved, gs_ND, strict=True)]
    dxs_ND, dws_DD = zip(*pairs, strict=True)
    dx_ND = sum(dx_ND.astype(jnp.float32) for dx_ND in dxs_ND)
    return dx_ND.astype(dtype), jnp.concatenate(dws_DD, -1)


_products.defvjp(_products_fwd, _products_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def split_heads(qkv: jax.Array, n_head: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns three arrays [B, T, H, K] of [B, T, 3, H K] or [B, T, 3 H K].

    Their gradients are put side by side, where JAX would add three padded arrays. So
    XLA sees that it need not copy what `project` stacks.
    """
    B, T, D = *qkv.shape[:2], math.prod(qkv.shape[2:]) // 3
    thirds = qkv.reshape(B, T, 3, D)
    q, k, v = (thirds[:, :, i].reshape(B, T, n_head, -1) for i in range(3))
    return q, k, v


def _split_heads_fwd(qkv, n_head):
    return split_heads(qkv, n_head), qkv[:0]


def _split_heads_bwd(n_head, like, gs_BTHK):
    B, T = gs_BTHK[0].shape[:2]
    gs_BTD = [g.reshape(B, T, -1) for g in gs_BTHK]
    return (jnp.stack(gs_BTD, 2).reshape(B, *like.shape[1:]),)


split_heads.defvjp(_split_heads_fwd, _split_heads_bwd)


def for_sampling(params: dict, config: ModelConfig) -> dict:
    """Returns parameters with matrices in 16 bits, where products are computed so.

    A sampler's loop reads all of them for every token. Norms and tables of positions,
    which are small, stay as they are.
    """
    return _narrow(params, config.dtype) if in_half(config) else params


@functools.partial(jax.jit, static_argnames="dtype")
def _narrow(params, dtype):
    def narrow(path, leaf):
        multiplied = path[-1].key == "kernel" or len(path) == 1
        return leaf.astype(dtype) if multiplied else leaf

    return jax.tree.map_with_path(narrow, params)


def slots(T: int, capacity: int, kernels: str) -> int:
    """Returns how many cache slots a text of T tokens gets, of a capacity.

    As few as hold it, for reading them takes most of a GPU's time; but a power of two,
    as a program is compiled for each number.
    """
    if kernels != "gpu":
        return capacity
    return min(max(FEWEST_SLOTS, 1 << (T - 1).bit_length()), capacity)


def linear(x_ND: jax.Array, w_DF: jax.Array, dtype: str) -> jax.Array:
    """Returns x @ w, summed in float32, rounded to dtype, as float32.

    What the next kernel reads is the 16 bits: XLA widens them there. The gradient of
    w, which is summed over all tokens, is not rounded.
    """
    N = len(x_ND)
    x_ND = x_ND.astype(dtype)
    if N == 1:
        # XLA makes two kernels and weight-sized products of a vector times a matrix.
        x_ND = jnp.pad(x_ND, ((0, VECTORS - 1), (0, 0)))
    return _product(x_ND, w_DF, dtype)[:N].astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x_ND, w_DF, dtype):
    return jnp.dot(x_ND, w_DF.astype(dtype), preferred_element_type=dtype)


def _product_fwd(x_ND, w_DF, dtype):
    w = w_DF.astype(dtype)
    return jnp.dot(x_ND, w, preferred_element_type=dtype), (x_ND, w, w_DF[:0])


def _product_bwd(dtype, saved, g_NF):
    x_ND, w, like_w = saved
    dx_ND = lax.dot_general(
        g_NF, w, (((1,), (1,)), ((), ())), preferred_element_type=dtype
    )
    dw_DF = lax.dot_general(
        x_ND, g_NF, (((0,), (0,)), ((), ())), preferred_element_type=like_w.dtype
    )
    return dx_ND, dw_DF


_product.defvjp(_product_fwd, _product_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def layer_norm(
    x: jax.Array, scale_D: jax.Array, epsilon: float, dtype: str
) -> jax.Array:
    """Returns the normalised last axis times scale, rounded to dtype, in x's dtype.

    The gradient of the scale comes from that result, which the next product keeps
    anyway, divided by the scale: from x it would be an array in float32, written and
    read. A scale of exactly 0 gets none.
    """
    return _layer_norm_fwd(x, scale_D, epsilon, dtype)[0]


def _layer_norm_fwd(x, scale_D, epsilon, dtype):
    y, (_, mean, inverse, _) = cpu.layer_norm_fwd(x, scale_D, epsilon)
    y = y.astype(dtype)
    return y.astype(x.dtype), (x, mean, inverse, scale_D, y)


def _layer_norm_bwd(epsilon, dtype, saved, dy):
    *saved, y = saved
    dx, _, _ = cpu.layer_norm_bwd(saved, dy)
    scale_D = saved[-1]
    # Behind the barrier XLA does not compute y from x again.
    product = dy * lax.optimization_barrier(y).astype(dy.dtype)
    return dx, product.sum(tuple(range(dy.ndim - 1))) * reciprocal(scale_D)


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: jax.Array, dtype: str) -> jax.Array:
    """Returns the exact GELU of x, which was rounded to dtype and is saved in it."""
    return x * _normal(x)[0]


def _gelu_fwd(x, dtype):
    return gelu(x, dtype), x.astype(dtype)


def _gelu_bwd(dtype, saved, dy):
    x = saved.astype(dy.dtype)
    cumulative, density = _normal(x)
    return (dy * (cumulative + x * density),)


gelu.defvjp(_gelu_fwd, _gelu_bwd)


def _normal(x):
    """Returns the standard normal's cumulative distribution, to 1e-7, and its density.

    Abramowitz and Stegun's 26.2.17: both of one exponential, where CUDA's erf has its
    own, and takes longer than memory does.
    """
    density = cpu.INV_SQRT_2PI * jnp.exp(-0.5 * x * x)
    base = 1 + 0.2316419 * jnp.abs(x)
    t = lax.rsqrt(base * base)  # Its reciprocal; a division is many instructions.
    tail = jnp.zeros_like(x)
    for factor in (1.330274429, -1.821255978, 1.781477937, -0.356563782, 0.319381530):
        tail = t * (factor + tail)
    tail *= density
    return jnp.where(x < 0, tail, 1 - tail), density


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def cross_entropy(
    logits_BTV: jax.Array, targets_BT: jax.Array, dtype: str
) -> jax.Array:
    """Returns the negative log-likelihood [B, T] of each target token, in nats.

    The logits were rounded to dtype. The backward pass computes probabilities from them
    again, where plain JAX would keep those of the whole vocabulary in float32.
    """
    return _cross_entropy_fwd(logits_BTV, targets_BT, dtype)[0]


def _cross_entropy_fwd(logits_BTV, targets_BT, dtype):
    picked_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], -1)[..., 0]
    total_BT = _logsumexp(logits_BTV)
    return total_BT - picked_BT, (logits_BTV.astype(dtype), total_BT, targets_BT)


def _logsumexp(x: jax.Array) -> jax.Array:
    """Returns log(sum(exp(x))) over the last axis, in one pass.

    Two parts, each (largest, sum of exp(x - largest)), are joined by scaling down the
    sum with the smaller largest: one exponential, as in the second of two passes.
    """

    def join(a, b):
        factor = jnp.exp(-jnp.abs(a[0] - b[0]))
        larger = a[0] > b[0]
        total = jnp.where(larger, a[1] + b[1] * factor, a[1] * factor + b[1])
        return jnp.maximum(a[0], b[0]), total

    # Finite, as infinity minus infinity is NaN.
    lowest = jnp.finfo(x.dtype).min / 2
    largest, total = lax.reduce(
        (x, jnp.ones_like(x)), (lowest, jnp.zeros((), x.dtype)), join, (x.ndim - 1,)
    )
    return largest + jnp.log(total)


def _cross_entropy_bwd(dtype, saved, g_BT):
    logits_BTV, total_BT, targets_BT = saved
    logits_BTV = logits_BTV.astype(total_BT.dtype)
    p_BTV = jnp.exp(logits_BTV - total_BT[..., None])
    # A comparison with an index, which XLA fuses, instead of a scatter.
    index_BTV = lax.broadcasted_iota(jnp.int32, p_BTV.shape, p_BTV.ndim - 1)
    hit_BTV = index_BTV == targets_BT[..., None]
    return (p_BTV - hit_BTV) * g_BT[..., None], None


cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def reciprocal(x):
    """Returns 1 / x, and 0 for 0."""
    return jnp.where(x == 0, 0, 1 / jnp.where(x == 0, 1, x))
