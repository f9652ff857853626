"""σ-GPT that starts from the weights of a causal model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt import run
from jaxgpt.systems.registry import build_system
from jaxgpt.systems.sigma import from_causal, orders
from jaxgpt.training.optimizers import make_optimizer
from jaxgpt.training.step import init_state, make_step
from tests.conftest import ROOT, refusal

pytestmark = pytest.mark.unoptimised

SIZES = {
    "system": "causal",
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.n_embd": 16,
    "model.block_size": 13,
    "model.vocab_size": 11,
}


def started(changes, **sigma):
    """A random causal model, and the σ-GPT that starts from it, with parameters."""
    config = configs.override(configs.base(), SIZES | changes)
    causal = build_system(config)
    params = causal.init(jax.random.key(0))
    # Large enough that a wrong position changes the loss.
    params = jax.tree.map(lambda a: a * 8 if a.ndim > 1 else a + 0.3, params)
    config = configs.override(from_causal.as_sigma(config), sigma)
    system = build_system(config)
    fresh = system.init(jax.random.key(1))
    found = from_causal.initial_params(params, fresh, system.model_config)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(found) == shapes(fresh)
    return causal, params, system, found


TOKENS = jax.random.randint(jax.random.key(2), (3, 13), 0, 11)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.bias": True},
        {"model.tied_head": False, "model.key_width": 5},
        {"model.positions": "rope", "model.bias": True},
        {"model.positions": "rope", "model.rope_pairs": "neighbours"},
        {"model.positions": "rope", "model.qk_norm": True, "model.rope_theta": 50.0},
    ],
)
@pytest.mark.parametrize("adaptive", [False, True])
def test_left_to_right_it_is_the_causal_model(changes, adaptive):
    causal, params, system, found = started(
        changes, **{"sigma.adaptive_norm": adaptive}
    )
    straight = orders.left_to_right(*TOKENS.shape)
    batch = {"tokens": TOKENS, "order": straight}
    expected = np.asarray(causal.nll(params, {"tokens": TOKENS}))
    np.testing.assert_allclose(system.nll(found, batch), expected, atol=1e-5)
    # Positions matter at all.
    moved = causal.nll(params, {"tokens": jnp.roll(TOKENS, 1, 1)})
    assert abs(np.asarray(moved) - expected).max() > 0.1


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_training_can_give_the_target_a_meaning(positions):
    _, _, system, found = started({"model.positions": positions})
    batch = {"tokens": TOKENS, "order": orders.random(jax.random.key(3), 3, 13)}
    gradient = jax.grad(lambda p: system.nll(p, batch).mean())(found)["positions"]
    changed = gradient["table" if positions == "rope" else "target_table"]
    assert (abs(np.asarray(changed)).max(1) > 0).all()
    optimizer = make_optimizer(system.config)
    step = make_step(system, optimizer)
    first = init_state(jax.tree.map(jnp.copy, found), optimizer, ema=False)
    state, metrics = step(first, 0, TOKENS)
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), found, state["params"])
    assert all(jax.tree.leaves(moved))


def test_a_beginning_token_is_new():
    for positions in ("learned", "rope"):
        _, params, system, found = started(
            {"model.positions": positions}, **{"sigma.begin_token": True}
        )
        assert len(found["table"]) == len(params["table"]) + 1
        np.testing.assert_array_equal(found["table"][:-1], params["table"])
        assert np.asarray(found["table"][-1]).any()
        nll = system.nll(
            found, {"tokens": TOKENS, "order": orders.left_to_right(3, 13)}
        )
        assert nll.shape == (3, 13)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model.positions": "alibi"}, "model.positions must be learned or rope"),
        ({"model.positions": "sinusoidal"}, "to start σ-GPT from, got 'sinusoidal'"),
        ({"model.mixer": "gru"}, "model.mixer must be attention for σ-GPT, got 'gru'"),
    ],
)
def test_what_sigma_gpt_cannot_be_is_refused(changes, reason):
    config = configs.override(configs.base(), SIZES | changes)
    assert reason in refusal(from_causal.as_sigma, config)


def test_it_starts_from_gpt2_weights():
    folder = ROOT / "parity_tests/golden/gpt2/tiny_perturbed_pretrained"
    start = run.load(str(folder), form="gpt2")
    system = build_system(from_causal.as_sigma(start.config))
    fresh = system.init(jax.random.key(1))
    params = from_causal.initial_params(start.params, fresh, system.model_config)
    tokens = jax.random.randint(jax.random.key(2), (2, 32), 0, 61)
    found = system.score(params, tokens, orders.left_to_right(2, 32))[1]
    np.testing.assert_allclose(found, start.score(tokens)[:, 1:], atol=1e-5)


def test_separate_tables_need_learned_positions():
    changes = {"sigma.separate_tables": True, "model.positions": "sinusoidal"}
    config = configs.override(configs.base(), changes)
    assert "sigma.separate_tables must be False" in refusal(configs.validate, config)
