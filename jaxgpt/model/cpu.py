"""What makes XLA:CPU fast: the same mathematics, written the way its kernels like.

Used if `ModelConfig.kernels == "cpu"`; the plain versions are where these are called.
Results differ from theirs by rounding only. `benchmarks/train_step.py --ablate`
measures what each piece brings; docs/speed.md has the figures.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys

import jax
import jax.numpy as jnp
from jax import lax

from jaxgpt.model import rng

ROOT_HALF = 0.7071067811865476
INV_SQRT_2PI = 0.3989422804014327
FEWEST_SLOTS = 32


def keep_heap() -> None:
    """Keeps freed memory in the process, so that steps do not page-fault for it.

    XLA frees its temporary buffer (hundreds of MB) after every step and glibc gives
    it back to the system: a step takes 1.2 to 1.7 times as long. To be called before
    XLA starts its threads: a thread that already has an arena of its own keeps it.
    Does nothing without a mallopt.
    """
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8  # From malloc.h.
    _set_malloc({arena_max: 1, mmap_max: 0})
    _set_malloc({trim_threshold: 2**31 - 1, top_pad: 64 << 20})


def return_memory() -> None:
    """Gives arrays of 1 MB or more back to the system as soon as they are freed.

    For programs whose peak memory matters. Does nothing without a mallopt.
    """
    mmap_threshold = -3  # Setting it stops glibc from raising it with what is freed.
    _set_malloc({mmap_threshold: 1 << 20})


def _set_malloc(options: dict[int, int]) -> None:
    if sys.platform == "win32":  # CDLL(None) needs dlopen.
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)


def accumulator(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Returns the dtype that products of this dtype are summed in."""
    return jnp.promote_types(dtype, jnp.float32)


def cache_sizes(slots: int, rows: int, width: int) -> tuple[int, ...]:
    """Returns the sizes that a cache of keys and values grows through to its slots.

    Decoding reads the whole cache for every token, empty slots too. Each size costs a
    compilation, so there are none so small that reading them takes little time
    compared with the model's matrices of this width.
    """
    sizes = [slots]
    while (half := -(-sizes[0] // 2)) >= FEWEST_SLOTS and rows * half >= 8 * width:
        sizes.insert(0, half)
    return tuple(sizes)


def _dot(a, b, contract, batch=()):
    return lax.dot_general(
        a, b, (contract, (batch, batch)), preferred_element_type=accumulator(a.dtype)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x_ND: jax.Array, w_DF: jax.Array, dtype: str) -> jax.Array:
    """Returns x @ w with operands in dtype, summed and returned in float32 or wider.

    XLA uses its bfloat16 kernel only for row-major operands with the contraction in
    the left one's last axis: the backward pass transposes x by hand, and a dummy batch
    axis and barriers keep XLA from folding transposes into the product (without, a
    step in bfloat16 takes 1.4 times as long at width 128).
    """
    return _dot(x_ND.astype(dtype), w_DF.astype(dtype), ((1,), (0,)))


def _linear_fwd(x_ND, w_DF, dtype):
    x, w = x_ND.astype(dtype), w_DF.astype(dtype)
    return _dot(x, w, ((1,), (0,))), (x, w, x_ND[:0], w_DF[:0])


def _linear_bwd(dtype, saved, g_NF):
    x, w, like_x, like_w = saved
    g = g_NF.astype(dtype)
    dx_ND = _dot(g, w, ((1,), (1,)))
    if dtype == "bfloat16":
        x_DN = lax.optimization_barrier(x.T)
        dw_DF = lax.optimization_barrier(_dot(x_DN[None], g[None], ((2,), (1,)), (0,)))
        dw_DF = dw_DF[0]
    else:
        dw_DF = _dot(x, g, ((0,), (0,)))
    return dx_ND.astype(like_x.dtype), dw_DF.astype(like_w.dtype)


linear.defvjp(_linear_fwd, _linear_bwd)


@jax.custom_vjp
def layer_norm(x: jax.Array, scale_D: jax.Array, epsilon: float) -> jax.Array:
    """Returns the normalised last axis times scale.

    Its backward pass is by hand (a step takes 1.0 to 1.1 times as long without).
    """
    return layer_norm_fwd(x, scale_D, epsilon)[0]


def layer_norm_fwd(x: jax.Array, scale_D: jax.Array, epsilon: float) -> tuple:
    """Returns the result of `layer_norm`, and what its backward pass is given."""
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    inverse = lax.rsqrt((centred * centred).mean(-1, keepdims=True) + epsilon)
    return centred * inverse * scale_D, (x, mean, inverse, scale_D)


def layer_norm_bwd(saved: tuple, dy: jax.Array) -> tuple:
    """Returns the gradients of x and scale, and None for epsilon."""
    x, mean, inverse, scale_D = saved
    unit = (x - mean) * inverse
    dscale_D = (dy * unit).sum(tuple(range(dy.ndim - 1)))
    dunit = dy * scale_D
    dx = dunit - dunit.mean(-1, keepdims=True)
    dx = (dx - unit * (dunit * unit).mean(-1, keepdims=True)) * inverse
    return dx, dscale_D, None


layer_norm.defvjp(layer_norm_fwd, layer_norm_bwd)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Returns the exact GELU, through erf.

    jax.nn.gelu takes erfc, which is slow in XLA:CPU (up to 1.2 times the step).
    """
    return 0.5 * x * (1 + lax.erf(x * ROOT_HALF))


def _gelu_bwd(x, dy):
    cumulative = 0.5 * (1 + lax.erf(x * ROOT_HALF))
    return (dy * (cumulative + x * (INV_SQRT_2PI * jnp.exp(-0.5 * x * x))),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_bwd)


HEADS = (0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def attention(
    qkv_BTC: jax.Array,
    seed_2: jax.Array | None,
    n_head: int,
    dtype: str,
    dropout: float,
    slopes: tuple[float, ...] = (),
    mask_TT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns self-attention [B, T, D] of fused projections [B, T, 3 D].

    And the logarithm of each softmax's divisor [B, H, T].

    Keeps unnormalised probabilities and divides the output instead, adds the mask as
    a bias, skips the blocks above the diagonal, and writes every backward product
    with the contraction in its fast place (a step takes 1.0 to 1.3 times as long
    without).

    Args:
      qkv_BTC: queries, keys and values side by side.
      seed_2: turns dropout of the probabilities on.
      dtype: of the operands of products.
      slopes: what a head's score loses per token of distance (ALiBi).
      mask_TT: true where a query sees a key, without slopes; None is causal.
    """
    return _attention_fwd(qkv_BTC, seed_2, n_head, dtype, dropout, slopes, mask_TT)[0]


def _query_blocks(T: int, causal: bool) -> list[tuple[slice, int]]:
    """Returns (queries, number of keys they see) of each block of queries.

    With two blocks, half of the masked scores are never computed; four were no faster.
    """
    count = 2 if causal and T >= 128 and T % 2 == 0 else 1
    step = T // count
    return [(slice(c * step, (c + 1) * step), (c + 1) * step) for c in range(count)]


def _split(qkv_BTC, n_head, dtype):
    B, T, C = qkv_BTC.shape
    K = C // 3 // n_head
    heads = qkv_BTC.reshape(B, T, 3, n_head, K).transpose(2, 0, 3, 1, 4)
    q = (heads[0] * (1 / math.sqrt(K))).astype(dtype)
    return q, heads[1].astype(dtype), heads[2].astype(dtype)


def _keep(e_BHTS, T, first, seed_2, dropout):
    """Returns the dropout factor of the block of probabilities from row first, or 1."""
    if seed_2 is None or not dropout:
        return 1
    shape = e_BHTS.shape
    block = {"whole": (*shape[:2], T, T), "start": (0, 0, first, 0)}
    dtype = accumulator(e_BHTS.dtype)
    return rng.dropout_factor(shape, dropout, seed_2, dtype, **block)


def _attention_fwd(qkv_BTC, seed_2, n_head, dtype, dropout, slopes, mask_TT):
    B, T, C = qkv_BTC.shape
    accum = accumulator(dtype)
    q, k, v = _split(qkv_BTC, n_head, dtype)
    outputs, totals, saved = [], [], []
    for queries, seen in _query_blocks(T, mask_TT is None):
        rows = queries.start + jnp.arange(queries.stop - queries.start)[:, None]
        keys = jnp.arange(seen)
        # Times the smallest slope, 2^-8, it still leaves nothing of a probability.
        visible = keys <= rows if mask_TT is None else mask_TT
        bias = jnp.where(visible, (keys - rows) if slopes else 0, -1e9)
        bias = bias.astype(accum)
        if slopes:
            bias *= jnp.asarray(slopes, accum)[:, None, None]
        scores = _dot(q[:, :, queries], k[:, :, :seen], ((3,), (3,)), HEADS) + bias
        largest = scores.max(-1, keepdims=True)
        e = jnp.exp(scores - largest)
        total = e.sum(-1, keepdims=True)
        inverse = 1 / total
        kept = (e * _keep(e, T, queries.start, seed_2, dropout)).astype(dtype)
        out = _dot(kept, v[:, :, :seen], ((3,), (2,)), HEADS) * inverse
        outputs.append(out)
        totals.append((largest + jnp.log(total))[..., 0])
        saved.append((e.astype(dtype), inverse))
    y_BHTK = jnp.concatenate(outputs, 2) if len(outputs) > 1 else outputs[0]
    y_BTD = y_BHTK.transpose(0, 2, 1, 3).reshape(B, T, C // 3)
    residuals = (q, k, v, y_BHTK, saved, seed_2, mask_TT)
    return (y_BTD, jnp.concatenate(totals, 2)), residuals


def _attention_bwd(n_head, dtype, dropout, slopes, residuals, gradients):
    del slopes  # The saved probabilities include them.
    dy_BTD, dtotal_BHT = gradients
    q, k, v, y_BHTK, saved, seed_2, mask_TT = residuals
    B, H, T, K = q.shape
    dy_BTHK = dy_BTD.reshape(B, T, H, K)
    dy = dy_BTHK.transpose(0, 2, 1, 3)
    # The sum of p dp over the keys, through the output, as in FlashAttention; the
    # logarithm of the divisor has the gradient p.
    delta = (dy * y_BHTK).sum(-1, keepdims=True) - dtotal_BHT[..., None]
    dy = dy.astype(dtype)
    q_BHKT = q.transpose(0, 1, 3, 2)
    dy_BHKT = dy_BTHK.transpose(0, 2, 3, 1).astype(dtype)
    q_BHKT, dy_BHKT = lax.optimization_barrier((q_BHKT, dy_BHKT))
    dq: list[jax.Array] = []
    dk_BHKS = dv_BHKS = jnp.zeros((B, H, K, T), dy_BTD.dtype)
    blocks = zip(_query_blocks(T, mask_TT is None), saved, strict=True)
    for (queries, seen), (e, inverse) in blocks:
        keep = _keep(e, T, queries.start, seed_2, dropout)
        p = e * inverse
        dp = _dot(dy[:, :, queries], v[:, :, :seen], ((3,), (3,)), HEADS) * keep
        ds = (p * (dp - delta[:, :, queries])).astype(dtype)
        dropped = (p * keep).astype(dtype)
        pad = ((0, 0), (0, 0), (0, 0), (0, T - seen))
        dq.append(_dot(ds, k[:, :, :seen], ((3,), (2,)), HEADS))
        dk_BHKS += jnp.pad(_dot(q_BHKT[..., queries], ds, ((3,), (2,)), HEADS), pad)
        dv_BHKS += jnp.pad(
            _dot(dy_BHKT[..., queries], dropped, ((3,), (2,)), HEADS), pad
        )
    dq_BHTK = jnp.concatenate(dq, 2) if len(dq) > 1 else dq[0]
    parts = (
        (dq_BHTK * (1 / math.sqrt(K))).astype(dtype).transpose(0, 2, 1, 3),
        dk_BHKS.astype(dtype).transpose(0, 3, 1, 2),
        dv_BHKS.astype(dtype).transpose(0, 3, 1, 2),
    )
    parts = lax.optimization_barrier(parts)
    dqkv = jnp.stack(parts, 2).reshape(B, T, 3 * H * K).astype(dy_BTD.dtype)
    return dqkv, None, None


attention.defvjp(_attention_fwd, _attention_bwd)
