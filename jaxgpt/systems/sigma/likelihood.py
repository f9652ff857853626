"""The likelihood of texts under a model that can read them in any order.

Every order gives a joint distribution; unless the model is perfectly consistent they
differ. Sampling in a random order draws from the mixture of all of them, p(x) = mean
over orders of p(x | order).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from jaxgpt.systems.base import System
from jaxgpt.systems.sigma import orders


def log_likelihoods(
    system: System, params: dict, tokens_BT: np.ndarray, key: jax.Array, num_orders: int
) -> np.ndarray:
    """Returns log p(text | order) [B, N] in nats, for N random orders of each text."""
    T = tokens_BT.shape[1]
    # A model without a beginning token cannot predict the first token it reads. So all
    # orders begin with the same position, whose token is not counted.
    fixed = 1 - int(system.model_config.begin_token)
    first_NT = jnp.broadcast_to(jnp.arange(fixed), (num_orders, fixed))
    result = []
    for row, tokens_T in enumerate(tokens_BT):
        row_key = jax.random.fold_in(key, row)
        rest_NT = fixed + orders.random(row_key, num_orders, T - fixed)
        batch = {
            "tokens": jnp.broadcast_to(tokens_T, (num_orders, T)),
            "order": jnp.concatenate([first_NT, rest_NT], 1),
        }
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
