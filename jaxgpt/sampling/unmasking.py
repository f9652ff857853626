"""Which missing tokens a pass of parallel unmasking decodes: the surest ones.

The ranks: by probability of the likeliest token (MaskGIT, arXiv 2202.04200), or by
entropy, where a pass decodes tokens until their summed entropy but for the last one's
passes a bound (the EB-sampler, arXiv 2505.24857).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgpt.sampling.state import SamplingParams

TOP_K, MOST, BOUND = 4, 16, 0.5  # Defaults.


class Rule(NamedTuple):
    """Which of the missing tokens a pass decodes.

    Attributes:
      rank: "probability" or "entropy": the surest come first.
      most: how many, at most.
      bound: nats of entropy a pass may take on; infinite decodes `most` every time.
    """

    rank: str
    most: int
    bound: float


def rule(sampling: SamplingParams) -> Rule:
    """Returns the rule of top-k-unmasking or of entropy-bounded-unmasking."""
    if sampling.sampler == "top-k-unmasking":
        return Rule("probability", sampling.tokens_per_pass or TOP_K, math.inf)
    most = sampling.tokens_per_pass or MOST
    return Rule("entropy", most, sampling.entropy_bound or BOUND)


def surest(
    p_BSV: jax.Array,
    missing_BS: jax.Array,
    rank: str,
    most: int,
    bound: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Returns the slots [B, S], surest first, and how many of them [B] a pass decodes.

    Args:
      p_BSV: what the token of each slot is drawn from.
      missing_BS: which slots are to be decoded; the others come last.
      rank, most, bound: of the `Rule`.
    """
    cost_BS = -jnp.log(p_BSV.max(-1))
    if rank == "entropy":
        cost_BS = -jax.scipy.special.xlogy(p_BSV, p_BSV).sum(-1)
    cost_BS = jnp.where(missing_BS, cost_BS, jnp.inf)
    perm_BS = jnp.argsort(cost_BS, -1)
    cost_BS = jnp.take_along_axis(cost_BS, perm_BS, 1)
    before_BS = jnp.cumsum(cost_BS, 1) - cost_BS
    # At least one: before the first there is nothing. Summed past the missing slots,
    # costs are infinite, and inf - inf is NaN.
    within_BS = jnp.where(jnp.isinf(cost_BS), False, before_BS <= bound)
    return perm_BS, jnp.minimum(within_BS.sum(1, dtype=jnp.int32), most)
