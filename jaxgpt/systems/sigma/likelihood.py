"""The likelihood of texts under a model that can read them in any order.

Every order gives a joint distribution; where the model is not perfectly consistent
they differ. The mixture of all of them, p(x) = mean over orders of p(x | order), is
what sampling in a random order draws from.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from jaxgpt.systems.base import System
from jaxgpt.systems.sigma import orders


def text_orders(key: jax.Array, N: int, T: int, fixed: int) -> jax.Array:
    """Returns N orders [N, T], uniform among those that begin with `fixed` positions.

    A model without a beginning token cannot predict the first token it reads: with
    fixed = 1, all orders are given the same one.
    """
    rest = fixed + orders.random(key, N, T - fixed)
    first = jnp.broadcast_to(jnp.arange(fixed), (N, fixed))
    return jnp.concatenate([first, rest], 1)


def log_likelihoods(
    system: System, params: dict, tokens_BT: np.ndarray, key: jax.Array, num_orders: int
) -> np.ndarray:
    """Returns log p(text | order) [B, N] in nats, for N random orders of each text.

    All tokens count with a beginning token; else the first position's is given.
    """
    T = tokens_BT.shape[1]
    fixed = 1 - int(system.model_config.begin_token)
    result = []
    for row, tokens_T in enumerate(tokens_BT):
        row_key = jax.random.fold_in(key, row)
        order_NT = text_orders(row_key, num_orders, T, fixed)
        tokens_NT = jnp.broadcast_to(tokens_T, (num_orders, T))
        batch = {"tokens": tokens_NT, "order": order_NT}
        result.append(-np.asarray(_nll(system)(params, batch), np.float64).sum(1))
    return np.array(result)


@functools.lru_cache(maxsize=8)
def _nll(system: System):
    return jax.jit(system.nll)


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
    N = log_p_BN.shape[1]
    mixture_B = np.asarray(logsumexp(log_p_BN, axis=1)) - np.log(N)
    deviation = float(np.sqrt(log_p_BN.var(1, ddof=1).mean())) if N > 1 else 0.0
    return {
        "loss_averaged": float(-log_p_BN.mean() / tokens),
        "loss_mixture": float(-mixture_B.mean() / tokens),
        "order_deviation": deviation,
    }
