import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt.systems.registry import build_system
from jaxgpt.systems.sigma import orders

pytestmark = pytest.mark.unoptimised


def test_fractal_order_halves_what_is_left():
    assert orders.fractal(0).tolist() == []
    assert orders.fractal(7).tolist() == [3, 5, 1, 4, 6, 2, 0]
    for T in (1, 2, 13, 64):
        assert sorted(orders.fractal(T)) == list(range(T))


def test_random_orders_are_uniform():
    drawn = orders.random(jax.random.key(0), 12000, 3)
    counts = [
        int((np.asarray(drawn) == np.array(p)).all(1).sum())
        for p in itertools.permutations(range(3))
    ]
    assert sum(counts) == 12000
    np.testing.assert_allclose(counts, 2000, atol=200)


@pytest.mark.parametrize(
    ("kind", "start", "progress", "share"),
    [
        ("random", 0.0, 0.0, 1.0),
        ("left-to-right", 0.0, 0.5, 0.0),
        ("curriculum", 0.0, 0.0, 0.0),
        ("curriculum", 0.0, 0.25, 0.25),
        ("curriculum", 0.4, 0.0, 0.4),
        ("curriculum", 0.4, 0.5, 0.7),
        ("curriculum", 0.0, 1.0, 1.0),
    ],
)
def test_share_of_random_orders(kind, start, progress, share):
    key, progress = jax.random.key(0), jnp.float32(progress)
    drawn = orders.training(key, 2000, 9, kind, start, progress)
    np.testing.assert_array_equal(np.sort(drawn, 1), np.tile(np.arange(9), (2000, 1)))
    shuffled = (np.asarray(drawn) != np.arange(9)).any(1).mean()
    assert shuffled == pytest.approx(share, abs=0.04)


@pytest.fixture(scope="module")
def system():
    changes = {
        "model.n_layer": 1,
        "model.n_head": 2,
        "model.n_embd": 16,
        "model.block_size": 11,
        "model.vocab_size": 7,
        "sigma.order": "curriculum",
    }
    return build_system(configs.override(configs.base(), changes))


def test_evaluation_does_not_depend_on_the_step_or_the_batching(system):
    from jaxgpt.systems.scoring import mean_losses

    params = system.init(jax.random.key(0))
    tokens = np.arange(10 * 11, dtype=np.int32).reshape(10, 11) % 7
    whole = mean_losses(system.eval_nll(params, tokens, 10, 0))
    assert set(whole) == {"loss", "loss_left_to_right"}
    for rows in (1, 3, 4):
        parts = mean_losses(system.eval_nll(params, tokens, rows, 0))
        for name, value in parts.items():
            assert value == pytest.approx(whole[name], rel=1e-6)


def test_scoring_follows_the_given_order(system):
    params = system.init(jax.random.key(0))
    tokens = jnp.arange(11)[None] % 7
    order = jnp.asarray(orders.fractal(11))[None]
    logits, nll = system.score(params, tokens, order)
    assert logits.shape == (1, 10, 7)
    log_p = jax.nn.log_softmax(logits)
    for t in range(10):
        token = int(tokens[0, order[0, t + 1]])
        assert float(nll[0, t]) == pytest.approx(-float(log_p[0, t, token]), rel=1e-5)
    batch = {"tokens": tokens, "order": order}
    np.testing.assert_allclose(system.nll(params, batch), nll, rtol=1e-6)
