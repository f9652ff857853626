import jax
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt import gssm
from jaxgpt.errors import UserError
from jaxgpt.systems.gssm import graph, graph_files, kernels
from tests.conftest import refusal
from tests.systems.gssm.conftest import MIXED, PRODUCT

Z = {"name": "Z", "state_dim": 6, "alpha": 0.2}
X = {"name": "X", "state_dim": 9, "alpha": 1.0, "parents": ["Z"]}


@pytest.mark.parametrize("nodes", [MIXED, PRODUCT], ids=["mixed", "product"])
def test_rows_are_distributions_and_modes_hold_on_every_row(nodes):
    parsed = graph.parse_graph(nodes, "test")
    for seed in range(5):
        tables = kernels.draw_tables(parsed, seed, 1e-10)
        for node in parsed.order:
            table = tables[node.name]
            assert table.shape == parsed.shape(node)
            np.testing.assert_allclose(table.sum(-1), 1, atol=1e-12)
            if node.kernel_type == "fullrank":
                assert table.min() >= 1e-10 * (1 - 1e-8)
            likeliest = table.argmax(-1)
            if node.mode == "dead":
                assert (likeliest == 0).all()
            if node.mode == "slow":
                own = np.arange(node.state_dim)
                assert (np.moveaxis(likeliest, 0, -1) == own).all()


def test_a_dead_product_is_dead_in_every_row():
    nodes = [Z, Z | {"name": "D", "parents": ["Z"], "mode": "dead",
                     "kernel_type": "product"}, X | {"parents": ["D"]}]  # fmt: skip
    table = kernels.draw_tables(graph.parse_graph(nodes, "test"), 3, 1e-10)["D"]
    assert (table.argmax(-1) == 0).all()


def test_entries_are_of_the_dirichlet_distribution():
    """Mean 1 / d and variance (d - 1) / d^2 / (d alpha + 1), within 5 deviations."""
    for alpha in (0.05, 1.0, 20.0):
        nodes = [Z | {"state_dim": 400}, X | {"state_dim": 5, "alpha": alpha}]
        table = kernels.draw_tables(graph.parse_graph(nodes, "test"), 1, 0)["X"]
        expected = 4 / 25 / (5 * alpha + 1)
        assert table.var() == pytest.approx(expected, rel=0.15)
        assert table[:, 0].mean() == pytest.approx(0.2, abs=5 * (expected / 400) ** 0.5)


def test_a_product_of_many_factors_does_not_underflow():
    names = [f"Z{i}" for i in range(8)]
    nodes = [Z | {"name": n, "state_dim": 2} for n in names]
    nodes += [X | {"alpha": 1e-3, "parents": names, "kernel_type": "product"}]
    for clip in (0, 1e-10):
        table = kernels.draw_tables(graph.parse_graph(nodes, "test"), 0, clip)["X"]
        np.testing.assert_allclose(table.sum(-1), 1, atol=1e-12)


def test_a_product_is_the_normalised_product_of_its_factors():
    parsed = graph.parse_graph(PRODUCT, "test")
    log_p = np.log(kernels.draw_tables(parsed, 0, 1e-10)["O"])
    # The interaction of the two inputs does not depend on the new state.
    mixed = log_p - log_p[:1] - log_p[:, :1] + log_p[:1, :1]
    np.testing.assert_allclose(mixed, mixed[..., :1] + 0 * mixed, atol=1e-9)


def test_the_graph_depends_on_its_seed_and_nothing_else():
    parsed = graph.parse_graph(MIXED, "test")
    first = kernels.draw_tables(parsed, 7, 1e-10)
    with jax.enable_x64(True):
        again = kernels.draw_tables(parsed, 7, 1e-10)
    other = kernels.draw_tables(parsed, 8, 1e-10)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert np.abs(first[name] - other[name]).max() > 0.01


@pytest.mark.parametrize("alpha", [graph.LEAST_ALPHA, graph.LARGEST_ALPHA])
@pytest.mark.parametrize("clip", [0, 1e-10])
def test_rows_are_distributions_at_the_limits_of_alpha(alpha, clip):
    nodes = [Z | {"alpha": alpha, "mode": "context"}, X | {"alpha": alpha}]
    parsed = graph.parse_graph(nodes, "test")
    drawn = kernels.draw_context_tables(jax.random.key(0), parsed, clip)["Z"]
    for table in (*kernels.draw_tables(parsed, 0, clip).values(), np.exp(drawn)):
        np.testing.assert_allclose(table.sum(-1), 1, atol=1e-6)


def test_context_kernels_keep_their_mode_shape_and_differ_by_key():
    nodes = [Z | {"mode": "context", "parents": ["X"]}, X | {"mode": "context"}]
    parsed = graph.parse_graph(nodes, "test")
    drawn = [
        kernels.draw_context_tables(jax.random.key(i), parsed, 1e-10) for i in (0, 0, 1)
    ]
    assert set(drawn[0]) == {"Z", "X"}
    for name, log_p in drawn[0].items():
        assert log_p.shape == parsed.shape(parsed.by_name[name])
        np.testing.assert_allclose(np.exp(log_p).sum(-1), 1, atol=1e-5)
        np.testing.assert_array_equal(log_p, drawn[1][name])
        assert np.abs(np.exp(log_p) - np.exp(drawn[2][name])).max() > 0.01


def test_tables_are_read_as_they_were_written(tmp_path):
    parsed = graph.parse_graph(MIXED, "test")
    tables = kernels.draw_tables(parsed, 0, 1e-10)
    np.savez(tmp_path / "k.npz", **{f"table/{n}": t for n, t in tables.items()})
    for name, table in kernels.read_tables(parsed, str(tmp_path / "k.npz")).items():
        np.testing.assert_array_equal(table, tables[name])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("table/Z2"), "has no array table/Z2"),
        (lambda t: t.update({"table/Z9": t["table/X"]}), "table/Z9: .* no such node"),
        (lambda t: t.update({"table/X": t["table/X"].T}), "table/X must have shape"),
        (
            lambda t: t.update({"table/X": t["table/X"] * 2}),
            r"X must hold probabilities .*: row \[0, 0, 0\] sums to 2",
        ),
        (
            lambda t: t.update({"table/X": t["table/X"] * np.nan}),
            r"row \[0, 0, 0\] has a number that is not finite",
        ),
        (
            lambda t: t["table/Z1"].__setitem__((1, 2), [-1, 1, 1]),
            r"row \[1, 2\] has -1",
        ),
        (
            lambda t: t.update({"table/X": np.array([None])}),
            "not an array of numbers: it holds Python objects",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, change, expected):
    parsed = graph.parse_graph(MIXED, "test")
    arrays = {f"table/{n}": t for n, t in kernels.draw_tables(parsed, 0, 1e-10).items()}
    change(arrays)
    np.savez(tmp_path / "k.npz", **arrays)
    with pytest.raises(UserError, match=expected) as caught:
        kernels.read_tables(parsed, str(tmp_path / "k.npz"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "text", "expected"),
    [
        (MIXED, "newer:1", "newer: the graph has X as a parent"),
        (PRODUCT, "older:1", "older: the graph has product kernels"),
        ([Z | {"mode": "context"}, X], "newer:1", "the graph has kernels of context"),
        ([Z, X], "newer:-1", "'newer:-1' is not an .npz file"),
    ],
)
def test_kernels_that_the_original_does_not_draw_are_refused(nodes, text, expected):
    parsed = graph.parse_graph(nodes, "test")
    assert expected in refusal(kernels.load_tables, parsed, text)


def test_kernels_of_the_original_depend_on_its_seed_and_the_graph():
    """parity_tests/test_gssm.py compares them with the original's."""
    found = [
        kernels.load_tables(graph.parse_graph(nodes, "test"), text)
        for nodes, text in (
            ([Z, X], "newer:1"),
            ([Z, X], "newer:1"),
            ([Z, X], "newer:2"),
            ([Z | {"mode": "dead"}, X], "newer:1"),
        )
    ]
    for name, table in found[0].items():
        np.testing.assert_array_equal(table, found[1][name])
        assert np.abs(table - found[2][name]).max() > 0.01
    assert (found[3]["Z"].argmax(-1) == 0).all()


def test_a_node_says_how_kernels_of_the_original_are_drawn():
    changes = {"gssm.graph": "easy", "gssm.nodes.X.alpha": 3}
    config = configs.override(configs.base(), changes | {"gssm.kernels": "newer:1"})
    drawn = graph_files.load_graph(config.gssm.graph)
    assert drawn.observed.alpha == 3
    found = gssm.Graph(drawn.nodes, kernels="newer:1").kernels["X"]
    expected = kernels.load_tables(drawn, "newer:1")["X"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04N."])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "k.npz").write_bytes(content)
    with pytest.raises(UserError, match="npz file"):
        kernels.read_tables(graph.parse_graph(MIXED, "test"), str(tmp_path / "k.npz"))
