"""The training step: one pure, jitted function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgpt.core import random
from jaxgpt.systems import System

State = dict[str, Any]


def init_state(
    params: dict, optimizer: optax.GradientTransformation, ema: bool
) -> State:
    """Returns {"params", "opt_state"}, and "ema", a copy of params, where asked."""
    state = {"params": params, "opt_state": optimizer.init(params)}
    return state | {"ema": jax.tree.map(jnp.copy, params)} if ema else state


def averaged(state: State) -> dict:
    """Returns the parameters to evaluate and sample with: the average, if kept."""
    return state["ema"] if "ema" in state else state["params"]


def make_step(system: System, optimizer: optax.GradientTransformation) -> Callable:
    """Returns the jitted step: (state, index, tokens) -> (state, metrics).

    A pure function; index is the number of steps done before it. The state, as of
    `init_state`, is donated. Where `config.nonfinite` is "skip", a step whose loss or
    gradient is not finite leaves the state as it was.
    """
    return jax.jit(step_function(system, optimizer), donate_argnums=0)


def step_function(system: System, optimizer: optax.GradientTransformation) -> Callable:
    """Returns the step of `make_step`, not jitted."""
    seed, parts = system.config.seed, system.config.accumulation
    ema_decay = system.config.optimizer.ema_decay
    skips = system.config.nonfinite == "skip"

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

    def step(state, index, tokens_BT):
        batch = system.train_batch(tokens_BT, random.at(seed, "order", index), index)
        dropout_key = random.at(seed, "dropout", index)
        value, grads = gradients(state["params"], batch, dropout_key)
        updates, opt_state = optimizer.update(
            grads, state["opt_state"], state["params"]
        )
        params = optax.apply_updates(state["params"], updates)
        new = {"params": params, "opt_state": opt_state}
        if "ema" in state:
            # Early on the average is over the steps there were (TensorFlow's rule).
            decay = jnp.minimum(ema_decay, (1 + index) / (10 + index))
            new["ema"] = optax.incremental_update(params, state["ema"], 1 - decay)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads)}
        if skips:
            sound = jnp.isfinite(value) & jnp.isfinite(metrics["grad_norm"])
            new = jax.tree.map(lambda n, o: jnp.where(sound, n, o), new, state)
        return new, metrics

    return step
