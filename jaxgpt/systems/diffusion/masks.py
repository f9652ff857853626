"""What is masked in training, what its loss counts, and who sees whom."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def draw(key: jax.Array, B: int, T: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Returns which tokens are masked, bool [B, T], and the weights of losses [B, T].

    The mean of weight times loss is the bound that masked diffusion minimises, for each
    block of L = `length` tokens. There t is uniform in (0, 1], a token is masked with
    probability t, and its loss has the weight 1 / t, which is unbounded. But given the
    number k of masked tokens all masks are equally likely, and integrated over t each k
    from 1 to L has the same total weight. So k is drawn instead of t: with the weight
    L / k, at most L, the mean is the same.

    Args:
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
