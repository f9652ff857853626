"""Muon against torch.optim.Muon: parameters after several steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxgpt import config as configs
from jaxgpt.training import optimizers

SHAPES = {"qkv": (16, 48), "out": (16, 16), "up": (16, 64), "down": (64, 16)}


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-3)])
def test_parameters_after_five_steps(dtype, tolerance, monkeypatch):
    """PyTorch always orthogonalises in bfloat16; for float32 it is made not to."""
    if dtype == "float32":
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    draw = np.random.default_rng(0)
    normal = lambda: {
        name: draw.standard_normal(shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    start, gradients = normal(), [normal() for _ in range(5)]
    theirs = {name: torch.nn.Parameter(torch.tensor(w)) for name, w in start.items()}
    optimizer = torch.optim.Muon(
        theirs.values(), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    changes = {
        "optimizer.name": "muon",
        "optimizer.learning_rate": 0.02,
        "optimizer.min_learning_rate": 0.02,
        "optimizer.warmup_steps": 0,
        "optimizer.grad_clip": 0.0,
        "model.dtype": dtype,
    }
    chain = optimizers.make_optimizer(configs.override(configs.base(), changes))

    def tree(arrays):
        half = {"qkv": "attn", "out": "attn", "up": "mlp", "down": "mlp"}
        block: dict = {"attn": {}, "mlp": {}}
        for name, array in arrays.items():
            block[half[name]][name] = {"kernel": jnp.asarray(array)}
        return {"blocks": {0: block}}

    ours = tree(start)
    state = chain.init(ours)
    for gradient in gradients:
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradient[name])
        optimizer.step()
        updates, state = chain.update(tree(gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
    there = tree({name: p.detach().numpy() for name, p in theirs.items()})
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), there, tree(start))
    assert min(jax.tree.leaves(moved)) > 0.01
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance)
