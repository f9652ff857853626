import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgpt.model import rng
from jaxgpt.systems.gssm import sequences
from jaxgpt.systems.gssm.process import Stream
from tests.systems.gssm.conftest import MIXED, make


def test_hashed_uniform_numbers_are_uniform_and_never_0_or_1():
    counter = jnp.arange(1 << 20, dtype=jnp.uint32)
    drawn = rng.uniform(counter, jax.random.bits(jax.random.key(0), (2,), "uint32"))
    u = np.asarray(drawn, np.float64)
    assert u.min() > 0 and u.max() < 1
    assert stats.chisquare(np.histogram(u, 256, (0, 1))[0]).pvalue > 1e-4
    for lag in (1, 2, 5, 128, 640):
        pairs = np.histogram2d(u[lag:], u[:-lag], 16, ((0, 1), (0, 1)))[0]
        assert stats.chisquare(pairs.ravel()).pvalue > 1e-4, lag


def test_extreme_bits_stay_inside_the_interval():
    largest = np.float32(((2**32 - 1) >> 9) * np.float32(2**-23) + np.float32(2**-24))
    assert np.float32(2**-24) > 0
    assert largest < 1


@pytest.mark.parametrize("states", [1, 2, 3, 4, 5, 8, 31, 32, 33, 256])
def test_binary_search_finds_the_first_threshold_above(states):
    generated = np.random.default_rng(states)
    table = generated.dirichlet(np.full(states, 0.3), 50)
    row, u = generated.integers(0, 50, 4000), generated.random(4000).astype("f4")
    thresholds = sequences.cumulative(table, jnp.float32)
    sums = np.cumsum(table, -1)[:, :-1].astype("f4")
    expected = (sums[row] <= u[:, None]).sum(1)
    found = sequences._search(thresholds, jnp.asarray(row), jnp.asarray(u))
    np.testing.assert_array_equal(found, expected)


def test_states_without_probability_are_never_drawn():
    """Also where rows sum to less than 1, as kernels that are given may."""
    table = np.array(
        [[0.0, 0.5, 0.5 - 1e-6, 0.0, 0.0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    )
    u = jnp.asarray([2**-24, 0.5, 1 - 2**-24], jnp.float32)
    for made in (table, jnp.asarray(table, jnp.float32)):
        thresholds = sequences.cumulative(made, jnp.float32)
        for row, expected in enumerate([[1, 2, 2], [4, 4, 4], [0, 0, 0]]):
            found = sequences._search(thresholds, jnp.full(3, row), u)
            assert found.tolist() == expected


def test_transitions_are_those_of_the_tables(any_process):
    """Chi-square of each node on a million transitions; cells expect 5 or more."""
    nodes = any_process.graph
    steps, rows = 2048, 512
    draw = jax.jit(
        functools.partial(sequences.sample_states, nodes, rows=rows, steps=steps)
    )
    drawn = draw(any_process.thresholds, jax.random.key(5))
    states = {
        node.name: np.pad(np.asarray(s), ((1, 0), (0, 0)))
        for node, s in zip(nodes.order, drawn, strict=True)
    }
    for node in nodes.order:
        old = {node.name, nodes.observed.name}
        inputs = [
            states[n][:-1] if n in old else states[n][1:] for n in nodes.inputs(node)
        ]
        cell = np.ravel_multi_index([*inputs, states[node.name][1:]], nodes.shape(node))
        table = any_process.tables[node.name]
        counts = np.bincount(cell.ravel(), minlength=table.size).reshape(table.shape)
        assert counts.sum() == steps * rows
        totals = counts.sum(-1, keepdims=True)
        expected = totals * table
        large = expected >= 5
        # What is left of a row is one more cell.
        rest = lambda a, large=large: np.where(large, 0, a).sum(-1)
        difference = ((counts - expected) ** 2 / np.where(large, expected, 1))[large]
        rest_expected = rest(expected)
        kept = rest_expected >= 5
        statistic = (
            difference.sum()
            + (((rest(counts) - rest_expected) ** 2)[kept] / rest_expected[kept]).sum()
        )
        freedom = large.sum() + kept.sum() - (totals > 0).sum()
        assert stats.chi2.sf(statistic, freedom) > 1e-4, node.name


def test_conventions_of_the_first_token():
    start = np.asarray(make(MIXED).sample(Stream(0, "train", 7), 3, 33))
    drawn = np.asarray(
        make(MIXED, first_token="drawn").sample(Stream(0, "train", 7), 3, 32)
    )
    assert start.shape == (7, 33) and start.dtype == np.int32
    assert (start[:, 0] == 0).all()
    np.testing.assert_array_equal(start[:, 1:], drawn)


def test_a_batch_is_a_pure_function_of_seed_split_and_step(any_process):
    def draw(seed, split, step):
        return np.asarray(any_process.sample(Stream(seed, split, 16), step, 21))

    first = draw(0, "train", 5)
    np.testing.assert_array_equal(first, draw(0, "train", 5))
    for other in ((1, "train", 5), (0, "val", 5), (0, "train", 6), (0, "fit", 5)):
        assert (draw(*other) != first).mean() > 0.2
    rows = {row.tobytes() for row in np.concatenate([first, draw(0, "train", 6)])}
    assert len(rows) == 32


def test_held_out_sequences_do_not_depend_on_how_many_are_asked_for(any_process):
    few = any_process.held_out(Stream(0, "val", 4), 5, 17)
    many = any_process.held_out(Stream(0, "val", 4), 11, 17)
    assert few.shape == (5, 17)
    np.testing.assert_array_equal(few, many[:5])
