"""One token a forward pass: in a fixed order, or lowest entropy first.

Lowest entropy first looks at all missing tokens in every pass and decodes the surest.
A pass decodes one token from its true conditional, so the result is exact for the
order that it chooses.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp

from jaxgpt.sampling.autoregressive import autoregress
from jaxgpt.sampling.state import SamplingParams
from jaxgpt.systems.sigma.options import LOW_ENTROPY_FIRST
from jaxgpt.systems.sigma.samplers import unmasking

lowest_entropy_first = functools.partial(
    unmasking.advance, rank="entropy", most=1, bound=jnp.inf
)


def make_sampler(sampling: SamplingParams, max_draft_length: int):
    """Returns the sampler for an order: a fixed one, or lowest entropy first."""
    del max_draft_length
    if sampling.order == LOW_ENTROPY_FIRST:
        return lowest_entropy_first
    return functools.partial(autoregress, cached=sampling.cached)
