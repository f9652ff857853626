"""Predictions and beliefs against sums over every path of the latents."""

import itertools

import numpy as np
import pytest

from jaxgpt.errors import UserError
from jaxgpt.systems.gssm import likelihood
from jaxgpt.systems.gssm.process import Stream
from tests.systems.gssm.conftest import MIXED, PRODUCT, make


def nodes(*rows):
    names = ("name", "state_dim", "alpha", "parents", "mode", "kernel_type")
    return [dict(zip(names, row, strict=False)) for row in rows]


GRAPHS = {
    "mixed": MIXED,
    "product": PRODUCT,
    "slow and dead": nodes(
        ("S", 3, 0.4, [], "slow"), ("D", 2, 0.6, ["S"], "dead"), ("X", 3, 0.3, ["D"])
    ),
    "observed parent": nodes(
        ("A", 2, 0.5, ["X"]), ("B", 3, 0.5, ["X", "A"]), ("X", 4, 0.4, ["X", "B"])
    ),
    "parents against topology": nodes(
        ("B", 3, 0.5, ["A"]),
        ("A", 2, 0.5, [], "slow", "product"),
        ("X", 4, 0.4, ["B", "A"], "default", "product"),
    ),
    "unread latent": nodes(
        ("A", 2, 0.5), ("B", 2, 0.5, ["A"]), ("X", 3, 0.4, ["B"]), ("C", 2, 1, ["A"])
    ),
}


def paths(process, tokens):
    """Yields (states of the latents at each time, p(they and the tokens)) of all."""
    graph = process.graph
    latents = [node.name for node in graph.latents]
    dims = [range(node.state_dim) for node in graph.latents]
    steps = [list(itertools.product(*dims))] * (len(tokens) - 1)
    X = graph.observed.name
    for path in itertools.product(*steps):
        times = [(0,) * len(dims), *path]
        p = 1.0
        for t in range(1, len(tokens)):
            old = dict(zip(latents, times[t - 1], strict=True)) | {X: tokens[t - 1]}
            new = dict(zip(latents, times[t], strict=True)) | {X: tokens[t]}
            for node in graph.order:
                index = [
                    (old if name in (node.name, X) else new)[name]
                    for name in graph.inputs(node)
                ]
                p *= process.tables[node.name][(*index, new[node.name])]
        yield times, p


def enumerated_belief(process, tokens):
    """p(latents now | tokens), [d_1 .. d_n], unnormalised: it sums to p(tokens)."""
    belief = np.zeros([node.state_dim for node in process.graph.latents])
    for times, p in paths(process, tokens):
        belief[times[-1]] += p
    return belief


@pytest.mark.parametrize("nodes", GRAPHS.values(), ids=GRAPHS)
def test_they_are_the_sums_over_all_paths(nodes):
    process = make(nodes)
    tokens = np.asarray(process.sample(Stream(0, "val", 1), 0, 4))
    last = 3 if likelihood.joint_states(process.graph) <= 12 else 2
    tokens = tokens[:, : last + 1]
    find = lambda wanted: process.score(tokens, "float64", wanted)
    predictive, joint, beliefs = find("predictive"), find("joint"), find("beliefs")
    names = [node.name for node in process.graph.latents]
    assert list(beliefs) == names
    for t in range(last + 1):
        before = tokens[0, : t + 1]
        weights = enumerated_belief(process, before)
        total = weights.sum()
        np.testing.assert_allclose(joint[0, t], weights / total, rtol=0, atol=1e-12)
        for axis, name in enumerate(names):
            rest = tuple(i for i in range(len(names)) if i != axis)
            expected = weights.sum(rest) / total
            np.testing.assert_allclose(beliefs[name][0, t], expected, atol=1e-12)
        if t < last:
            for token in range(process.vocab_size):
                after = enumerated_belief(process, [*before, token]).sum()
                found = predictive[0, t, token]
                np.testing.assert_allclose(found, after / total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("first_token", ["start", "drawn"])
@pytest.mark.parametrize("dense", [1, 1000], ids=["factorised", "dense"])
@pytest.mark.parametrize("nodes", [MIXED, PRODUCT], ids=["mixed", "product"])
def test_predictions_have_the_exact_likelihood(nodes, dense, first_token, monkeypatch):
    monkeypatch.setattr(likelihood, "DENSE_STATES", dense)
    likelihood.compute.clear_cache()
    process = make(nodes, first_token=first_token)
    tokens = np.asarray(process.sample(Stream(0, "val", 5), 0, 40))
    p = process.score(tokens, "float64", "predictive")
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-12)
    nll = process.score(tokens, "float64")
    chosen = np.take_along_axis(p, tokens[:, 1:, None], 2)[..., 0]
    np.testing.assert_allclose(-np.log(chosen), nll, rtol=0, atol=1e-12)
    beliefs = process.score(tokens, "float64", "beliefs")
    joint = process.score(tokens, "float64", "joint")
    assert all(belief.shape[:2] == tokens.shape for belief in beliefs.values())
    np.testing.assert_allclose(joint.sum(tuple(range(2, joint.ndim))), 1, atol=1e-12)


def test_a_drawn_first_token_says_as_much_as_one_after_the_start():
    process, drawn = make(MIXED), make(MIXED, first_token="drawn")
    tokens = np.asarray(process.sample(Stream(0, "val", 3), 0, 20))
    for wanted in ("predictive", "joint"):
        whole = process.score(tokens, "float64", wanted)
        found = drawn.score(tokens[:, 1:], "float64", wanted)
        np.testing.assert_allclose(found, whole[:, 1:], atol=1e-14)


@pytest.mark.parametrize("wanted", ["predictive", "beliefs", "joint"])
def test_they_do_not_depend_on_how_many_rows_go_at_a_time(wanted, monkeypatch):
    process = make(MIXED)
    tokens = np.asarray(process.sample(Stream(0, "val", 7), 0, 12))
    whole = process.score(tokens, "float64", wanted)
    monkeypatch.setattr(likelihood, "LARGEST_BELIEF", 800)
    parts = process.score(tokens, "float64", wanted)
    find = lambda found: found["Z2"] if wanted == "beliefs" else found
    np.testing.assert_allclose(find(parts), find(whole), rtol=1e-13)


def test_after_an_impossible_token_all_is_0():
    process = make(PRODUCT)
    table = process.tables["O"].copy()
    table[..., 0] += table[..., 3]
    table[..., 3] = 0
    process = process.with_tables(process.tables | {"O": table})
    tokens = np.array([[0, 1, 3, 1, 2]])
    find = lambda wanted: process.score(tokens, "float64", wanted)
    np.testing.assert_array_equal(find("nll")[0] == np.inf, [False, True, True, True])
    sums = find("predictive")[0].sum(-1)
    np.testing.assert_allclose(sums, [1, 1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(find("beliefs")["A"][0].sum(-1), [1, 1, 0, 0, 0])


def test_a_result_larger_than_the_machine_is_refused():
    tokens = np.broadcast_to(np.zeros(1, int), (1 << 20, 1 << 20))
    with pytest.raises(UserError, match=r"24 numbers for each of 1048576 x 1048576"):
        likelihood.by_rows(make(MIXED).graph, {}, tokens, "start", "", None, size=24)
