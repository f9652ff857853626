import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt import systems
from jaxgpt.core import generate

T = 17


@pytest.fixture(scope="module", params=["sigma", "causal"])
def system_and_params(request):
    changes = {
        "system": request.param,
        "model.n_layer": 2,
        "model.n_head": 2,
        "model.n_embd": 16,
        "model.block_size": T,
        "model.vocab_size": 7,
    }
    system = systems.make(configs.override(configs.base(), changes))
    params = system.init(jax.random.key(0))
    return system, jax.tree.map(lambda a: a * 8 if a.ndim > 1 else a, params)


def ask(system, params, known, seed=3, **options):
    tokens = np.arange(known.size, dtype=np.int32).reshape(known.shape) % 7
    key = jax.random.key(seed)
    return tokens, system.sample(params, tokens, known, key, **options)


@pytest.mark.parametrize("length", [2, 9, T])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"temperature": 0.0}])
def test_cached_generation_equals_the_naive_one(system_and_params, length, options):
    known = np.arange(length) < np.array([[1], [1]])
    _, fast = ask(*system_and_params, known, **options)
    _, slow = ask(*system_and_params, known, cached=False, **options)
    np.testing.assert_array_equal(fast, slow)


def test_rows_with_more_known_tokens_keep_them(system_and_params):
    known = np.arange(T) < np.array([[1], [5], [T]])
    tokens, filled = ask(*system_and_params, known)
    _, naive = ask(*system_and_params, known, cached=False)
    np.testing.assert_array_equal(filled[known], tokens[known])
    np.testing.assert_array_equal(filled, naive)


def test_a_gap_anywhere_is_filled_and_the_rest_kept():
    changes = {"model.block_size": T, "model.vocab_size": 7, "model.n_layer": 1}
    changes |= {"model.n_embd": 12}
    system = systems.make(configs.override(configs.base(), changes))
    params = system.init(jax.random.key(0))
    known = np.isin(np.arange(T), [3, 4, 5, T - 1])[None]
    for order in ("random", "left-to-right", "fractal"):
        tokens, filled = ask(system, params, known, order=order)
        np.testing.assert_array_equal(filled[known], tokens[known])
        read, (own, target) = system.reading(known, order, jax.random.key(0))
        assert sorted(read[0]) == list(range(T))
        assert list(read[0][:4]) == [3, 4, 5, T - 1]
        np.testing.assert_array_equal(
            np.asarray(target)[0, :-1], np.asarray(own)[0, 1:]
        )


def test_seeds_and_rows_draw_differently_and_repeatably(system_and_params):
    known = np.arange(T) < np.ones((4, 1))
    tokens = np.zeros(known.shape, np.int32)
    draw = lambda seed: system_and_params[0].sample(
        system_and_params[1], tokens, known, jax.random.key(seed)
    )
    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).any()
    assert len({tuple(row) for row in draw(0)}) == 4


def test_nothing_is_compiled_for_other_lengths(system_and_params):
    known = lambda length, given: np.arange(length) < np.full((2, 1), given)
    ask(*system_and_params, known(T, 1))
    before = generate.complete._cache_size()
    for length, given in ((T, 4), (9, 2), (2, 1), (T, T)):
        ask(*system_and_params, known(length, given))
    assert generate.complete._cache_size() == before


def test_draws_follow_the_distribution():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    rows = jnp.tile(logits, (20000, 1))
    uniform = jax.random.uniform(jax.random.key(0), (20000,))

    def shares(temperature, top_k):
        drawn = generate.draw(uniform, rows, jnp.float32(temperature), top_k)
        return np.bincount(drawn, minlength=4) / 20000

    np.testing.assert_allclose(shares(1, 0), [0.5, 0.3, 0.15, 0.05], atol=0.015)
    np.testing.assert_allclose(shares(1, 2), [0.625, 0.375, 0, 0], atol=0.015)
    sharp = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(shares(0.5, 0), sharp / sharp.sum(), atol=0.015)
    np.testing.assert_array_equal(shares(0, 0), [1, 0, 0, 0])
