"""The training step: one pure, jitted function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from jaxgpt.model import rng
from jaxgpt.parallel import sharding
from jaxgpt.parallel.sharding import BATCH, Layout, under
from jaxgpt.systems.base import System

State = dict[str, Any]


def init_state(
    params: dict,
    optimizer: optax.GradientTransformation,
    ema: bool,
    carried: dict | None = None,
) -> State:
    """Returns {"params", "opt_state"}, with ema "ema", a copy of the parameters.

    What a system carries from step to step, if anything, is "carried".
    """
    state = {"params": params, "opt_state": optimizer.init(params)}
    if carried:
        state["carried"] = carried
    return state | {"ema": jax.tree.map(jnp.copy, params)} if ema else state


def fresh_state(
    system: System, optimizer: optax.GradientTransformation, key: jax.Array
) -> State:
    """Returns the state that a run of the system's config begins with."""
    c = system.config
    carried = system.host.recurrent_state(c.batch_size) if system.host else None
    return init_state(system.init(key), optimizer, c.optimizer.ema_decay > 0, carried)


def eval_params(state: State) -> dict:
    """Returns the parameters to evaluate and sample with: the average, if kept."""
    return state["ema"] if "ema" in state else state["params"]


def make_step(
    system: System,
    optimizer: optax.GradientTransformation,
    layout: Layout | None = None,
) -> Any:
    """Returns the jitted step: (state, index, batch) -> (state, metrics).

    A pure function; index is the number of steps done before it, batch what the data
    gives for it. The state, as of `init_state`, is donated. If `config.nonfinite` is
    "skip", a step whose loss or gradient is not finite returns the state unchanged.
    """
    mesh = layout.mesh if layout else None
    shardings = (layout.state, layout.replicated) if layout else None
    step = step_function(system, optimizer, mesh)
    # Pinned: the compiler may lay out the new state otherwise, for which the next step
    # would be compiled again.
    return jax.jit(under(mesh, step), donate_argnums=0, out_shardings=shardings)


def step_function(
    system: System,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh | None = None,
) -> Callable:
    """Returns the step of `make_step`, not jitted."""
    c = system.config
    parts = c.accumulation
    value_and_grad = jax.value_and_grad(system.objective, has_aux=True)

    def gradients(params, batch, carried, dropout_key):
        if parts == 1:
            return value_and_grad(params, batch, carried, dropout_key)

        def accumulate(total, part):
            value_and_grads = value_and_grad(params, part[0], carried, part[1])
            return jax.tree.map(jnp.add, total, value_and_grads), None

        # Micro-batch i has the rows i, i + parts, ...: devices hold consecutive rows,
        # so that each has its share of every micro-batch.
        micro = jax.tree.map(
            lambda a: sharding.constrain(
                a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1),
                *(None, BATCH, *(None,) * (a.ndim - 1)),
            ),
            batch,
        )
        zero = jnp.zeros((), system.model_config.param_dtype)
        zeros = ((zero, carried), jax.tree.map(jnp.zeros_like, params))
        keys = jax.random.split(dropout_key, parts)
        total, _ = jax.lax.scan(accumulate, zeros, (micro, keys))
        return jax.tree.map(lambda a: a / parts, total)

    def step(state, index, tokens_BT):
        params = state["params"]
        batch = system.train_batch(tokens_BT, rng.at(c.seed, "order", index), index)
        dropout_key = rng.at(c.seed, "dropout", index)
        carried = state.get("carried", {})
        find: Callable = gradients
        if c.deterministic:
            find = functools.partial(in_fixed_order, system, mesh, index=index)
        (loss, carried), grads = find(params, batch, carried, dropout_key)
        updates, opt_state = optimizer.update(grads, state["opt_state"], params)
        params = optax.apply_updates(params, updates)
        new = {"params": params, "opt_state": opt_state}
        if carried:
            new["carried"] = carried
        if "ema" in state:
            # Early on a shorter average, which forgets the initial parameters sooner
            # (the rule of TensorFlow's ExponentialMovingAverage).
            decay = jnp.minimum(c.optimizer.ema_decay, (1 + index) / (10 + index))
            new["ema"] = optax.incremental_update(params, state["ema"], 1 - decay)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        if c.nonfinite == "skip":
            finite = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
            new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, state)
        return new, metrics

    return step


def in_fixed_order(
    system: System,
    mesh: jax.sharding.Mesh | None,
    params: dict,
    batch: dict,
    carried: dict,
    dropout_key: jax.Array,
    index: jax.Array,
) -> tuple[tuple[jax.Array, dict], dict]:
    """Returns value and gradients, in the same bits on any number of devices.

    The batch is cut into `deterministic_groups`. A device runs the same program on each
    of its groups, one at a time, and every device sums all of them in the same order.
    """
    groups = system.config.deterministic_groups
    value_and_grad = jax.value_and_grad(system.objective, has_aux=True)
    own = groups // (mesh.size if mesh else 1)
    # Always own, but the compiler cannot know it: a loop known to have one iteration
    # would be unrolled and fused with the code around it, and round differently.
    iterations = jnp.minimum(own, index + own)
    if system.host:
        cut = system.host.split_groups(batch, carried, groups)
    else:
        cut = sharding.in_groups(batch, groups), carried
    keys = jax.random.split(dropout_key, groups)

    def own_groups(params, iterations, *parts):
        # One group more than is used, for the same reason: XLA drops an axis of size 1.
        parts = jax.tree.map(lambda a: jnp.concatenate([a, a[:1]]), parts)

        def one_group(i, found):
            part = jax.tree.map(lambda a: a[i], parts)
            one = value_and_grad(params, *part)
            return jax.tree.map(lambda all_, a: all_.at[i].set(a), found, one)

        first = jax.tree.map(lambda a: a[0], parts)
        shapes = jax.eval_shape(value_and_grad, params, *first)
        found = jax.tree.map(lambda a: jnp.zeros((own + 1, *a.shape), a.dtype), shapes)
        found = jax.lax.fori_loop(0, iterations, one_group, found)
        return jax.tree.map(lambda a: a[:own], found)

    if mesh:
        rows, whole = PartitionSpec("data"), PartitionSpec()
        own_groups = jax.shard_map(
            own_groups,
            mesh=mesh,
            in_specs=(whole, whole, rows, rows, rows),
            out_specs=rows,
            check_vma=False,
        )
    (values, carried), grads = own_groups(params, iterations, *cut, keys)
    # Replicated, so that every device does the whole of the sums below, in order; a
    # psum would add in an order that depends on the devices.
    values, grads = jax.tree.map(
        lambda a: sharding.constrain(a, *(None,) * a.ndim), (values, grads)
    )
    mean = lambda a: functools.reduce(jnp.add, a) / groups
    if system.host:
        carried = system.host.merge_groups(carried)
    return (mean(values), carried), jax.tree.map(mean, grads)
