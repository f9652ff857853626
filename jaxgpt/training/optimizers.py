"""Optimizers by the name in `optimizer.name`.

To add one, write a function that returns an optax transformation, and give it a line
in `OPTIMIZERS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxgpt.errors import require
from jaxgpt.parallel.sharding import path_name
from jaxgpt.training.config import rate_steps
from jaxgpt.training.muon import orthogonalise_flops, scale_by_muon

# By the last name of a parameter's path. A name that is missing is a KeyError: no new
# kind of parameter is to decay, or not to, by accident.
DECAYS = {
    "kernel": True,
    "table": True,
    "target_table": True,
    "scale": False,
    "bias": False,
    "sharpness": False,
    "gate": False,
    "nu_log": False,
    "theta_log": False,
}


def schedule_end(config: ConfigDict) -> int:
    """Returns the step at which the cosine of the learning rate ends."""
    return config.optimizer.decay_steps or config.steps


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """Returns step -> learning rate: linear warmup, then a cosine to the minimum.

    With `optimizer.rates` the rate is piecewise constant instead of a cosine.
    """
    c = config.optimizer
    end = schedule_end(config)
    # As in nanoGPT the first step already learns, unless warmup is from zero: an offset
    # that optax's warmup schedules do not have.
    ahead = 0 if c.warmup_from_zero else 1

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, float)
        warmup = c.learning_rate * (step + ahead) / max(c.warmup_steps + ahead, 1)
        if c.rates:
            decayed = c.learning_rate
            for begin, value in rate_steps(c.rates):
                decayed = jnp.where(step < begin, decayed, value)
        else:
            done = (step - c.warmup_steps) / max(end - c.warmup_steps, 1)
            cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
            span = c.learning_rate - c.min_learning_rate
            decayed = c.min_learning_rate + cosine * span
        return jnp.where(step < c.warmup_steps, warmup, decayed)

    return rate


def decay_mask(params: dict) -> dict:
    """Returns a tree of booleans: does weight decay apply to this parameter."""
    return jax.tree.map_with_path(lambda path, _: DECAYS[path[-1].key], params)


def clip_by_norm(largest: float) -> optax.GradientTransformation:
    """Returns PyTorch's clip_grad_norm_: gradients times largest / (norm + 1e-6).

    optax's own has no 1e-6; with it, float64 runs agree with PyTorch's to 1e-12.
    """

    def update(grads, state, params=None):
        del params
        factor = jnp.minimum(1, largest / (optax.tree.norm(grads) + 1e-6))
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def adamw(
    config: ConfigDict, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """AdamW as in nanoGPT: only matrices decay, unless `optimizer.decays` is "all"."""
    c = config.optimizer
    return optax.adamw(
        learning_rate,
        b1=c.beta1,
        b2=c.beta2,
        weight_decay=c.weight_decay,
        mask=decay_mask if c.decays == "matrices" else None,
    )


def muon(
    config: ConfigDict, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """Muon for the matrices of the blocks; AdamW, at the same rate, for all else."""
    c = config.optimizer
    hidden = optax.chain(
        scale_by_muon(c.momentum, config.model.dtype),
        optax.add_decayed_weights(c.weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    kinds = {"muon": hidden, "adamw": adamw(config, learning_rate)}
    return optax.partition(
        kinds, lambda tree: jax.tree.map_with_path(lambda p, _: kind_of(p), tree)
    )


def kind_of(path: tuple) -> str:
    """Returns which part of `muon` a parameter belongs to."""
    name = path_name(path)
    inside = re.search(r"blocks/\d+/(attn|mixer|mlp)/", name)
    hidden = inside and name.endswith("kernel")
    return "muon" if hidden else "adamw"


def flops_per_device(config: ConfigDict, params: dict) -> float:
    """Returns the FLOPs of matrix products in an update, on the busiest device."""
    if config.optimizer.name != "muon":
        return 0.0
    leaves = jax.tree.leaves_with_path(params)
    shapes = [leaf.shape for path, leaf in leaves if kind_of(path) == "muon"]
    sharers = config.mesh.fsdp * config.mesh.tensor
    return orthogonalise_flops(shapes, sharers, config.model.dtype)


OPTIMIZERS: dict[
    str, Callable[[ConfigDict, optax.Schedule], optax.GradientTransformation]
] = {"adamw": adamw, "muon": muon}


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns clipping by the global norm, then the optimizer of `optimizer.name`.

    Raises:
      UserError: for an unknown name.
    """
    c = config.optimizer
    known = f"one of {', '.join(OPTIMIZERS)}"
    require(c.name in OPTIMIZERS, "optimizer.name", known, c.name)
    optimizer = OPTIMIZERS[c.name](config, learning_rate_schedule(config))
    if not c.grad_clip:
        return optimizer
    return optax.chain(clip_by_norm(c.grad_clip), optimizer)
