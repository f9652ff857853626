"""Against a live PyTorch twin in float64: agreement here is meaning, not luck."""

import jax
import numpy as np
import optax
import pytest
import torch

from jaxgpt import config as configs
from jaxgpt import optim, systems
from jaxgpt.interop import formats, rules
from parity_tests.conftest import relative, worst
from parity_tests.tolerances import FLOAT64
from parity_tests.torch_gpt import GPT, GPTConfig

L, H, D, T, V, B = 2, 3, 42, 17, 23, 4


@pytest.fixture(params=["nanogpt", "sigma-gpt"])
def pair(request):
    """The twin and our model with the same float64 weights, and a batch."""
    with jax.enable_x64(True):
        double = request.param == "sigma-gpt"
        torch.manual_seed(0)
        twin = GPT(GPTConfig(L, H, D, T, V, bias=True, double=double)).double()
        for p in twin.parameters():
            p.data += 0.1 * torch.randn_like(p)
        fields = {"n_layer": L, "n_head": H, "n_embd": D, "block_size": T}
        fields |= {"vocab_size": V, "bias": True, "dtype": "float64"}
        changes = {f"model.{key}": value for key, value in fields.items()}
        changes["system"] = formats.FORMATS[request.param].system
        changes |= {"optimizer.warmup_steps": 2, "optimizer.decay_steps": 40}
        system = systems.make(configs.override(configs.base(), changes))
        table = rules.gpt_rules(L, True, False)
        abstract = jax.eval_shape(system.init, jax.random.key(0))

        def ours(arrays):
            state = {n: p.detach().numpy() for n, p in arrays.items()}
            return rules.to_jax(state, table, abstract, "twin")

        rng = np.random.default_rng(0)
        tokens = rng.integers(0, V, (60, B, system.window)).astype(np.int32)
        orders = rng.permuted(np.tile(np.arange(T), (60, B, 1)), axis=2)
        yield twin, system, ours, tokens, orders.astype(np.int32), double


def torch_loss(twin, tokens, order, double):
    tokens, order = torch.tensor(tokens).long(), torch.tensor(order).long()
    where = None
    if double:
        tokens = tokens.gather(1, order)
        where = (order[:, :-1], order[:, 1:])
    return twin.loss(tokens[:, :-1], tokens[:, 1:], where)


def test_loss_and_gradient(pair):
    twin, system, ours, tokens, orders, double = pair
    loss = torch_loss(twin, tokens[0], orders[0], double)
    loss.backward()
    params = ours(dict(twin.named_parameters()))
    batch = {"tokens": tokens[0], "order": orders[0]}
    value, grads = jax.value_and_grad(lambda p: system.nll(p, batch).mean())(params)
    assert value.dtype == np.float64
    assert relative(value, loss.item()) < FLOAT64["loss"]
    theirs = ours({n: p.grad for n, p in twin.named_parameters()})
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(theirs), strict=True):
        assert np.abs(np.asarray(a) - b).max() < FLOAT64["gradient"] * largest


def test_50_adamw_steps_with_schedule_clipping_and_decay_groups(pair):
    twin, system, ours, tokens, orders, double = pair
    params = ours(dict(twin.named_parameters()))
    optimizer = optim.make(system.config)
    state = optimizer.init(params)
    rate = optim.schedule(system.config)
    theirs = twin.adamw(0.1, 1e-3, (0.9, 0.99))

    @jax.jit
    def step(params, state, batch):
        value, grads = jax.value_and_grad(lambda p: system.nll(p, batch).mean())(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for index in range(50):
        loss = torch_loss(twin, tokens[index], orders[index], double)
        theirs.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        for group in theirs.param_groups:
            group["lr"] = float(rate(index))
        theirs.step()
        batch = {"tokens": tokens[index], "order": orders[index]}
        params, state, value = step(params, state, batch)
        assert relative(value, loss.item()) < FLOAT64["loss of a trajectory"], index
        if index == 0:
            # Adam turns a gradient that is zero but for rounding into noise later on.
            there = ours(dict(twin.named_parameters()))
            kernels = lambda tree: [a for a in jax.tree.leaves(tree) if a.ndim > 1]
            assert (
                worst(kernels(params), kernels(there))
                < FLOAT64["parameters after a step"]
            )
