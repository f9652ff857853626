"""The bound, by enumeration: of all masks, of all orders, and of all texts."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxgpt.systems.diffusion import masks
from jaxgpt.systems.diffusion.system import MaskedDiffusion
from tests.systems.diffusion.tiny import (
    log_p_in_order,
    orders,
    texts,
    tiny,
    true_log_p,
)

pytestmark = pytest.mark.unoptimised


def test_masks_of_equal_size_are_equally_likely_and_a_block_counts_as_a_whole():
    B, T, L = 3000, 6, 3
    draw = jax.jit(lambda key: masks.draw(key, B, T, L))
    masked, weight = map(np.asarray, draw(jax.random.key(0)))
    masked, weight = masked.reshape(B * 2, L), weight.reshape(B * 2, L)
    size = masked.sum(1)
    # Evenly spaced levels: as many of each size, but for rounding.
    assert np.ptp(np.bincount(size, minlength=L + 1)[1:]) <= 2
    assert size.min() == 1
    np.testing.assert_allclose(weight, np.where(masked, L / size[:, None], 0))
    np.testing.assert_allclose(weight.sum(1), L, rtol=1e-6)
    for k in (1, 2):
        code = masked[size == k] @ (1 << np.arange(L))
        found = [(code == c).sum() for c in np.unique(code)]
        assert len(found) == math.comb(L, k)
        assert stats.chisquare(found).pvalue > 0.01


def test_a_row_has_every_level_on_average():
    draw = jax.jit(lambda key: masks.draw(key, 5, 4, 4)[0].sum(1))
    sizes = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(1), 2000)))
    for row in range(5):
        assert stats.chisquare(np.bincount(sizes[:, row])[1:]).pvalue > 0.01


@pytest.mark.parametrize("L", [1, 4])
def test_the_weights_are_the_integral_over_time(L):
    for k in range(1, L + 1):
        density = lambda t, k=k: t**k * (1 - t) ** (L - k) / t
        of_time, _ = integrate.quad(density, 0, 1)
        probability = 1 / L / math.comb(L, k)
        assert probability * L / k == pytest.approx(of_time)


def bound(system, params, found):
    """The bound [N] of each text: `nll` of every mask, by its probability."""
    N, T = found.shape
    L = system.block_length
    assert L == T
    total = np.zeros(N)
    nll = jax.jit(system.nll) if params else system.nll
    for mask in itertools.product((False, True), repeat=T):
        if k := sum(mask):
            masked = np.broadcast_to(np.array(mask), found.shape)
            weight = jnp.asarray(np.where(masked, L / k, 0))
            batch = {"tokens": found, "masked": masked, "weight": weight}
            batch = jax.tree.map(jnp.asarray, batch)
            total += np.asarray(nll(params, batch)).sum(1) / L / math.comb(L, k)
    return total


def test_the_bound_is_the_mean_over_all_orders():
    system, params = tiny(T=3)
    found = texts(3, 3)
    logits = jax.jit(lambda tokens, masked: system.logits(params, tokens, masked))
    log_p = true_log_p(logits, found)
    in_order = [log_p_in_order(log_p, order, 3) for order in orders(3, 3, 3)]
    assert len(in_order) == 6
    assert np.ptp(in_order, 0).max() > 0.1  # The orders disagree.
    np.testing.assert_allclose(
        bound(system, params, found), -np.mean(in_order, 0), rtol=1e-5
    )


def test_the_bound_of_a_consistent_model_is_exact():
    V, T = 3, 3
    p = np.random.default_rng(3).dirichlet(np.full(V**T, 0.5))
    found = texts(T, V)

    class Table(MaskedDiffusion):
        def logits(self, params, tokens_BT, masked_BT, dropout_key=None):
            agrees = (found[None] == tokens_BT[:, None]) | masked_BT[:, None]
            weight = agrees.all(-1) * p
            is_token = jax.nn.one_hot(found, V)
            return jnp.log(jnp.einsum("bn,ntv->btv", weight, is_token) + 1e-30)

    system = Table(tiny(T, V)[0].config)
    np.testing.assert_allclose(bound(system, {}, found), -np.log(p), rtol=1e-4)


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_blocks_of_one_token_are_an_autoregressive_model(positions):
    system, params = tiny(T=4, V=3, length=1, **{"model.positions": positions})
    found = jnp.asarray(texts(4, 3))
    batch = system.train_batch(found, jax.random.key(0), 0)
    assert batch["masked"].all() and (batch["weight"] == 1).all()
    nll = np.asarray(jax.jit(system.nll)(params, batch), np.float64)
    assert np.exp(-nll.sum(1)).sum() == pytest.approx(1, abs=1e-5)
    logits = np.asarray(jax.jit(system.logits)(params, found, batch["masked"]))
    spread = 0
    for t in range(4):
        # Of all texts that begin alike: they have the same logits here.
        alike = logits[:, t].reshape(3**t, 3 ** (4 - t), 3)
        np.testing.assert_allclose(alike, alike[:, :1] + 0 * alike, atol=1e-6)
        spread = max(spread, np.ptp(alike[:, 0], 0).max())
    assert spread > 0.1


CHANGES = {
    "learned": {},
    "rope": {"model.positions": "rope"},
    "sinusoidal": {"model.positions": "sinusoidal"},
    "scanned": {"model.scan_layers": True, "model.remat": "dots"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_block_read_twice_is_the_whole_text_read_once(name):
    system, params = tiny(T=4, V=5, **CHANGES[name])

    class Twice(MaskedDiffusion):
        in_blocks = True

    twice = Twice(tiny(T=4, V=5, length=4, **CHANGES[name])[0].config)
    tokens = jax.random.randint(jax.random.key(0), (6, 4), 0, 5)
    masked = jax.random.bernoulli(jax.random.key(1), 0.5, (6, 4))
    one, two = (jax.jit(s.logits)(params, tokens, masked) for s in (system, twice))
    np.testing.assert_allclose(one, two, atol=2e-5)


def test_a_block_sees_itself_and_what_is_before_it():
    system, params = tiny(T=6, V=5, length=2)
    tokens = jax.random.randint(jax.random.key(0), (1, 6), 0, 5)
    masked = jnp.array([[False, True, True, False, True, True]])
    logits = jax.jit(system.logits)
    before = logits(params, tokens, masked)

    def changed(place):
        after = logits(params, tokens.at[0, place].add(1) % 5, masked)
        return [t for t in range(6) if abs(after - before)[0, t].max() > 1e-6]

    # A masked token is seen by later blocks, which read it without its mask.
    assert changed(0) == [0, 1, 2, 3, 4, 5]
    assert changed(1) == [2, 3, 4, 5]
    assert changed(3) == [2, 3, 4, 5]
    assert changed(5) == []


def test_evaluation_is_the_mean_over_masks_whatever_the_rows():
    system, params = tiny(T=4, length=2, **{"diffusion.eval_masks": 3})
    windows = np.asarray(jax.random.randint(jax.random.key(0), (5, 4), 0, 3))
    found = system.eval_nll(params, windows, 2, seed=1)[""]
    again = system.eval_nll(params, windows, 5, seed=1)[""]
    np.testing.assert_allclose(found, again, rtol=1e-5)
    key = jax.random.fold_in(jax.random.key(1), 5)  # Of the stream "eval_order".
    batches = system.eval_batches(windows, key)
    each = [jax.jit(system.nll)(params, batch) for batch in batches.values()]
    assert len(each) == 3
    np.testing.assert_allclose(found, np.mean(each, 0), rtol=1e-5)


def test_a_run_counts_what_it_computes():
    whole, blocks = (tiny(T=8, V=3, length=length)[0] for length in (0, 2))
    assert whole.num_predicted == blocks.num_predicted == 8
    once = whole.flops_per_token(1000)
    assert blocks.flops_per_token(1000) == 2 * once - 6 * 3 * 16
