"""The training step: one pure, jitted function."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxgpt.core import random
from jaxgpt.systems import System


def make_step(system: System, optimizer: optax.GradientTransformation) -> Callable:
    """Returns the jitted step: (params, opt_state, index, tokens) -> (..., metrics).

    A pure function; index is the number of steps done before it. Parameters and
    optimizer state are donated.
    """
    seed, parts = system.config.seed, system.config.accumulation

    def loss(params, batch, dropout_key):
        return system.nll(params, batch, dropout_key).mean()

    def gradients(params, batch, dropout_key):
        if parts == 1:
            return jax.value_and_grad(loss)(params, batch, dropout_key)

        def accumulate(total, part):
            value_and_grads = jax.value_and_grad(loss)(params, *part)
            return jax.tree.map(jnp.add, total, value_and_grads), None

        # Every parts-th row, so that each device keeps its own rows.
        micro = jax.tree.map(
            lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch
        )
        zero = jnp.zeros((), system.model_config.param_dtype)
        zeros = (zero, jax.tree.map(jnp.zeros_like, params))
        keys = jax.random.split(dropout_key, parts)
        total, _ = jax.lax.scan(accumulate, zeros, (micro, keys))
        return jax.tree.map(lambda a: a / parts, total)

    def step(params, opt_state, index, tokens_BT):
        batch = system.train_batch(tokens_BT, random.at(seed, "order", index), index)
        value, grads = gradients(params, batch, random.at(seed, "dropout", index))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads)}
        return optax.apply_updates(params, updates), opt_state, metrics

    return jax.jit(step, donate_argnums=(0, 1))
