"""Initial distributions: nanoGPT's (model.py), which are GPT-2's; and fan-in's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxgpt.core.transformer import ModelConfig

STD = 0.02


def matrix(
    key: jax.Array,
    shape: tuple[int, ...],
    config: ModelConfig,
    *,
    std: float = STD,
    fan_in: int,
) -> jax.Array:
    """Returns an initial matrix as config.init says; std 0 makes zeros under both.

    Args:
      key, shape: of the array.
      config: init, and the dtype of parameters.
      std: deviation of "gpt2".
      fan_in: "fan_in" has deviation fan_in ^ -0.5.
    """
    dtype = config.param_dtype
    if config.init == "fan_in" and std:
        unit = jax.random.truncated_normal(key, -3, 3, shape, dtype)
        return unit / math.sqrt(fan_in)
    return normal(key, shape, dtype, std)


def normal(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, std: float = STD
) -> jax.Array:
    """Returns a Gaussian array of mean 0 and deviation std."""
    return std * jax.random.normal(key, shape, dtype)


def residual_std(n_layer: int) -> float:
    """Returns the deviation of projections into the residual stream.

    A block adds to the stream twice, so its growth with depth is divided out.
    """
    return STD / math.sqrt(2 * n_layer)
