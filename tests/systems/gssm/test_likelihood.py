import itertools

import numpy as np
import pytest

from jaxgpt.errors import UserError
from jaxgpt.systems.gssm import baselines, graph, likelihood
from jaxgpt.systems.gssm.process import Stream
from tests.systems.gssm.conftest import MIXED, PRODUCT, make

CHAIN = [{"name": "X", "state_dim": 5, "alpha": 0.5, "parents": ["X"]}]


def enumerated(process, tokens):
    """-log p of every prefix of one sequence, by summing over all latent paths."""
    nodes = process.graph
    dims = [range(node.state_dim) for node in nodes.latents]
    names = [node.name for node in nodes.order]
    p = {(0,) * len(dims): 1.0}
    result = []
    for old_x, new_x in itertools.pairwise(tokens):
        after = dict.fromkeys(itertools.product(*dims), 0.0)
        for z, weight in p.items():
            for new_z in after:
                old = dict(zip(names, (*z, old_x), strict=True))
                new = dict(zip(names, (*new_z, new_x), strict=True))
                chance = weight
                for node in nodes.order:
                    still_old = (node.name, nodes.observed.name)
                    index = [
                        old[n] if n in still_old else new[n] for n in nodes.inputs(node)
                    ]
                    chance *= process.tables[node.name][(*index, new[node.name])]
                after[new_z] += chance
        result.append(-np.log(sum(after.values())))
        p = after
    return np.diff(result, prepend=0)


@pytest.mark.parametrize("dense", [1, 1000], ids=["factorised", "dense"])
@pytest.mark.parametrize("nodes", [MIXED, PRODUCT, CHAIN], ids=["mixed", "prod", "X"])
def test_it_is_the_sum_over_all_paths(nodes, dense, monkeypatch):
    monkeypatch.setattr(likelihood, "DENSE_STATES", dense)
    likelihood.compute.clear_cache()
    process = make(nodes)
    tokens = np.asarray(process.sample(Stream(0, "val", 2), 0, 6))
    found = process.score(tokens, "float64")
    for row, expected in zip(found, tokens, strict=True):
        np.testing.assert_allclose(row, enumerated(process, expected), atol=1e-12)


def test_probabilities_of_all_continuations_add_up_to_1(any_process):
    V = any_process.vocab_size
    start = np.asarray(any_process.sample(Stream(0, "val", 1), 0, 9))
    tokens = np.concatenate([np.repeat(start, V, 0), np.arange(V)[:, None]], 1)
    last = any_process.score(tokens)[:, -1]
    assert np.exp(-last).sum() == pytest.approx(1, abs=1e-5)


def test_first_token_drawn_is_conditioned_on():
    process, drawn = make(MIXED), make(MIXED, first_token="drawn")
    tokens = np.asarray(process.sample(Stream(0, "val", 8), 0, 20))
    np.testing.assert_allclose(
        drawn.score(tokens[:, 1:]), process.score(tokens)[:, 1:], rtol=1e-6
    )


def test_scores_do_not_depend_on_how_many_rows_go_at_a_time(any_process, monkeypatch):
    tokens = np.asarray(any_process.sample(Stream(0, "val", 7), 0, 12))
    whole = any_process.score(tokens)
    monkeypatch.setattr(likelihood, "LARGEST_BELIEF", 50)
    np.testing.assert_allclose(any_process.score(tokens), whole, rtol=1e-5)


def test_an_impossible_token_costs_infinity_and_so_does_the_rest():
    nodes = graph.parse_graph(CHAIN, "test")
    table = np.array([[0.5, 0.5, 0, 0, 0]] * 5)
    tokens = np.array([[0, 1, 0, 2, 1], [0, 1, 1, 1, 1]])
    found = likelihood.forward(nodes, {"X": table}, tokens)
    np.testing.assert_allclose(found[0], [np.log(2)] * 2 + [np.inf] * 2, rtol=1e-6)
    np.testing.assert_allclose(found[1], np.log(2), rtol=1e-6)


def test_context_kernels_score_with_the_kernels_of_their_batch():
    nodes = [MIXED[0], {**MIXED[3], "parents": ["Z1"], "mode": "context"}]
    process = make(nodes)
    tokens = process.held_out(Stream(0, "val", 4), 12, 200)
    given = process.score_held_out(tokens, Stream(0, "val", 4), "float32")
    wrong = process.score_held_out(tokens, Stream(1, "val", 4), "float32")
    assert given.mean() < wrong.mean() - 0.5


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([[0, 1, 9]], r"states 0 \.\. 4 of the graph's X, got 9"),
        ([[0, -1, 2]], "X, got -1"),
        ([[1, 1, 2]], "do not begin with the start state 0"),
    ],
)
def test_tokens_of_no_such_sequence_are_refused(tokens, expected):
    with pytest.raises(UserError, match=expected):
        make(MIXED).score(np.array(tokens))


def test_too_many_joint_states_are_refused():
    names = [f"Z{i}" for i in range(40)]
    nodes = [{"name": n, "state_dim": 3, "alpha": 1} for n in names]
    for i in range(1, 40):
        nodes[i]["parents"] = [names[i - 1]]
    nodes.append({"name": "X", "state_dim": 2, "alpha": 1, "parents": names[-1:]})
    process = make(nodes)
    tokens = np.asarray(process.sample(Stream(0, "val", 2), 0, 5))
    with pytest.raises(UserError, match=r"1\.22e\+19 joint states"):
        process.score(tokens)


def test_baselines_are_the_entropies_of_what_they_know():
    process = make(CHAIN)
    fit = process.held_out(Stream(0, "fit", 128), 512, 257)
    tokens = process.held_out(Stream(0, "val", 128), 256, 257)
    exact = baselines.mean(process.score(tokens))
    bigram = baselines.bigram(fit, tokens, 5)
    assert bigram.mean() == pytest.approx(exact.value, abs=1e-3)
    p = np.bincount(tokens[:, 1:].ravel(), minlength=5) / tokens[:, 1:].size
    entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
    assert baselines.unigram(fit, tokens, 5).mean() == pytest.approx(entropy, abs=5e-3)
    assert baselines.zlib_nats(tokens, 5).mean() > exact.value


def test_a_token_never_seen_still_has_a_probability():
    fit, tokens = np.zeros((1, 9), int), np.array([[0, 1, 2]])
    for baseline in (baselines.unigram, baselines.bigram):
        assert np.isfinite(baseline(fit, tokens, 3)).all()


def test_standard_errors_are_over_independent_sequences():
    scores = np.repeat(np.array([[1.0], [3.0], [1.0], [3.0]]), 5, 1)
    assert baselines.mean(scores).error == pytest.approx(1 / 3**0.5)
    assert baselines.mean(scores, group=2).error == 0
    assert baselines.mean(scores[:1]).error is None
    scores[0, 2] = np.inf
    assert baselines.mean(scores) == baselines.Mean(np.inf, None)
