"""The likelihood of texts under a model that can read them in any order.

Every order gives a joint distribution; unless the model is perfectly consistent they
differ. Sampling in a random order draws from the mixture of all of them, p(x) = mean
over orders of p(x | order).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.scipy.special import logsumexp

from jaxgpt.systems.base import System
from jaxgpt.systems.sigma import orders


def conditional_log_likelihoods(
    system: System,
    params: dict,
    tokens_BT: np.ndarray,
    given_BT: np.ndarray,
    key: jax.Array,
    num_orders: int,
) -> np.ndarray:
    """Returns log p(the other tokens | those given, order) [B, N], float64, in nats.

    Args:
      given_BT: true where a token is conditioned on; somewhere in each text, unless
        the model has a beginning token. They are read first, left to right.
      key: row b draws from fold_in(key, b).
      num_orders: N, random orders of the other tokens of each text.
    """
    result = []
    for row, (tokens_T, given_T) in enumerate(zip(tokens_BT, given_BT, strict=True)):
        given, missing = np.flatnonzero(given_T), np.flatnonzero(~given_T)
        row_key = jax.random.fold_in(key, row)
        rest_NM = missing[orders.random(row_key, num_orders, len(missing))]
        given_NG = np.broadcast_to(given, (num_orders, len(given)))
        order_NT = np.concatenate([given_NG, rest_NM], 1).astype(np.int32)
        batch = {"tokens": np.broadcast_to(tokens_T, order_NT.shape), "order": order_NT}
        nll_NT = np.asarray(_nll(system)(params, batch), np.float64)
        result.append(-nll_NT[:, -len(missing) :].sum(1))
    return np.array(result)


def log_likelihoods(
    system: System, params: dict, tokens_BT: np.ndarray, key: jax.Array, num_orders: int
) -> np.ndarray:
    """Returns log p(text | order) [B, N] in nats, for N random orders of each text."""
    # A model without a beginning token cannot predict the first token it reads: all
    # orders begin with the same position, whose token does not count.
    given_BT = np.zeros(tokens_BT.shape, bool)
    given_BT[:, : 1 - int(system.model_config.begin_token)] = True
    return conditional_log_likelihoods(
        system, params, tokens_BT, given_BT, key, num_orders
    )


@dataclasses.dataclass(frozen=True)
class LogProb:
    """Log-probabilities of one text or N, each in K random orders; nats.

    Attributes:
      per_order: float64, [K] or [N, K].
    """

    per_order: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The mean over orders, [] or [N]: never above `mixture`."""
        return self.per_order.mean(-1)

    @property
    def standard_error(self) -> np.ndarray:
        """Of that mean; NaN for one order."""
        K = self.per_order.shape[-1]
        if K == 1:
            return np.full(self.per_order.shape[:-1], np.nan)
        return self.per_order.std(-1, ddof=1) / np.sqrt(K)

    @property
    def mixture(self) -> np.ndarray:
        """The log of the mean probability: what sampling in random orders draws from.

        From K orders it is an estimate from below (Burda et al. 2016).
        """
        mixture = logsumexp(self.per_order, axis=-1)
        return np.asarray(mixture) - np.log(self.per_order.shape[-1])


@functools.lru_cache(maxsize=8)
def _nll(system: Any):
    return jax.jit(system.token_nll)


def summary(log_p_BN: np.ndarray, tokens: int) -> dict[str, float]:
    """Returns the figures of `jaxgpt.evaluate --num_orders`, in nats per token.

    Args:
      log_p_BN: of N orders of each text.
      tokens: predicted tokens of a text.

    Returns:
      loss_averaged, the mean over orders, an upper bound of the mixture's loss;
      loss_mixture, the importance-weighted bound -log(mean of p over N orders)
      (Burda et al. 2016, arXiv 1509.00519), which falls to the mixture's loss as N
      grows; order_deviation, the standard deviation over orders of a text's
      log-likelihood, 0 for a consistent model (nats per text).
    """
    N, mixture_B = log_p_BN.shape[1], LogProb(log_p_BN).mixture
    deviation = float(np.sqrt(log_p_BN.var(1, ddof=1).mean())) if N > 1 else 0.0
    return {
        "loss_averaged": float(-log_p_BN.mean() / tokens),
        "loss_mixture": float(-mixture_B.mean() / tokens),
        "order_deviation": deviation,
    }
