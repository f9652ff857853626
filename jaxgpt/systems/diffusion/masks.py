"""What is masked in training, what its loss counts, and who sees whom."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def draw(key: jax.Array, B: int, T: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Returns which tokens are masked, bool [B, T], and the weights of losses [B, T].

    The mean of weight times loss is the bound that masked diffusion minimises, for each
    block of so many tokens. There a token is masked with probability t, and its loss
    counts 1 / t, for t uniform in (0, 1]: a weight without bound. But all masks of k
    tokens are equally likely, and the integral over t gives the same sum to each k from
    1 to L = length: so k is drawn, and the weight L / k has the same mean.

    Args:
      key: of the draw.
      B, T: rows and tokens.
      length: L, of a block; a divisor of T.
    """
    level_key, mask_key = jax.random.split(key)
    blocks = T // length
    # Evenly spaced levels, shifted together: each is uniform, and a batch has all of
    # them, a row's blocks too (the low-discrepancy sampler of arXiv 2107.00630).
    nth_BN = jnp.arange(B)[:, None] + B * jnp.arange(blocks)
    level_BN = (jax.random.uniform(level_key) + nth_BN / (B * blocks)) % 1
    count_BN1 = 1 + jnp.minimum((level_BN * length).astype(int), length - 1)[..., None]
    noise_BNL = jax.random.uniform(mask_key, (B, blocks, length))
    masked_BNL = jnp.argsort(jnp.argsort(noise_BNL, -1), -1) < count_BN1
    weight_BNL = jnp.where(masked_BNL, length / count_BN1, 0)
    return masked_BNL.reshape(B, T), weight_BNL.reshape(B, T)


def two_copies(T: int, length: int) -> np.ndarray:
    """Returns who sees whom, bool [2 T, 2 T]: T tokens with masks, then all unmasked.

    A token with masks around it sees its own block of the first copy and the blocks
    before it of the second; one of the second sees its own block too.
    """
    block_T = np.arange(T) // length
    own = block_T[:, None] == block_T
    before = block_T[:, None] > block_T
    return np.block([[own, before], [np.zeros_like(own), own | before]])
