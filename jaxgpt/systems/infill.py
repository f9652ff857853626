"""Infilling: a span is cut out of a text, and the model fills it.

A model that reads in any order is given both sides of the gap; every model is also
scored given the text before the gap alone, which is all that a left-to-right model can
use. The spans depend on the seed and the texts only, so that runs compare.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.core import random
from jaxgpt.systems import Sampling, System


def spans(N: int, T: int, ratio: float, seed: int) -> np.ndarray:
    """Returns where tokens are missing [N, T]: one span of ratio T each.

    The first token is always given.
    """
    length = min(max(1, round(ratio * T)), T - 1)
    key = random.at(seed, "eval_order", round(1000 * ratio) + 1)
    start_N = np.asarray(jax.random.randint(key, (N,), 1, T - length + 1))
    index_T = np.arange(T)
    return (index_T >= start_N[:, None]) & (index_T < start_N[:, None] + length)


def _span_nll(system: System, params: dict, tokens_NT, missing_NT, order_NT):
    """Returns the mean negative log-likelihood of missing tokens, read in an order."""
    score = jax.jit(lambda tokens, order: system.score(params, tokens, order)[1])
    total, count = 0.0, 0
    for at in range(0, len(tokens_NT), 64):
        part = slice(at, at + 64)
        nll = np.asarray(score(tokens_NT[part], order_NT[part]), np.float64)
        wanted = np.take_along_axis(missing_NT[part], order_NT[part], 1)[:, 1:]
        total, count = total + nll[wanted].sum(), count + wanted.sum()
    return total / count


def measure(
    system: System, params: dict, tokens_NT: np.ndarray, ratio: float, seed: int
) -> dict[str, float]:
    """Returns how well spans of a share of each text are filled.

    Returns:
      nll_prefix, given the text before the span, and for a model that reads in any
      order nll, given both sides: nats per missing token. match: share of the missing
      tokens that greedy filling gets right, from both sides where it can; match_span:
      share of the spans it gets right as a whole.
    """
    N, T = tokens_NT.shape
    missing_NT = spans(N, T, ratio, seed)
    straight_NT = np.broadcast_to(np.arange(T, dtype=np.int32), (N, T))
    found = {
        "nll_prefix": _span_nll(system, params, tokens_NT, missing_NT, straight_NT)
    }
    any_order = system.model_config.any_order
    if any_order:
        # What is given first, left to right; then the span, left to right.
        order_NT = np.argsort(missing_NT, 1, kind="stable").astype(np.int32)
        found["nll"] = _span_nll(system, params, tokens_NT, missing_NT, order_NT)
        known_NT = ~missing_NT
    else:
        known_NT = np.cumsum(missing_NT, 1) == 0
    right_NT = []
    for at in range(0, N, 64):
        part = slice(at, at + 64)
        filled = system.sample(
            params,
            np.where(known_NT[part], tokens_NT[part], 0).astype(np.int32),
            known_NT[part],
            jax.random.key(0),
            Sampling(order="left-to-right", temperature=0.0),
        )
        right_NT.append(filled.tokens_BT == tokens_NT[part])
    right = jnp.concatenate(right_NT) | ~missing_NT
    return found | {
        "match": float(right[missing_NT].mean()),
        "match_span": float(right.all(1).mean()),
    }
