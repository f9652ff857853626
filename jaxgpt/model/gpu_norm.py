"""A residual sum and its norm in one GPU kernel, and all their gradients in another.

XLA makes three kernels of the sum and its norm, and more of the gradients; these two
read and write each activation once.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas

from jaxgpt.model import gpu
from jaxgpt.model.config import ModelConfig
from jaxgpt.parallel import sharding
from jaxgpt.parallel.sharding import BATCH

ROWS = 4  # At a time.
TILE, LANES = 1024, 128  # Largest and smallest width of what is loaded at once.
GROUPS = 1024  # Of tokens, whose sums are added up at the end.
WIDEST_NORM = 4096
INTERPRET = False  # Whether they run without a GPU.


def fuses_norms(config: ModelConfig, x_BTD: jax.Array) -> bool:
    """Returns whether `add_and_norm` is available and supports the model and x."""
    B, T, _ = x_BTD.shape
    devices = sharding.size(BATCH)
    own_rows = B // devices if B % devices == 0 else B
    return (
        gpu.in_half(config)
        and config.norm == "layer"
        and not config.bias
        and not config.adaptive_norm
        and config.n_embd <= WIDEST_NORM
        and math.gcd(config.n_embd, TILE) >= LANES
        and own_rows * T % ROWS == 0
        and gpu.has_cudnn()
        and has_triton()
    )


def has_triton() -> bool:
    """Returns whether this JAX writes kernels with Triton; later ones may not."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def add_and_norm(
    x_BTD: jax.Array,
    more_BTD: jax.Array,
    scale_D: jax.Array,
    epsilon: float,
    dtype: str,
) -> tuple[jax.Array, jax.Array]:
    """Returns x + more, and its `layer_norm`: one kernel, and one for all gradients.

    The residual stream x is float32; what is added to it was rounded to dtype. The
    backward kernel writes the stream's gradient in both widths, where XLA computes it
    once for each. It reads the norm's result, not the stream; of a channel whose scale
    is exactly 0 that result says nothing, and neither the scale nor what the channel
    takes from the others' gradients has one.
    """
    return _add_and_norm_fwd(x_BTD, more_BTD, scale_D, epsilon, dtype)[0]


def _add_and_norm_fwd(x_BTD, more_BTD, scale_D, epsilon, dtype):
    norm = functools.partial(_norm, epsilon=epsilon)
    x_BTD, y_BTD, inverse_BT = _by_rows(norm, scale_D, x_BTD, more_BTD.astype(dtype))
    return (x_BTD, y_BTD.astype(x_BTD.dtype)), (y_BTD, inverse_BT, scale_D)


def _add_and_norm_bwd(epsilon, dtype, saved, gradients):
    del epsilon
    y_BTD, inverse_BT, scale_D = saved
    dx_BTD, dy_BTD = gradients
    dx_BTD, dmore_BTD, parts_ND = _by_rows(
        _norm_gradient, scale_D, dx_BTD, dy_BTD.astype(dtype), y_BTD, inverse_BT
    )
    dscale_D = parts_ND.sum(0) * gpu.reciprocal(scale_D)
    return dx_BTD, dmore_BTD.astype(dx_BTD.dtype), dscale_D


add_and_norm.defvjp(_add_and_norm_fwd, _add_and_norm_bwd)


def _by_rows(function: Callable[..., Any], scale_D: jax.Array, *arrays: jax.Array):
    """Returns function(scale, *arrays), every device on its own rows of the arrays."""
    rows = sharding.fit(arrays[0].shape[:1], (BATCH,))
    specs = (jax.P(), *(rows for _ in arrays))
    return sharding.by_device(function, specs, rows)(scale_D, *arrays)


def _norm(scale_D, x_BTD, more_BTD, epsilon):
    """Returns x + more, its norm in more's dtype, and the inverse deviations [B, T]."""
    shape, dtype = x_BTD.shape, x_BTD.dtype

    def kernel(scale_ref, x_ref, more_ref, sum_ref, y_ref, inverse_ref):
        tiles = _tiles(shape[-1])
        x = [x_ref[:, at] + more_ref[:, at].astype(dtype) for at in tiles]
        mean = sum(part.sum(1, keepdims=True) for part in x) / shape[-1]
        centred = [part - mean for part in x]
        square = sum((part * part).sum(1, keepdims=True) for part in centred)
        inverse = lax.rsqrt(square / shape[-1] + epsilon)
        inverse_ref[:] = inverse[:, 0]
        for at, stream, part in zip(tiles, x, centred, strict=True):
            sum_ref[:, at] = stream
            y_ref[:, at] = (part * inverse * scale_ref[at]).astype(y_ref.dtype)

    arrays = [a.reshape(-1, shape[-1]) for a in (x_BTD, more_BTD)]
    N = len(arrays[0])
    out = [*arrays, jax.ShapeDtypeStruct((N,), dtype)]
    x_ND, y_ND, inverse_N = _call(kernel, N // ROWS, [scale_D], arrays, out)
    return x_ND.reshape(shape), y_ND.reshape(shape), inverse_N.reshape(shape[:-1])


def _norm_gradient(scale_D, dx_BTD, dy_BTD, y_BTD, inverse_BT):
    """Returns dx + the norm's gradient in dx's and in dy's dtype, and sums of dy y.

    The sums are [N, D], of so many groups of tokens.
    """
    shape, dtype = dx_BTD.shape, dx_BTD.dtype
    D, N = shape[-1], inverse_BT.size
    # As many groups as run at once; each adds up its own tokens in registers.
    most = max(N // (ROWS * GROUPS), 1)
    turns = max(n for n in range(1, most + 1) if N // ROWS % n == 0)

    def kernel(
        scale_ref,
        reciprocal_ref,
        dx_ref,
        dy_ref,
        y_ref,
        inverse_ref,
        out_ref,
        half_ref,
        parts_ref,
    ):
        tiles = _tiles(D)
        total = lambda parts: sum(part.sum(1, keepdims=True) for part in parts) / D

        def turn(i, sums):
            rows = pallas.ds(i * ROWS, ROWS)
            y = [y_ref[rows, at].astype(dtype) for at in tiles]
            dy = [dy_ref[rows, at].astype(dtype) for at in tiles]
            dx = [dx_ref[rows, at] for at in tiles]
            inverse = inverse_ref[rows][:, None]
            # The means of the unit's gradient, and of it times the unit.
            mean = total(a * scale_ref[at] for a, at in zip(dy, tiles, strict=True))
            along = total(a * b for a, b in zip(dy, y, strict=True))
            for j, at in enumerate(tiles):
                unit = y[j] * reciprocal_ref[at]
                inner = dy[j] * scale_ref[at] - mean - unit * along
                dx[j] += inverse * inner
                out_ref[rows, at] = dx[j]
                half_ref[rows, at] = dx[j].astype(half_ref.dtype)
            return tuple(s + a * b for s, a, b in zip(sums, dy, y, strict=True))

        start = tuple(jnp.zeros((ROWS, at.size), dtype) for at in tiles)
        sums = lax.fori_loop(0, turns, turn, start)
        for at, part in zip(tiles, sums, strict=True):
            parts_ref[0, at] = part.sum(0)

    groups = N // (ROWS * turns)
    dx_ND, dy_ND, y_ND = (a.reshape(N, D) for a in (dx_BTD, dy_BTD, y_BTD))
    arrays = [dx_ND, dy_ND, y_ND, inverse_BT.reshape(N)]
    out = [dx_ND, dy_ND, jax.ShapeDtypeStruct((groups, D), dtype)]
    scales = [scale_D, gpu.reciprocal(scale_D)]
    dx_ND, half_ND, parts_ND = _call(kernel, groups, scales, arrays, out)
    return dx_ND.reshape(shape), half_ND.reshape(shape), parts_ND


def _tiles(D: int) -> list:
    """Returns slices that Triton can load: powers of two side by side."""
    width = math.gcd(D, TILE)
    return [pallas.ds(start, width) for start in range(0, D, width)]


def _call(kernel, groups: int, common: list, arrays: list, out: list) -> list:
    """Returns kernel's results; a group gets its rows of arrays, and what is common."""
    # Not at the top: a JAX may come without it, see has_triton.
    from jax.experimental.pallas import triton

    def rows(array):
        shape = (array.shape[0] // groups, *array.shape[1:])
        return pallas.BlockSpec(shape, lambda i: (i, *(0 for _ in shape[1:])))

    return pallas.pallas_call(
        kernel,
        grid=(groups,),
        in_specs=[
            *(pallas.BlockSpec(a.shape, lambda i: (0,)) for a in common),
            *map(rows, arrays),
        ],
        out_specs=[*map(rows, out)],
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in out],
        # A row for each warp: sums over the channels stay within it.
        compiler_params=triton.CompilerParams(num_warps=ROWS, num_stages=1),
        interpret=INTERPRET,
    )(*common, *arrays)
