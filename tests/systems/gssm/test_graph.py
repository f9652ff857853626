import dataclasses
import json

import pytest

from jaxgpt import config as configs
from jaxgpt.errors import UserError
from jaxgpt.systems.gssm import graph, graph_files
from tests.conftest import ROOT, refusal

Z = {"name": "Z", "state_dim": 3, "alpha": 1.0}
X = {"name": "X", "state_dim": 4, "alpha": 1.0, "parents": ["Z"], "observed": True}


def named(name, *parents, **more):
    return Z | {"name": name, "parents": list(parents)} | more


def test_nodes_evolve_parents_first_in_the_order_x_lists_them():
    nodes = [
        named("A", "B"),
        named("B"),
        named("C", "A", "X"),
        named("unread", "C"),
        X | {"parents": ["C", "B", "X"]},
    ]
    parsed = graph.parse_graph(nodes, "test")
    assert [node.name for node in parsed.order] == ["B", "A", "C", "X"]
    assert parsed.inputs(parsed.by_name["C"]) == ("C", "A", "X")
    assert parsed.shape(parsed.by_name["C"]) == (3, 3, 4, 3)
    assert parsed.inputs(parsed.observed) == ("C", "B", "X")


def test_json_brings_the_same_graph_back():
    parsed = graph.parse_graph([Z, X], "test")
    assert graph_files.load_graph(parsed.to_json()) == parsed
    assert graph_files.load_graph(json.dumps([Z, X], indent="\t")) == parsed


def test_yaml_reads_numbers_that_it_takes_for_text(tmp_path):
    file = tmp_path / "g.yaml"
    file.write_text(
        "nodes:\n- {name: Z, state_dim: 3, alpha: 1e-2, mode: SLOW}\n"
        "- {name: X, state_dim: 1e1, alpha: 1e3, parents: [Z]}\n"
    )
    z, x = graph_files.load_graph(str(file)).nodes
    assert (z.alpha, z.mode, x.alpha, x.state_dim) == (0.01, "slow", 1000.0, 10)
    assert x.observed


LATENT = "{name: Z, state_dim: 3, alpha: 1e-2}"
OBSERVED = "{name: X, state_dim: 4, parents: [Z], alpha: 1e-1, observed: true}"
LAYOUTS = {
    # A run's config, and one of several graphs, of either version of the original.
    "": f"data: {{seed: 42, gssm: {{nodes: [{LATENT}, {OBSERVED}]}}}}",
    ":second": f"first: {{gssm: {{nodes: [{OBSERVED}]}}}}\n"
    f"second: {{seq_len: 9, gssm: {{nodes: [{LATENT}, {OBSERVED}]}}}}",
    ":gssm.nodes.1": f"seed: [0, 1]\ngssm:\n  nodes:\n  - [{OBSERVED}]\n"
    f"  - [{LATENT}, {OBSERVED}]",
    ":run_config": f"launcher: {{slurm: {{nodes: 1}}, grid: {{data: {{gssm: {{nodes: "
    f"[[{OBSERVED}]]}}}}}}}}\n"
    f"run_config: {{data: {{gssm: {{nodes: [{LATENT}, {OBSERVED}]}}}}}}",
}


@pytest.mark.parametrize("keys", LAYOUTS)
def test_a_graph_is_found_in_a_config_of_the_original(tmp_path, keys):
    file = tmp_path / "10:30.yaml"
    file.write_text(LAYOUTS[keys])
    found = graph_files.load_graph(f"{file}{keys}")
    assert [(node.name, node.alpha) for node in found.nodes] == [
        ("Z", 0.01),
        ("X", 0.1),
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("", "holds 2 graphs: name {0}:KEY, where KEY is one of first, second"),
        (":third", "{0}:third' names no graph of its file: name {0}:KEY, where"),
        (":first", "graph '{0}:first', node X: its parent Z is not a node"),
    ],
)
def test_one_of_several_graphs_must_be_named(tmp_path, keys, expected):
    file = tmp_path / "g.yaml"
    file.write_text(LAYOUTS[":second"])
    assert expected.format(file) in refusal(graph_files.load_graph, f"{file}{keys}")


def test_a_file_that_holds_itself_is_refused(tmp_path):
    file = tmp_path / "g.yaml"
    file.write_text("a: &a {b: *a}")
    assert "is nested too deeply" in refusal(graph_files.load_graph, str(file))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, []),  # As the original's older version writes it.
        ({"observed": True}, ["Y, X"]),
        ({"kernel_type": "product"}, ["Y"]),
        ({"mode": "context"}, []),
    ],
)
def test_where_the_versions_differ_in_kernels_is_said(tmp_path, capsys, more, said):
    nodes = [Z, named("Y", "Z"), named("X", "Z", "Y") | more]
    file = tmp_path / "g.json"
    file.write_text(json.dumps(nodes))
    parsed = graph_files.load_graph(str(file))
    notes = capsys.readouterr().err
    assert [line.split(" for ")[1].split(":")[0] for line in notes.splitlines()] == said
    graph_files.load_graph(str(file), typed=["Y", "X"])
    assert capsys.readouterr().err == ""
    # What has been read, or is written anew, says so itself.
    file.write_text(parsed.to_yaml())
    assert (
        graph_files.load_graph(str(file))
        == graph_files.load_graph(parsed.to_json())
        == parsed
    )
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("file", sorted((ROOT / "data/graphs").glob("*.yaml")))
def test_shipped_graphs_are_graphs(file, capsys):
    assert graph_files.load_graph(f"data/graphs/{file.name}").observed.name == "X"
    assert capsys.readouterr().err == ""


WRONG = {
    "cycle": ([named("A", "B"), named("B", "C"), named("C", "A"),
               X | {"parents": ["A"]}], "has a cycle: A -> B -> C -> A"),
    "itself": ([named("Z", "Z"), X], "cycle: Z -> Z"),
    "cycle that X does not read": ([Z, named("A", "B"), named("B", "A"), X], "cycle"),
    "unknown parent": ([Z, X | {"parents": ["Z", "Y"]}], "its parent Y is not a node"),
    "parent twice": ([Z, X | {"parents": ["Z", "Z"]}], "lists a parent twice"),
    "duplicate": ([Z, Z, X], "two nodes named Z"),
    "none observed": ([Z], "one observed node: none is marked"),
    "two observed": ([Z | {"observed": True}, X],
                     "one observed node: Z and X are marked"),
    "state_dim 0": ([Z | {"state_dim": 0}, X],
                    "state_dim must be an integer from 1 to 2^31 - 1, got '0'"),
    "state_dim 2.5": ([Z | {"state_dim": 2.5}, X],
                      "state_dim must be an integer from 1 to 2^31 - 1, got"),
    "alpha 0": ([Z | {"alpha": 0}, X], "alpha must be a number from 1e-30"),
    "alpha tiny": ([Z | {"alpha": 1e-310}, X], "1e-30 to 1e30, got '1e-310'"),
    "alpha huge": ([Z | {"alpha": 1e40}, X], "1e-30 to 1e30, got '1e+40'"),
    "alpha text": ([Z | {"alpha": "small"}, X],
                   "alpha must be a number from 1e-30 to 1e30, got 'small'"),
    "alpha nan": ([Z | {"alpha": float("nan")}, X], "alpha must be a number"),
    "alpha true": ([Z | {"alpha": True}, X], "alpha must be a number"),
    "no alpha": ([{"name": "Z", "state_dim": 3}, X], "node Z has no alpha"),
    "mode": ([Z | {"mode": "fast"}, X], "one of default, slow, dead, context"),
    "kernel": ([Z | {"kernel_type": "sum"}, X], "one of fullrank, product"),
    "unknown field": ([Z | {"kernel": "sum"}, X], "unknown 'kernel'"),
    "slow X": ([Z, X | {"mode": "slow"}], "the observed node cannot be slow"),
    "dead X": ([Z, X | {"mode": "dead"}], "the observed node cannot be dead"),
    "slow product": ([Z, named("A", "Z", mode="slow", kernel_type="product"), X],
                     "a slow product kernel has no parents"),
    "parents": ([Z, X | {"parents": "Z"}], "parents must be a list of names, got 'Z'"),
    "observed": ([Z, X | {"observed": "no"}],
                 "observed must be true or false, got 'no'"),
    "no name": ([{"state_dim": 3}, X], "a node has no name"),
    "slash": ([named("Z/1"), X], "a name must be non-empty and without '/'"),
    "empty": ([], "has no list of nodes"),
    "text": ("nodes", "has no list of nodes"),
    "large": ([named(f"Z{i}", state_dim=1000) for i in range(9)]
              + [X | {"parents": [f"Z{i}" for i in range(9)]}],
              "node X: its kernel of 1000 x 1000 x"),
    "largest": ([Z | {"state_dim": 10**300}, X], "state_dim must be an integer from"),
    "base": ([Z | {"state_dim": 10**6}, X],
             "kernel of 1000000 x 1000000 has more than 2^31 - 1"),
    "digits": ([named(f"Z{i}", state_dim=10**9) for i in range(999)]
               + [X | {"parents": [f"Z{i}" for i in range(999)]}],
               "lower state_dim or the number of parents"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_graph_that_cannot_be_is_refused_in_one_line(name):
    nodes, expected = WRONG[name]
    assert expected in refusal(graph_files.load_graph, json.dumps({"nodes": nodes}))


def test_a_table_must_fit_as_often_as_drawing_holds_it(monkeypatch):
    nodes = json.dumps([Z | {"state_dim": 1024}, X | {"state_dim": 1}])
    table = 8 * 1024 * (1024 + 1)
    memory = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": graph.COPIES * table}
    monkeypatch.setattr(graph.os, "sysconf", memory.get)
    assert graph_files.load_graph(nodes).latents[0].state_dim == 1024
    memory["SC_PHYS_PAGES"] -= 1
    with pytest.raises(UserError, match="8 copies"):
        graph_files.load_graph(nodes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "gssm.graph is empty"),
        ("missing.yaml", "no graph file 'missing.yaml'"),
        ("{nodes: [", "is neither JSON nor YAML"),
        ("[" * 100_000, "is neither JSON nor YAML"),
    ],
)
def test_what_is_no_graph_file_is_refused(text, expected):
    with pytest.raises(UserError, match=expected) as caught:
        graph_files.load_graph(text)
    assert "\n" not in str(caught.value)


def changed(*words, **fields):
    changes = {f"gssm.{word}".split("=")[0]: word.split("=")[1] for word in words}
    found = configs.load(f"{ROOT}/configs/gssm.py:easy", changes | fields)
    return graph_files.load_graph(found.gssm.graph)


def test_a_field_of_a_node_is_a_change_of_the_graph():
    """The graph is set first, though it comes last, and all fields at once."""
    found = changed(
        *("nodes.Z1.alpha=1e-1", "nodes.Z2.parents=", "nodes.Z2.mode=slow"),
        *("nodes.Z2.kernel_type=product", "nodes.Z2.state_dim=5"),
        *("nodes.Z3.parents=Z1, Z2", "nodes.Z4.parents=['Z3', \"X\"]"),
        "graph=low_entropy",
    ).by_name
    low = graph_files.load_graph("low_entropy").by_name
    assert (found["Z1"].alpha, low["Z1"].alpha) == (0.1, 0.01)
    replaced = {"mode": "slow", "kernel_type": "product", "state_dim": 5}
    assert found["Z2"] == dataclasses.replace(low["Z2"], **replaced)
    assert found["Z3"].parents == ("Z1", "Z2")
    assert found["Z4"].parents == ("Z3", "X")
    assert found["X"] == low["X"]


def test_a_changed_node_leaves_no_field_behind(tmp_path):
    given = {"gssm.nodes.Z1.alpha": 0.1, "gssm.nodes.X.observed": "True"}
    found = configs.load(f"{ROOT}/configs/gssm.py:easy", given)
    assert configs.flatten(found).keys() == configs.options().keys()
    configs.save(found, tmp_path / "config.json")
    assert configs.load_frozen(tmp_path) == found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("nodes.Z9.alpha=1", "nodes.Z9.alpha: the nodes of gssm.graph are Z1, Z2, X"),
        ("nodes.Z1.aplha=1", "aplha: the fields of a node are state_dim, alpha, par"),
        ("nodes.Z1.name=A", "the fields of a node are state_dim"),
        ("nodes.Z1=A", "must be gssm.nodes.NODE.FIELD, got 'gssm.nodes.Z1'"),
        ("nodes=A", "unknown config key 'gssm.nodes'"),
        ("nodes.Z1.alpha=x", "node Z1: alpha must be a number from 1e-30 to 1e30"),
        ("nodes.Z1.parents=Q", "node Z1: its parent Q is not a node"),
        ("nodes.Z1.parents=[Q", "parents' is neither JSON nor YAML"),
        ("nodes.Z1.observed=yes", "observed must be true or false, got 'yes'"),
        ("nodes.Z1.observed=true", "needs one observed node: Z1 and X are marked"),
    ],
)
def test_a_node_that_cannot_be_changed_is_refused(change, expected):
    assert expected in refusal(changed, change)


@pytest.mark.parametrize("field", ["alpha=1", "mode=slow", "kernel_type=product"])
def test_how_kernels_are_drawn_is_refused_where_they_are_given(field):
    message = refusal(changed, f"nodes.Z1.{field}", "kernels=K.npz")
    assert message.endswith("gssm.kernels gives them: remove one of the two")
