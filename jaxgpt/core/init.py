"""Initial distributions: nanoGPT's (model.py), which are GPT-2's."""

import math

import jax
import jax.numpy as jnp

STD = 0.02


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
