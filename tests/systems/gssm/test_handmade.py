import numpy as np
import pytest

import jaxgpt
from jaxgpt import config as configs
from jaxgpt import gssm
from jaxgpt.systems.gssm import handmade
from jaxgpt.systems.gssm.graph import HANDMADE
from jaxgpt.systems.gssm.process import Stream, make_process
from tests.conftest import refusal

pytestmark = pytest.mark.unoptimised

LOG_2 = np.log(2)


def tokens_of(made, length, count=64):
    graph = gssm.Graph(made.nodes, kernels=made.kernels)
    tokens_NT = gssm.sample(graph, count, length)
    return graph, tokens_NT, gssm.exact_nll(graph, tokens_NT)


@pytest.mark.parametrize(("symbols", "length"), [(2, 1), (3, 2), (4, 3)])
def test_copy(symbols, length):
    made = gssm.copy(symbols, length)
    _, tokens_NT, nll_NT = tokens_of(made, 1 + 4 * 2 * length)
    rounds = tokens_NT[:, 1:].reshape(-1, 2, length)
    np.testing.assert_array_equal(rounds[:, 0], rounds[:, 1])
    assert len(np.unique(rounds[:, 0], axis=0)) == symbols**length
    # Whole rounds: every sequence costs exactly the entropy rate.
    expected = np.full(len(nll_NT), np.log(symbols) / 2)
    np.testing.assert_allclose(nll_NT.mean(1), expected, atol=1e-12)
    assert made.entropy_rate == pytest.approx(np.log(symbols) / 2)


@pytest.mark.parametrize("bits", [1, 3, 6])
def test_parity(bits):
    made = gssm.parity(bits)
    _, tokens_NT, nll_NT = tokens_of(made, 1 + 5 * (bits + 1))
    rounds = tokens_NT[:, 1:].reshape(-1, bits + 1)
    np.testing.assert_array_equal(rounds[:, :-1].sum(1) % 2, rounds[:, -1])
    assert 0.3 < rounds[:, -1].mean() < 0.7
    np.testing.assert_allclose(nll_NT.mean(1), made.entropy_rate, atol=1e-12)
    assert made.entropy_rate == pytest.approx(bits / (bits + 1) * LOG_2)


def test_induction():
    made = gssm.induction(3, noise=0.3)
    graph, tokens_NT, _ = tokens_of(made, 41)
    p_NTV = gssm.predictive(graph, tokens_NT)
    for tokens_T, p_TV in zip(tokens_NT.tolist(), p_NTV, strict=True):
        after = {}
        for t, token in enumerate(tokens_T[:-1]):
            if t:
                after[tokens_T[t - 1]] = token
            expected = np.full(3, 0.1)
            expected[after.get(token, 0)] += 0.7
            np.testing.assert_allclose(p_TV[t], expected, atol=1e-12)
    entropy = -(0.8 * np.log(0.8) + 0.2 * np.log(0.1))
    assert made.entropy_rate == pytest.approx(entropy)


def test_a_controller():
    """The even process: ones come in pairs, a third of the states is certain."""
    made = gssm.controller([[0, 1], [0, 0]], [[0.5, 0.5], [0, 1]])
    assert made.entropy_rate == pytest.approx(2 / 3 * LOG_2, rel=1e-12)
    _, tokens_NT, nll_NT = tokens_of(made, 2001)
    for tokens_T in tokens_NT[:8]:
        runs = "".join(map(str, tokens_T[1:])).split("0")
        assert all(len(run) % 2 == 0 for run in runs[:-1])
    assert nll_NT.mean() == pytest.approx(made.entropy_rate, abs=0.005)
    found = gssm.decompose(*tokens_of(made, 65)[:2])
    assert found["entropy_rate"] == pytest.approx(made.entropy_rate, abs=0.03)
    assert found["latents"]["S"]["uncertainty"] == pytest.approx(0, abs=1e-12)
    # In two states by turns, and in one that is never left.
    turns = gssm.controller([[1, 1], [0, 0]], [[0.5, 0.5], [1, 0]])
    assert turns.entropy_rate == pytest.approx(LOG_2 / 2)
    stays = gssm.controller([[1, 1], [1, 1]], [[0.5, 0.5], [1, 0]])
    assert stays.entropy_rate == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("parity", gssm.parity()),
        ("parity:2", gssm.parity(2)),
        ("copy:2,1", gssm.copy(2, 1)),
        ("induction:2, 0.5", gssm.induction(2, 0.5)),
        ("controller:[[0,1],[0,0]],[[0.5,0.5],[0,1]]",
         gssm.controller([[0, 1], [0, 0]], [[0.5, 0.5], [0, 1]])),
    ],
)  # fmt: skip
def test_they_are_named(text, made):
    found = handmade.read(text)
    assert found.nodes == made.nodes and found.entropy_rate == made.entropy_rate
    for name, table in made.kernels.items():
        np.testing.assert_array_equal(found.kernels[name], table)
    # And are the config's graph, or Python's.
    process = make_process(configs.override(configs.base(), {"gssm.graph": text}))
    for graph in (gssm.Graph(text), gssm.Graph(made)):
        assert graph.nodes == process.graph.nodes == made.nodes
        tokens_NT = gssm.sample(graph, 4, 9)
        np.testing.assert_array_equal(
            tokens_NT, process.held_out(Stream(0, "train", 32), 4, 9)
        )


def test_their_names_are_all_known():
    assert tuple(handmade.MAKERS) == HANDMADE
    assert handmade.read("easy") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parity:x", "'parity:x' is not a graph: write parity:BITS"),
        ("parity:1,2", "is not a graph"),
        ("parity:2.5", "is not a graph"),
        ("parity:0", "needs bits >= 1"),
        ("parity:1e300", "is not a graph"),
        ("controller", "is not a graph"),
        ("controller:[[0]],[[]]", "one shape [states, tokens]"),
        ("copy:" + "[" * 100_000, "is not a graph"),
        ("copy:9,999999999", "entries of its largest kernel must be <= 4194304"),
    ],
)
def test_arguments_that_cannot_be_are_one_line(text, expected):
    assert expected in refusal(handmade.read, text)


def test_no_other_kernels_or_nodes_go_with_them():
    changed = {"gssm.graph": "parity", "gssm.kernels": "K.npz"}
    config = configs.override(configs.base(), changed)
    assert "'parity' has its own kernels" in refusal(make_process, config)
    expected = "a handmade graph has its own kernels"
    assert expected in refusal(gssm.Graph, "parity", kernels={})
    nodes = {"gssm.graph": "parity:3", "gssm.nodes.X.alpha": 2}
    refused = refusal(configs.override, configs.base(), nodes)
    assert "'parity:3' is made by hand, with its kernels" in refused


def test_a_training_takes_them():
    config = jaxgpt.config("gssm:easy-tiny", **gssm.parity(2).fields())
    process = make_process(config)
    np.testing.assert_array_equal(process.tables["P"], gssm.parity(2).kernels["P"])


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (gssm.copy, (1, 3), "needs symbols >= 2 and length >= 1"),
        (gssm.copy, (10, 3), "entries of its largest kernel must be <= "),
        (gssm.induction, (10**9,), "entries of its largest kernel must be <= "),
        (gssm.parity, (0,), "needs bits >= 1"),
        (gssm.induction, (3, 0.0), "needs symbols >= 2 and 0 < noise <= 1"),
        (gssm.controller, ([[0]], [[0.5, 0.5]]), "one shape [states, tokens]"),
        (gssm.controller, ([[0, 2]], [[0.5, 0.5]]), "integers from 0 to 0"),
        (gssm.controller, ([[0, 0]], [[0.5, 0.6]]), "that sum to 1, got [[0.5, 0.6]]"),
        (gssm.controller, ([[0, 0]], [[1.5, -0.5]]), "rows of probabilities"),
        (gssm.controller, ([[0, 0]], [[0.5, np.nan]]), "rows of probabilities"),
    ],
)
def test_wrong_sizes_are_one_line(function, arguments, expected):
    assert expected in refusal(function, *arguments)
