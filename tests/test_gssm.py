"""jaxgpt.gssm gives what the commands give."""

import doctest
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import gssm
from jaxgpt.systems.gssm import entropy, generate
from jaxgpt.systems.gssm.dataset import read_dataset
from tests.conftest import ROOT, refusal
from tests.systems.gssm.conftest import MIXED

pytestmark = pytest.mark.unoptimised

TINY = f"{ROOT}/configs/gssm.py:easy-tiny"
CONTEXT = [{**node, "mode": "context"} if node["name"] == "X" else node
           for node in MIXED]  # fmt: skip


@pytest.fixture(scope="module")
def easy():
    """The graph of TINY."""
    return gssm.Graph("easy", graph_seed=1)


def test_samples_are_what_generate_writes(easy, tmp_path, capsys):
    output = tmp_path / "f.h5"
    command = [f"--config={TINY}", f"--output={output}", "--num_sequences=33"]
    generate.command([*command, "--chunk_size=8", "--config.seed=5"])
    written_NT = read_dataset(str(output))[1]
    found_NT = gssm.sample(easy, 33, 17, seed=5, batch_size=8)
    assert found_NT.dtype == np.int32
    np.testing.assert_array_equal(found_NT, written_NT)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_scores_are_what_entropy_writes(easy, tmp_path, capsys, dtype):
    output = tmp_path / "nll.npy"
    entropy.command([f"--config={TINY}", f"--nll={output}", f"--dtype={dtype}"])
    tokens_NT = gssm.sample(easy, 256, 17, split="val", batch_size=8)
    found = gssm.exact_nll(easy, tokens_NT, dtype=dtype)
    assert found.dtype == np.float64 and found.shape == (256, 16)
    np.testing.assert_array_equal(found, np.load(output))
    assert jnp.zeros(1, float).dtype == jnp.float32, "float64 is not left on"


def test_predictions_and_beliefs_agree_with_the_likelihood(easy):
    tokens_NT = gssm.sample(easy, 16, 33, split="val")
    p = gssm.predictive(easy, tokens_NT)
    assert p.shape == (16, 32, 16) and p.dtype == np.float64
    chosen = np.take_along_axis(p, tokens_NT[:, 1:, None], 2)[..., 0]
    nll = gssm.exact_nll(easy, tokens_NT)
    np.testing.assert_allclose(-np.log(chosen), nll, rtol=0, atol=1e-12)
    joint, beliefs = gssm.joint_beliefs(easy, tokens_NT), gssm.beliefs(easy, tokens_NT)
    assert joint.shape == (16, 33, 4, 4)
    np.testing.assert_allclose(joint.sum(3), beliefs["Z1"], atol=1e-14)
    np.testing.assert_allclose(joint.sum(2), beliefs["Z2"], atol=1e-14)
    assert "--kernels" in refusal(gssm.beliefs, gssm.Graph(CONTEXT), [[0, 1]])


def test_a_decomposition_is_what_entropy_prints(easy, capsys):
    options = ["--num_sequences=64", "--decompose", "--json=-"]
    entropy.command([f"--config={TINY}", *options])
    printed = json.loads(capsys.readouterr().out)["decomposition"]
    tokens_NT = gssm.sample(easy, 64, 17, split="val", batch_size=8)
    assert gssm.decompose(easy, tokens_NT) == printed


def test_scores_of_given_tokens_and_kernels_are_what_entropy_writes(tmp_path, capsys):
    graph = gssm.Graph(MIXED, graph_seed=5, first_token="drawn")
    (tmp_path / "g.json").write_text(json.dumps(MIXED))
    tables = {f"table/{name}": table for name, table in graph.kernels.items()}
    np.savez(tmp_path / "k.npz", **tables)
    tokens_NT = np.random.default_rng(0).integers(0, 5, (6, 12))
    np.save(tmp_path / "t.npy", tokens_NT)
    command = [f"--graph={tmp_path}/g.json", f"--kernels={tmp_path}/k.npz"]
    command += [f"--tokens={tmp_path}/t.npy", f"--nll={tmp_path}/nll.npy"]
    entropy.command(command)
    written = np.load(tmp_path / "nll.npy")
    np.testing.assert_array_equal(gssm.exact_nll(graph, tokens_NT), written)
    # By its kernels a context graph can be scored too.
    given = gssm.Graph(CONTEXT, first_token="drawn", kernels=graph.kernels)
    np.testing.assert_array_equal(gssm.exact_nll(given, tokens_NT.tolist()), written)


def test_a_graph_is_given_by_name_by_file_or_by_its_nodes(easy, tmp_path):
    file = tmp_path / "g.json"
    file.write_text(json.dumps({"nodes": [vars(node) for node in easy.nodes]}))
    for nodes in (file, str(file), easy.nodes, [vars(node) for node in easy.nodes]):
        again = gssm.Graph(nodes, graph_seed=1)
        assert again.nodes == easy.nodes
        for name, table in easy.kernels.items():
            np.testing.assert_array_equal(again.kernels[name], table)


def test_every_function_takes_what_a_graph_is_made_of(tmp_path):
    file = tmp_path / "g.yaml"
    graph = gssm.Graph("easy")
    graph.save(file)
    tokens_NT = gssm.sample(graph, 4, 9)
    for nodes in ("easy", file, graph.nodes):
        np.testing.assert_array_equal(gssm.sample(nodes, 4, 9), tokens_NT)
    expected = gssm.sample_states(graph, 4, 9)
    for name, states in gssm.sample_states("easy", 4, 9).items():
        np.testing.assert_array_equal(states, expected[name])
    for function in (gssm.exact_nll, gssm.predictive, gssm.joint_beliefs):
        np.testing.assert_array_equal(
            function("easy", tokens_NT), function(graph, tokens_NT)
        )
    beliefs = gssm.beliefs(graph, tokens_NT)
    np.testing.assert_array_equal(gssm.beliefs(file, tokens_NT)["Z1"], beliefs["Z1"])
    assert gssm.decompose("easy", tokens_NT) == gssm.decompose(graph, tokens_NT)
    made = gssm.parity(2)
    assert (gssm.exact_nll(made, gssm.sample(made, 4, 9)) < np.inf).all()


def test_a_graph_is_saved_with_the_modes_of_given_kernels(easy, tmp_path):
    given = gssm.Graph(MIXED, kernels=gssm.Graph(MIXED).kernels)
    given.save(tmp_path / "g.yaml")
    again = gssm.Graph(tmp_path / "g.yaml", graph_seed=5)
    assert again.nodes == given.nodes == gssm.Graph(MIXED).nodes
    expected = gssm.Graph(MIXED, graph_seed=5).kernels["Z3"]
    np.testing.assert_array_equal(again.kernels["Z3"], expected)
    assert "cannot be written" in refusal(easy.save, tmp_path / "none" / "g.yaml")


def test_kernels_are_what_was_given_and_stay_so(easy):
    given = {name: table.copy() for name, table in easy.kernels.items()}
    graph = gssm.Graph("easy", kernels=given)
    given["X"][:] = 0
    np.testing.assert_array_equal(graph.kernels["X"], easy.kernels["X"])
    for kernels in (easy.kernels, graph.kernels):
        with pytest.raises(ValueError, match="read-only"):
            kernels["X"][0, 0, 0] = 0.5


def test_states_are_those_behind_the_tokens(easy):
    states = gssm.sample_states(easy, 2048, 65, seed=3)
    assert list(states) == ["Z1", "Z2", "X"]
    np.testing.assert_array_equal(states["X"], gssm.sample(easy, 2048, 65, seed=3))
    # X is drawn from the row of its kernel that its parents choose.
    later = [states[name][:, 1:].ravel() for name in ("Z1", "Z2", "X")]
    counts = np.zeros(easy.kernels["X"].shape)
    np.add.at(counts, tuple(later), 1)
    total = counts.sum(-1, keepdims=True)
    seen = total[..., 0] > 2000
    assert seen.sum() > 8
    shares = (counts / np.maximum(total, 1))[seen]
    np.testing.assert_allclose(shares, easy.kernels["X"][seen], atol=0.05)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"nodes": "none"}, "no graph file 'none': name JSON or YAML"),
        ({"nodes": []}, "graph 'nodes' has no list of nodes"),
        ({"nodes": [{"name": "X"}]}, "graph 'nodes', node X has no state_dim"),
        ({"graph_seed": -1}, "gssm.graph_seed must be >= 0, got -1"),
        ({"clip": 1}, "gssm.clip must be < 1, got 1.0"),
        ({"first_token": "end"}, "gssm.first_token must be one of start, drawn"),
        ({"kernels": {}}, "'kernels' has no array Z1"),
        ({"kernels": {"Z1": [1.0]}}, "'kernels': Z1 must have shape [4, 4]"),
        ({"kernels": {}, "graph_seed": 1}, "graph_seed and clip are for kernels that"),
        ({"kernels": {}, "clip": 0.1}, "graph_seed and clip are for kernels that"),
    ],
)
def test_an_unusable_graph_is_one_line(options, expected):
    assert expected in refusal(gssm.Graph, **({"nodes": "easy"} | options))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_sequences": 0}, "num_sequences must be an integer >= 1, got 0"),
        ({"num_sequences": "2"}, "num_sequences must be an integer >= 1, got '2'"),
        ({"length": 1}, "length must be an integer >= 2, got 1"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"split": "dev"}, "split must be one of train, val, fit, test, got 'dev'"),
    ],
)
def test_samples_that_cannot_be_are_one_line(easy, options, expected):
    options = {"num_sequences": 2, "length": 8} | options
    assert expected in refusal(gssm.sample, easy, **options)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([[0.0, 1.0]], "'tokens' must hold integers [rows, tokens]"),
        ([0, 1], "'tokens' must hold integers [rows, tokens]"),
        ([[0]], "'tokens' has rows of 1 token"),
        ([[0, 16]], "tokens must be states 0 .. 15 of the graph's X, got 16"),
        ([[1, 2]], "the tokens do not begin with the start state 0"),
    ],
)
def test_tokens_that_cannot_be_are_one_line(easy, tokens, expected):
    assert expected in refusal(gssm.exact_nll, easy, tokens)


def test_kernels_of_context_nodes_and_the_dtype_must_be_known(easy):
    assert "--kernels" in refusal(gssm.exact_nll, gssm.Graph(CONTEXT), [[0, 1]])
    expected = "dtype must be one of float32, float64, got 'float16'"
    assert expected in refusal(gssm.exact_nll, easy, [[0, 1]], dtype="float16")


def test_the_examples_are_true():
    page = doctest.testfile(str(ROOT / "docs/gssm.md"), module_relative=False)
    for found in (doctest.testmod(gssm), page):
        assert found.attempted > 5
        assert not found.failed


def test_networkx_takes_a_graph_and_gives_it_back(easy):
    networkx = pytest.importorskip("networkx")
    for graph in (easy, gssm.Graph(MIXED, graph_seed=3)):
        found = gssm.to_networkx(graph)
        edges = {(p, node.name) for node in graph.nodes for p in node.parents}
        assert set(found.edges) == edges
        again = gssm.from_networkx(found)
        for node, other in zip(graph.nodes, again.nodes, strict=True):
            assert (node.name, node.parents) == (other.name, other.parents)
            np.testing.assert_array_equal(
                graph.kernels[node.name], again.kernels[node.name]
            )
        np.testing.assert_array_equal(
            gssm.sample(graph, 4, 17), gssm.sample(again, 4, 17)
        )
    # Parents in another order than nodes and edges, modes, and the first token.
    mixed = gssm.Graph(MIXED, graph_seed=3, first_token="drawn")
    shuffled = networkx.DiGraph(**gssm.to_networkx(mixed).graph)
    shuffled.add_nodes_from(reversed(list(gssm.to_networkx(mixed).nodes(data=True))))
    shuffled.add_edges_from(reversed(list(gssm.to_networkx(mixed).edges(data=True))))
    again = gssm.from_networkx(shuffled)
    assert again.nodes == mixed.nodes
    assert gssm.to_networkx(again).nodes["Z1"]["mode"] == "slow"
    np.testing.assert_array_equal(gssm.sample(again, 4, 9), gssm.sample(mixed, 4, 9))
    drawn = networkx.DiGraph([("Z", "X")])
    drawn.add_node("Z", state_dim=3, alpha=0.5, mode="slow")
    drawn.add_node("X", state_dim=5, alpha=0.1)
    found = gssm.from_networkx(drawn, graph_seed=2)
    expected = gssm.Graph([{"name": n, **drawn.nodes[n], "parents": [*drawn.pred[n]]}
                           for n in "ZX"], graph_seed=2)  # fmt: skip
    np.testing.assert_array_equal(found.kernels["X"], expected.kernels["X"])


def test_networkx_refuses_in_one_line(easy, monkeypatch):
    networkx = pytest.importorskip("networkx")
    undirected = networkx.Graph([("Z", "X")])
    assert "needs a networkx.DiGraph" in refusal(gssm.from_networkx, undirected)
    assert "needs a networkx.DiGraph" in refusal(gssm.from_networkx, [])
    assert "node Z has no state_dim" in refusal(
        gssm.from_networkx, networkx.DiGraph([("Z", "X")])
    )
    half = gssm.to_networkx(easy)
    del half.nodes["Z2"]["kernel"]
    assert "2 of 3 nodes have a kernel" in refusal(gssm.from_networkx, half)
    assert "context nodes" in refusal(gssm.to_networkx, gssm.Graph(CONTEXT))
    monkeypatch.setitem(sys.modules, "networkx", None)
    assert "pip install networkx" in refusal(gssm.to_networkx, easy)
