"""The original's generators and forward algorithm, number by number."""

import json

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt.errors import UserError
from jaxgpt.systems.gssm import (
    baselines,
    dataset,
    graph,
    kernels,
    likelihood,
    sequences,
)
from jaxgpt.systems.gssm.process import make_process
from parity_tests import GOLDEN, measures
from parity_tests.measures import GRAPHS
from parity_tests.measures import RECORDED_GRAPHS as RECORDED
from parity_tests.tolerances import FLOAT32, FLOAT64

GSSM = GOLDEN / "gssm"
README = [name for name in GRAPHS if not name.endswith(".npz")]


def load(name):
    with np.load(GSSM / name) as archive:
        golden = dict(archive)
    spec = GRAPHS[name]
    return golden, graph.parse_graph(spec["nodes"], name), spec["first_token"]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", RECORDED)
def test_nodes_evolve_in_the_originals_order(name):
    _, nodes, _ = load(name)
    names = [node.name for node in nodes.order]
    assert names == GRAPHS[name]["evolution_order"]


def replay(nodes, thresholds, uniforms_TNB):
    """The states [T, N, B] after each step from time 0, for given uniform numbers."""

    def step(states, uniforms_NB):
        states = sequences.step_states(nodes, thresholds, states, uniforms_NB)
        return states, jnp.stack(states)

    initial = sequences.initial_states(nodes, uniforms_TNB.shape[2])
    return jax.lax.scan(step, initial, uniforms_TNB)[1]


@pytest.mark.parametrize("name", RECORDED)
def test_states_are_equal_from_the_originals_tables_and_uniform_numbers(name, x64):
    golden, nodes, first_token = load(name)
    tables = kernels.read_tables(nodes, str(GSSM / name))
    thresholds = {k: sequences.cumulative(t, "float64") for k, t in tables.items()}
    states = replay(nodes, thresholds, golden["uniforms"])
    for i, node in enumerate(nodes.order):
        ours = np.asarray(states[:, i].T)
        np.testing.assert_array_equal(ours, golden[f"states/{node.name}"][:, 1:])
    tokens = np.asarray(states[:, -1].T)
    skip = first_token == "start"
    np.testing.assert_array_equal(tokens, golden["obs"][:, skip:])


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("dense", [1, 1 << 20], ids=["factorised", "dense"])
def test_likelihood_in_float64(name, dense, x64, monkeypatch):
    monkeypatch.setattr(likelihood, "DENSE_STATES", dense)
    likelihood.compute.clear_cache()
    found = measures.gssm(name, "float64")
    assert found["nats of a token"].value <= FLOAT64["nats of a token"]


@pytest.mark.parametrize("name", RECORDED)
def test_likelihood_in_float32(name):
    for quantity, found in measures.gssm(name).items():
        assert found.value <= FLOAT32[quantity], quantity


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("g1_product_default.npz", 1000),
        ("g2_fullrank_slow.npz", 1001),
        ("g3_product_slow_dead.npz", 1002),
        ("g4_fullrank_dead_parent_order.npz", 1003),
        ("o1_X_feedback.npz", 1100),
        ("o2_plain.npz", 1101),
    ],
)
def test_kernels_are_those_that_the_original_draws(name, seed):
    golden, nodes, first_token = load(name)
    version = "older" if first_token == "drawn" else "newer"
    generator = np.random.default_rng(seed)
    found = kernels.draw_as_original(nodes, version, generator)
    assert list(found) == [node.name for node in nodes.order]
    for name, table in found.items():
        # Clipped at 1e-10, theirs sum to 1 up to as much.
        expected = golden[f"table/{name}"]
        expected = expected / expected.sum(-1, keepdims=True)
        np.testing.assert_allclose(table, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", README)
def test_kernels_of_the_readmes_graphs_are_those_of_their_seed(name):
    nodes = graph.parse_graph(GRAPHS[name]["nodes"], name)
    with np.load(GSSM / "readme_configs.npz") as archive:
        for node, table in kernels.load_tables(nodes, "older:42").items():
            expected = archive[f"{name}/kernel/{node}/0"].reshape(table.shape)
            np.testing.assert_allclose(table, expected, rtol=1e-12, atol=1e-15)


def test_sequences_of_the_original_are_those_of_its_seed(tmp_path, capsys):
    """In the layout of its files."""
    with (
        np.load(GSSM / "readme_configs.npz") as archive,
        h5py.File(tmp_path / "f.h5", "w") as file,
    ):
        tokens = archive["low_entropy/obs"].astype(np.int64)
        file.create_dataset("data", data=tokens, chunks=(4, 128))
    nodes = json.dumps(GRAPHS["low_entropy"]["nodes"])
    changes = {"gssm.graph": nodes, "gssm.first_token": "drawn"}
    for seed, expected in ((42, ""), (43, "is of another graph or kernels")):
        changes["gssm.kernels"] = f"older:{seed}"
        process = make_process(configs.override(configs.base(), changes))
        try:
            dataset.open_tokens(f"{tmp_path}/f.h5", process)
            refused = ""
        except UserError as error:
            refused = str(error)
        assert expected in refused if expected else not refused


@pytest.mark.parametrize("name", README)
def test_the_readmes_graphs(name):
    """Their likelihood is the original's in float32, which strays by up to 6e-5."""
    spec = GRAPHS[name]
    nodes = graph.parse_graph(spec["nodes"], name)
    with np.load(GSSM / "readme_configs.npz") as archive:
        golden = {k.split("/", 1)[1]: archive[k] for k in archive if k.startswith(name)}
    tables = {
        node.name: golden[f"kernel/{node.name}/0"].reshape(nodes.shape(node))
        for node in nodes.order
    }
    ours = likelihood.forward(nodes, tables, golden["obs"], spec["first_token"])
    theirs = golden["nll_cum"][:, 1:]
    np.testing.assert_allclose(
        ours.cumsum(1), theirs[:, 1:] - theirs[:, :1], rtol=0, atol=2e-4
    )


@pytest.mark.parametrize("name", ["uniform32", "cycle8", "skewed"])
def test_zlib_ratio(name):
    with np.load(GSSM / "zlib.npz") as golden:
        batch, ratio = golden[f"batch/{name}"], golden[f"ratio/{name}"]
    np.testing.assert_allclose(baselines.zlib_ratio(batch), ratio, rtol=0.02)
