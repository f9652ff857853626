import json

import pytest

from jaxgpt.errors import UserError
from jaxgpt.systems.gssm import graph
from tests.conftest import ROOT

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
    parsed = graph.parse(nodes, "test")
    assert [node.name for node in parsed.order] == ["B", "A", "C", "X"]
    assert parsed.inputs(parsed.by_name["C"]) == ("C", "A", "X")
    assert parsed.shape(parsed.by_name["C"]) == (3, 3, 4, 3)
    assert parsed.inputs(parsed.observed) == ("C", "B", "X")


def test_json_brings_the_same_graph_back():
    parsed = graph.parse([Z, X], "test")
    assert graph.load(parsed.to_json()) == parsed
    assert graph.load(json.dumps([Z, X], indent="\t")) == parsed


def test_yaml_reads_numbers_that_it_takes_for_text(tmp_path):
    file = tmp_path / "g.yaml"
    file.write_text(
        "nodes:\n- {name: Z, state_dim: 3, alpha: 1e-2, mode: SLOW}\n"
        "- {name: X, state_dim: 1e1, alpha: 1e3, parents: [Z]}\n"
    )
    z, x = graph.load(str(file)).nodes
    assert (z.alpha, z.mode, x.alpha, x.state_dim) == (0.01, "slow", 1000.0, 10)
    assert x.observed


@pytest.mark.parametrize("file", sorted((ROOT / "data/graphs").glob("*.yaml")))
def test_shipped_graphs_are_graphs(file):
    assert graph.load(f"data/graphs/{file.name}").observed.name == "X"


WRONG = {
    "cycle": ([named("A", "B"), named("B", "C"), named("C", "A"),
               X | {"parents": ["A"]}], "has a cycle: A -> B -> C -> A"),
    "itself": ([named("Z", "Z"), X], "cycle: Z -> Z"),
    "cycle that X does not read": ([Z, named("A", "B"), named("B", "A"), X], "cycle"),
    "unknown parent": ([Z, X | {"parents": ["Z", "Y"]}], "its parent Y is no node"),
    "parent twice": ([Z, X | {"parents": ["Z", "Z"]}], "lists a parent twice"),
    "duplicate": ([Z, Z, X], "two nodes named Z"),
    "none observed": ([Z], "one observed node: none is marked"),
    "two observed": ([Z | {"observed": True}, X],
                     "one observed node: Z and X are marked"),
    "state_dim 0": ([Z | {"state_dim": 0}, X], "state_dim 0 is no whole number"),
    "state_dim 2.5": ([Z | {"state_dim": 2.5}, X], "state_dim 2.5"),
    "alpha 0": ([Z | {"alpha": 0}, X], "alpha 0 is not above 0"),
    "alpha tiny": ([Z | {"alpha": 1e-310}, X], "alpha 1e-310 is not from 1e-30 to"),
    "alpha huge": ([Z | {"alpha": 1e40}, X], "alpha 1e+40 is not from 1e-30 to 1e+30"),
    "alpha text": ([Z | {"alpha": "small"}, X], "alpha is a number: not 'small'"),
    "alpha nan": ([Z | {"alpha": float("nan")}, X], "alpha is a number"),
    "alpha true": ([Z | {"alpha": True}, X], "alpha is a number"),
    "no alpha": ([{"name": "Z", "state_dim": 3}, X], "node Z has no alpha"),
    "mode": ([Z | {"mode": "fast"}, X], "one of default, slow, dead, context"),
    "kernel": ([Z | {"kernel_type": "sum"}, X], "one of fullrank, product"),
    "unknown field": ([Z | {"kernel": "sum"}, X], "unknown 'kernel'"),
    "slow X": ([Z, X | {"mode": "slow"}], "the observed node is not slow"),
    "dead X": ([Z, X | {"mode": "dead"}], "the observed node is not dead"),
    "slow product": ([Z, named("A", "Z", mode="slow", kernel_type="product"), X],
                     "a slow product kernel has no parents"),
    "parents": ([Z, X | {"parents": "Z"}], "parents are a list of names"),
    "observed": ([Z, X | {"observed": "no"}], "observed is true or false"),
    "no name": ([{"state_dim": 3}, X], "a node has no name"),
    "slash": ([named("Z/1"), X], "a name is not empty and has no '/'"),
    "empty": ([], "has no list of nodes"),
    "text": ("nodes", "has no list of nodes"),
    "large": ([named(f"Z{i}", state_dim=1000) for i in range(9)]
              + [X | {"parents": [f"Z{i}" for i in range(9)]}],
              "takes 10^28 B, 8 times while it is drawn, too much for this machine's"),
    "largest": ([Z | {"state_dim": 10**300}, X], "state_dim 1e+300 is no whole number"),
    "base": ([Z | {"state_dim": 10**6}, X], "kernel of 1000000 x 1000000 entries"),
    "digits": ([named(f"Z{i}", state_dim=10**9) for i in range(999)]
               + [X | {"parents": [f"Z{i}" for i in range(999)]}], "machine's"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_graph_that_cannot_be_is_refused_in_one_line(name):
    nodes, expected = WRONG[name]
    with pytest.raises(UserError) as caught:
        graph.load(json.dumps({"nodes": nodes}))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_must_fit_as_often_as_drawing_holds_it(monkeypatch):
    nodes = json.dumps([Z | {"state_dim": 1024}, X | {"state_dim": 1}])
    table = 8 * 1024 * (1024 + 1)
    memory = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": graph.COPIES * table}
    monkeypatch.setattr(graph.os, "sysconf", memory.get)
    assert graph.load(nodes).latents[0].state_dim == 1024
    memory["SC_PHYS_PAGES"] -= 1
    with pytest.raises(UserError, match="8 times while it is drawn"):
        graph.load(nodes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "gssm.graph is empty"),
        ("missing.yaml", "no graph file 'missing.yaml'"),
        ("{nodes: [", "is no JSON or YAML"),
        ("[" * 100_000, "is no JSON or YAML"),
    ],
)
def test_what_is_no_graph_file_is_refused(text, expected):
    with pytest.raises(UserError, match=expected) as caught:
        graph.load(text)
    assert "\n" not in str(caught.value)
