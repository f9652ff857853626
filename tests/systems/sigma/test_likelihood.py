"""Likelihood over orders, infilling, and what sigma_plus adds to training."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from jaxgpt import config as configs
from jaxgpt.sampling.state import ModelDecoder
from jaxgpt.systems import scoring
from jaxgpt.systems.registry import build_system
from jaxgpt.systems.sigma import likelihood, orders
from tests.systems.sigma.test_samplers import tiny_sigma

pytestmark = pytest.mark.unoptimised


def log_p_by_order(system, params, text, first=()):
    """log p(text | order) of every order that begins with `first`."""
    T = len(text)
    rest = [t for t in range(T) if t not in first]
    every = np.array([[*first, *p] for p in itertools.permutations(rest)])
    batch = {"tokens": jnp.tile(text, (len(every), 1)), "order": jnp.asarray(every)}
    return -np.asarray(jax.jit(system.nll)(params, batch), np.float64).sum(1)


def test_with_a_beginning_token_every_order_is_a_joint_distribution():
    system, params = tiny_sigma()
    texts = np.array(list(itertools.product(range(3), repeat=4)), np.int32)
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        batch = {
            "tokens": jnp.asarray(texts),
            "order": jnp.tile(jnp.array(order), (81, 1)),
        }
        nll_BT = jax.jit(system.nll)(params, batch)
        total = np.exp(-np.asarray(nll_BT).sum(1)).sum()
        assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("begin", ["true", "false"])
def test_many_orders_reach_the_mixture_of_all_of_them(begin):
    system, params = tiny_sigma(**{"sigma.begin_token": begin})
    text = np.array([2, 0, 1, 1], np.int32)
    first = () if begin == "true" else (0,)
    exact = log_p_by_order(system, params, text, first)
    drawn = likelihood.log_likelihoods(
        system, params, text[None], jax.random.key(0), 20_000
    )
    predicted = system.num_predicted
    found = likelihood.summary(drawn, predicted)
    mixture = logsumexp(exact) - np.log(len(exact))
    assert found["loss_mixture"] == pytest.approx(-mixture / predicted, abs=0.01)
    assert found["loss_averaged"] == pytest.approx(-exact.mean() / predicted, abs=0.01)
    assert found["order_deviation"] == pytest.approx(exact.std(), rel=0.03)
    # Every order drawn is one of them, with its own likelihood.
    distance = abs(drawn[0][:, None] - exact).min(1)
    assert distance.max() < 1e-4
    if begin == "false":
        assert len(exact) == 6


def test_the_bound_of_the_mixture_falls_with_more_orders():
    system, params = tiny_sigma()
    texts = np.array(list(itertools.product(range(3), repeat=4)), np.int32)[::3]
    drawn = likelihood.log_likelihoods(system, params, texts, jax.random.key(1), 64)
    losses = [
        np.mean(
            [
                likelihood.summary(part, 4)["loss_mixture"]
                for part in np.split(drawn, 64 // K, axis=1)
            ]
        )
        for K in (1, 4, 16, 64)
    ]
    assert losses == sorted(losses, reverse=True)
    whole = likelihood.summary(drawn, 4)
    assert whole["loss_mixture"] <= whole["loss_averaged"]
    assert losses[0] == pytest.approx(whole["loss_averaged"])


def test_a_consistent_model_has_no_deviation_over_orders():
    assert likelihood.summary(np.full((3, 5), -7.0), 4)["order_deviation"] == 0


def test_spans_have_their_length_and_leave_the_first_token():
    for ratio, length in ((0.15, 3), (0.5, 10), (0.99, 19), (0.001, 1)):
        missing = scoring.infill_spans(200, 20, ratio, seed=3)
        assert (missing.sum(1) == length).all()
        assert not missing[:, 0].any()
        assert (np.abs(np.diff(missing.astype(int), axis=1)).sum(1) <= 2).all()
        np.testing.assert_array_equal(
            missing, scoring.infill_spans(200, 20, ratio, seed=3)
        )
    assert len(np.unique(scoring.infill_spans(200, 20, 0.15, 3).argmax(1))) == 17


def test_infilling_scores_what_stands_in_the_gap():
    system, params = tiny_sigma(T=9, V=5)
    tokens = np.random.default_rng(0).integers(0, 5, (6, 9)).astype(np.int32)
    found = scoring.score_infilling(system, params, tokens, 0.5, seed=1)
    missing = scoring.infill_spans(6, 9, 0.5, 1)
    total, prefix = [], []
    for row in range(6):
        gap, given = np.flatnonzero(missing[row]), np.flatnonzero(~missing[row])
        order = np.concatenate([given, gap])[None]
        nll = np.asarray(system.score(params, tokens[row : row + 1], order)[1])[0]
        total.append(nll[-len(gap) :])
        straight = np.arange(9)[None]
        nll = np.asarray(system.score(params, tokens[row : row + 1], straight)[1])[0]
        prefix.append(nll[-8:][gap - 1])
    assert found["nll"] == pytest.approx(np.mean(total), rel=1e-5)
    assert found["nll_prefix"] == pytest.approx(np.mean(prefix), rel=1e-5)
    assert 0 <= found["match_span"] <= found["match"] <= 1


def test_a_left_to_right_model_gets_the_same_spans_and_the_prefix_alone():
    fields = {"system": "causal", "model.n_layer": 1, "model.n_head": 2}
    fields |= {"model.n_embd": 16, "model.block_size": 9, "model.vocab_size": 5}
    system = build_system(configs.override(configs.base(), fields))
    params = system.init(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 5, (6, 9)).astype(np.int32)
    found = scoring.score_infilling(system, params, tokens, 0.5, seed=1)
    assert set(found) == {"nll_prefix", "match", "match_span"}
    nll = np.asarray(system.score(params, tokens, None)[1])
    assert found["nll_prefix"] == pytest.approx(
        nll[scoring.infill_spans(6, 9, 0.5, 1)[:, 1:]].mean(), rel=1e-5
    )


PLUS = {"sigma.adaptive_norm": True, "model.qk_norm": True}


@pytest.mark.parametrize("kernels", ["cpu", "xla"])
@pytest.mark.parametrize("changes", [PLUS, {"model.positions": "rope"}])
def test_additions_keep_the_cache_equal_to_one_pass(changes, kernels):
    import dataclasses

    system, params = tiny_sigma(T=9, V=5, **changes)
    rng = np.random.default_rng(0)
    # A modulation of zero would hide it.
    params = jax.tree.map(
        lambda a: a + 0.3 * rng.normal(size=a.shape).astype("f"), params
    )
    system.model_config = dataclasses.replace(system.model_config, kernels=kernels)
    graphdef = jax.eval_shape(system._build, jax.random.key(0))
    from flax import nnx

    system.graphdef = nnx.split(graphdef)[0]
    tokens = jnp.asarray(rng.integers(0, 5, (2, 9)), jnp.int32)
    read, where = system.read(tokens, orders.random(jax.random.key(1), 2, 9))
    whole = jax.jit(lambda params: system.model(params)(read[:, :-1], where)[0])(params)
    decoder = ModelDecoder(system.graphdef)

    @jax.jit
    def in_pieces(params):
        cache = decoder.init_cache(params, 2, 9)
        pieces = []
        for start, end in ((0, 1), (1, 5), (5, 9)):
            here = tuple(index[:, start:end] for index in where)
            at = jnp.full(2, start)
            logits, cache = decoder.forward(params, read[:, start:end], here, cache, at)
            pieces.append(logits)
        return jnp.concatenate(pieces, 1)

    np.testing.assert_allclose(in_pieces(params), whole, atol=3e-4)


@pytest.mark.parametrize("begin", [False, True])
def test_rotations_know_distances_alone(begin):
    """Without its table a model with rotations sees no difference in a moved text."""
    changes = {"model.positions": "rope", "sigma.begin_token": begin}
    system, params = tiny_sigma(T=12, V=5, **changes)
    params["positions"]["table"] *= 0
    tokens = jax.random.randint(jax.random.key(0), (2, 8), 0, 5)
    own, target = jax.random.permutation(jax.random.key(1), 8), jnp.arange(8)
    logits = lambda *where: system.model(params)(tokens, where)[0]
    near, moved = logits(own, target), logits(own + 3, target + 3)
    np.testing.assert_allclose(near, moved, atol=1e-4)
    assert abs(near - logits(own, target + 3)).max() > 0.1
    assert abs(near - logits(own + 3, target)).max() > 0.1
    # The begin token's position is the one before the first.
    if begin:
        first = lambda place: own.at[0].set(place)
        begins = logits(first(12), target)
        np.testing.assert_allclose(
            begins, logits(first(2) + (own != own[0]) * 3, target + 3), atol=1e-4
        )


def test_adaptive_norms_start_as_plain_ones_and_then_see_the_target():
    plain, _ = tiny_sigma(T=9, V=5)
    adaptive, params = tiny_sigma(T=9, V=5, **{"sigma.adaptive_norm": True})
    without = jax.tree.map(lambda a: a, params)
    for block in without["transformer"]["blocks"].values():
        assert not block.pop("modulation")["linear"]["kernel"].any()
    tokens = jnp.arange(18, dtype=jnp.int32).reshape(2, 9) % 5
    order = orders.random(jax.random.key(1), 2, 9)
    batch = {"tokens": tokens, "order": order}
    np.testing.assert_allclose(
        adaptive.nll(params, batch), plain.nll(without, batch), rtol=1e-6
    )
    grads = jax.jit(jax.grad(lambda p: adaptive.nll(p, batch).mean()))(params)
    for block in grads["transformer"]["blocks"].values():
        assert abs(block["modulation"]["linear"]["kernel"]).max() > 0


def test_picking_rows_has_the_gradient_of_indexing():
    from jaxgpt.model.positions import pick_rows

    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(7, 3)), jnp.float32)
    index = jnp.asarray(rng.integers(0, 7, (4, 5)))
    weight = jnp.asarray(rng.normal(size=(4, 5, 3)), jnp.float32)
    loss = lambda pick: jax.grad(lambda t: (pick(t, index) * weight).sum())(table)
    np.testing.assert_allclose(
        loss(pick_rows), loss(lambda t, i: t[i]), rtol=1e-5, atol=1e-6
    )


def test_queries_and_keys_are_brought_to_unit_mean_square():
    from jaxgpt.model import layers

    qkv = jax.random.normal(jax.random.key(0), (2, 3, 3 * 2 * 4)) * 7
    heads = layers.normalise_heads(qkv, 2).reshape(2, 3, 3, 2, 4)
    np.testing.assert_allclose((heads[:, :, :2] ** 2).mean(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(heads[:, :, 2].reshape(2, 3, 8), qkv[..., 16:])


def test_a_share_of_rows_is_read_left_to_right():
    for kind in ("random", "fractal"):
        drawn = orders.training(
            jax.random.key(0), 4000, 9, kind, 0.0, jnp.float32(0.5), 0.25
        )
        straight = (np.asarray(drawn) == np.arange(9)).all(1).mean()
        assert straight == pytest.approx(0.25, abs=0.03)


def test_gaps_are_filled_after_what_surrounds_them():
    """Spans first, left to right, then the gaps between them, left to right."""
    drawn = np.asarray(orders.gaps(jax.random.key(0), 4000, 24))
    np.testing.assert_array_equal(np.sort(drawn, 1), np.tile(np.arange(24), (4000, 1)))
    falls = np.diff(drawn, axis=1) < 0
    assert falls.sum(1).max() == 1
    # Where it falls, what comes first ends: its share is anything from none to all.
    given = falls.argmax(1)[falls.any(1)] + 1
    assert given.min() == 1 and given.max() == 23
    assert given.mean() == pytest.approx(12, abs=0.5)


@pytest.mark.parametrize("kind", ["random", "left-to-right"])
def test_a_share_of_rows_fills_gaps(kind):
    draw = lambda infill: np.asarray(
        orders.training(
            jax.random.key(0), 4000, 24, kind, 0.0, jnp.float32(0), 0.5, infill
        )
    )
    without, drawn = draw(0.0), draw(0.25)
    changed = (without != drawn).any(1)
    assert (np.diff(drawn[changed], axis=1) < 0).sum(1).max() <= 1
    # Gaps of a row read in order are sometimes in order too.
    assert 0.1 < changed.mean() < 0.28


def test_far_apart_positions_halve_the_gaps():
    nothing = np.zeros(9, bool)
    assert orders.far_apart(nothing).tolist() == [0, 8, 4, 2, 6, 1, 3, 5, 7]
    ends = np.isin(np.arange(9), [0, 8])
    assert orders.far_apart(ends).tolist() == [4, 2, 6, 1, 3, 5, 7]
    for T in (1, 2, 13):
        assert sorted(orders.far_apart(np.zeros(T, bool))) == list(range(T))


def test_blocks_follow_one_another():
    known = np.arange(10) == 5
    order = orders.blocks(known, 4).tolist()
    assert sorted(order[:4]) == [0, 1, 2, 3]
    assert sorted(order[4:7]) == [4, 6, 7]
    assert sorted(order[7:]) == [8, 9]
    assert orders.blocks(np.ones(3, bool), 4).tolist() == []
