"""AdamW as nanoGPT runs it: cosine schedule, clipping, decay of matrices or of all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxgpt.training.config import rate_steps

# Every parameter's last name stands here: a new kind must say whether it decays.
DECAYS = {
    "kernel": True,
    "table": True,
    "scale": False,
    "bias": False,
    "sharpness": False,
    "gate": False,
}


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """Returns step -> learning rate: linear warmup, then a cosine to the minimum.

    The first step already learns, as in nanoGPT, unless warmup is from zero. With
    `optimizer.rates` there are steps instead of a cosine.
    """
    c = config.optimizer
    end = c.decay_steps or config.steps
    ahead = 0 if c.warmup_from_zero else 1

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, float)
        warm = c.learning_rate * (step + ahead) / max(c.warmup_steps + ahead, 1)
        if c.rates:
            cold = c.learning_rate
            for begin, value in rate_steps(c.rates):
                cold = jnp.where(step < begin, cold, value)
            return jnp.where(step < c.warmup_steps, warm, cold)
        done = (step - c.warmup_steps) / max(end - c.warmup_steps, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        cold = c.min_learning_rate + cosine * (c.learning_rate - c.min_learning_rate)
        return jnp.where(step < c.warmup_steps, warm, cold)

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


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the optimizer: clip by global norm, then AdamW."""
    c = config.optimizer
    adamw = optax.adamw(
        learning_rate_schedule(config),
        b1=c.beta1,
        b2=c.beta2,
        weight_decay=c.weight_decay,
        mask=decay_mask if c.decays == "matrices" else None,
    )
    if not c.grad_clip:
        return adamw
    return optax.chain(clip_by_norm(c.grad_clip), adamw)
