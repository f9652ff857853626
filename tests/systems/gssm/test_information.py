"""The decomposition against sums over every path of the latents."""

import itertools

import numpy as np
import pytest

from jaxgpt.errors import UserError
from jaxgpt.systems.gssm import information
from jaxgpt.systems.gssm.process import Stream
from tests.systems.gssm.conftest import PRODUCT, make
from tests.systems.gssm.test_beliefs import GRAPHS, paths

SMALL = {
    "observed parent": [
        {"name": "A", "state_dim": 2, "alpha": 0.5, "parents": ["X"]},
        {"name": "B", "state_dim": 2, "alpha": 0.5, "parents": ["A"], "mode": "slow"},
        {"name": "X", "state_dim": 3, "alpha": 0.4, "parents": ["X", "B", "A"]},
    ],
    "latent reads X": [
        {"name": "A", "state_dim": 3, "alpha": 0.5, "parents": ["X"]},
        {"name": "X", "state_dim": 3, "alpha": 0.4, "parents": ["A"]},
    ],
    "against topology": GRAPHS["parents against topology"],
    "no latent": [{"name": "X", "state_dim": 4, "alpha": 0.5, "parents": ["X"]}],
}


def entropy(p):
    p = p[p > 0]
    return -(p * np.log(p)).sum()


def mutual(joint):
    """Information of the last axis on all others."""
    joint = joint.reshape(-1, joint.shape[-1])
    return entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint)


def with_next(process, tokens):
    """p(latents now, next token, tokens), [d_1 .. d_n, V], by enumeration."""
    graph, V = process.graph, process.vocab_size
    found = np.zeros([*(node.state_dim for node in graph.latents), V])
    for token in range(V):
        for times, p in paths(process, [*tokens, token]):
            found[(*times[-2], token)] += p
    return found


def one_latent(joint, axis):
    others = tuple(i for i in range(joint.ndim - 1) if i != axis)
    return joint.sum(others)


@pytest.mark.parametrize("nodes", SMALL.values(), ids=SMALL)
def test_it_is_that_of_all_paths(nodes):
    process = make(nodes)
    graph, V = process.graph, process.vocab_size
    tokens = np.asarray(process.sample(Stream(0, "val", 2), 0, 4))
    found = information.by_token(graph, process.tables, tokens)
    steps = 2
    for row, t in itertools.product(range(len(tokens)), range(steps)):
        joint = with_next(process, tokens[row, : t + 1])
        joint /= joint.sum()
        check = lambda name, value, at=(row, t): np.testing.assert_allclose(
            found[name][at], value, rtol=0, atol=1e-12
        )
        check("entropy", entropy(joint.sum(tuple(range(joint.ndim - 1)))))
        check("information", mutual(joint))
        check("uncertainty", entropy(joint.sum(-1)))
        for axis, node in enumerate(graph.latents):
            alone = one_latent(joint, axis)
            check(f"information/{node.name}", mutual(alone))
            check(f"uncertainty/{node.name}", entropy(alone.sum(1)))
    # Before any token is read: the sum over all that may have come.
    prior = information.prior_information(graph, process.tables, steps)
    for t in range(steps):
        before = itertools.product(range(V), repeat=t)
        joint = sum(with_next(process, [0, *rest]) for rest in before)
        check = lambda name, value, t=t: np.testing.assert_allclose(
            prior[name][t], value, rtol=0, atol=1e-12
        )
        check("entropy", entropy(joint.sum(tuple(range(joint.ndim - 1)))))
        check("information", mutual(joint))
        for axis, node in enumerate(graph.latents):
            check(f"information/{node.name}", mutual(one_latent(joint, axis)))


def test_means_and_errors_are_over_the_sequences():
    process = make(PRODUCT)
    tokens = process.held_out(Stream(0, "val", 32), 64, 33)
    found = information.decompose(process, tokens)
    nll = process.score(tokens, "float64")
    error = nll.mean(1).std(ddof=1) / 8
    assert abs(found["entropy"] - nll.mean()) < 4 * error
    assert found["entropy_error"] < error
    assert found["predictable"] == found["token_entropy"] - found["entropy"]
    by_token = information.by_token(process.graph, process.tables, tokens)
    assert found["entropy_rate"] == pytest.approx(by_token["entropy"][:, 16:].mean())
    every = found["all_latents"]
    assert list(found["latents"]) == ["A", "B"]
    for name, latent in found["latents"].items():
        rows = by_token[f"information/{name}"].mean(1)
        assert latent["information"] == pytest.approx(rows.mean())
        assert latent["information_error"] == pytest.approx(rows.std(ddof=1) / 8)
        # More is known of both than of one.
        assert 0 < latent["information"] < every["information"]
        assert 0 < latent["prior_information"] < every["prior_information"]
    # Where X reads no token, all that the tokens say is said through the latents.
    through = every["prior_information"] - every["information"]
    assert through == pytest.approx(found["predictable"], abs=0.05)


def test_a_drawn_first_token_is_not_predicted():
    start, drawn = make(PRODUCT), make(PRODUCT, first_token="drawn")
    tokens = np.asarray(start.sample(Stream(0, "val", 3), 0, 12))
    find = lambda process, tokens: information.by_token(
        process.graph, process.tables, tokens, process.first_token
    )
    whole, rest = find(start, tokens), find(drawn, tokens[:, 1:])
    for name, array in whole.items():
        np.testing.assert_allclose(rest[name], array[:, 1:], atol=1e-13)
    whole, rest = (
        information.prior_information(p.graph, p.tables, steps, p.first_token)
        for p, steps in ((start, 11), (drawn, 10))
    )
    for name, array in whole.items():
        np.testing.assert_allclose(rest[name], array[1:], atol=1e-13)


def test_what_cannot_be_decomposed_is_refused(monkeypatch):
    process = make(PRODUCT)
    table = process.tables["O"] = process.tables["O"].copy()
    table[..., 0] += table[..., 3]
    table[..., 3] = 0
    with pytest.raises(UserError, match=r"token 1 of sequence 0, .* probability 0"):
        information.decompose(process, np.array([[0, 3, 1]]))
    monkeypatch.setattr(information, "LARGEST_TABLE", 80)
    with pytest.raises(UserError, match="12 joint states of the latents and 7 tokens"):
        information.decompose(process, np.array([[0, 1, 1]]))
