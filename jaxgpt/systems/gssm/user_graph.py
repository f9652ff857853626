"""Graphs as they are made from Python: of names, files, nodes or networkx."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from jaxgpt import backend
from jaxgpt import config as configs
from jaxgpt.errors import UserError, atomic_write, os_errors
from jaxgpt.systems.gssm import handmade
from jaxgpt.systems.gssm.graph import Node, parse_graph
from jaxgpt.systems.gssm.graph_files import load_graph
from jaxgpt.systems.gssm.handmade import HandMade
from jaxgpt.systems.gssm.kernels import check_tables, load_tables
from jaxgpt.systems.gssm.process import make_process

Nodes = HandMade | str | os.PathLike[str] | Sequence[Node | Mapping[str, Any]]


class Graph:
    """A graph with its kernels; see docs/gssm.md.

    Attributes:
      nodes: those that evolve, parents first, the observed one last.
      vocab_size: number of states of the observed node.
      kernels: {node: float64 [inputs ..., state_dim]}, p(new state | inputs), where the
        inputs are a latent's own old state, then the parents as listed. Those of
        context nodes are unused: they are redrawn for every batch or sequence.
      process: samples and scores its sequences.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        graph_seed: int = 0,
        clip: float = 1e-10,
        first_token: str = "start",
        context: str = "batch",
        kernels: Mapping[str, ArrayLike] | str | None = None,
    ):
        """Draws the kernels, or takes those given.

        Args:
          nodes: the name of a shipped graph, such as "easy"; a JSON or YAML file, which
            may be a config of the original ("data.yaml:sparse"); a list of `Node`s or
            of mappings with their fields; or a `HandMade` graph or its name, such as
            "parity:3", which brings its kernels.
          graph_seed: seed of the kernels; 1 in configs/gssm.py:easy, 0 in its others.
          clip: minimum probability in a kernel that is drawn.
          first_token: "start" if sequences begin with the state 0 of time 0, "drawn" if
            they begin with the first state drawn.
          context: whether the kernels of context nodes are drawn for each "batch" or
            each "sequence".
          kernels: as the attribute; or, as gssm.kernels, the name of an .npz file, or
            "newer:42" for those that the original's newer version draws from seed 42.

        Raises:
          UserError: if the graph is unusable, or the kernels do not suit it.
        """
        if isinstance(nodes, str | os.PathLike):
            nodes = os.fspath(nodes)
            nodes = handmade.read(nodes) or load_graph(nodes).nodes
        if isinstance(nodes, HandMade):
            if kernels is not None:
                raise UserError("a handmade graph has its own kernels: omit kernels")
            kernels, nodes = nodes.kernels, nodes.nodes
        graph = parse_graph(nodes, "nodes")
        tables = None
        if kernels is not None:
            if graph_seed != 0 or clip != 1e-10:
                raise UserError(
                    "graph_seed and clip are for kernels that are drawn: omit them "
                    "where kernels are given"
                )
            if isinstance(kernels, str):
                tables = load_tables(graph, kernels)
            else:
                tables = check_tables(graph, kernels, "kernels")
        config = configs.override(
            configs.base(),
            {
                "gssm.graph": graph.to_json(),
                "gssm.graph_seed": graph_seed,
                "gssm.clip": clip,
                "gssm.first_token": first_token,
                "gssm.context": context,
            },
        )
        backend.set_up_jax()
        self.process = make_process(config, tables)
        self._graph = graph  # Unlike the process's, it keeps the modes of nodes.
        self.nodes = graph.order
        self.vocab_size = self.process.vocab_size
        self.kernels = self.process.tables

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the nodes, without kernels, as YAML that `Graph` reads.

        So does the original's newer version, under "gssm:" of a config.

        Raises:
          UserError: if the file cannot be written.
        """
        path = configs.user_path(os.fspath(file))
        with os_errors(f"'{path}' cannot be written"), atomic_write(path) as stream:
            stream.write(self._graph.to_yaml())


def made(graph: Graph | Nodes) -> Graph:
    """Returns a graph of what `Graph` is made of."""
    return graph if isinstance(graph, Graph) else Graph(graph)


def to_networkx(graph: Graph | Nodes) -> Any:
    """Returns a networkx.DiGraph, from parents to children; `from_networkx` reads it.

    A node has the fields of `Node`, and "kernel" as in `Graph.kernels`; an edge has
    "input", the parent's place in the child's list; the graph has "first_token".

    Raises:
      UserError: if networkx is not installed, or the graph has context nodes.
    """
    try:
        import networkx  # Optional.
    except ImportError:
        raise UserError(
            "to_networkx needs networkx, which is not installed: pip install networkx"
        ) from None
    graph = made(graph)
    if graph.process.graph.has_context:
        raise UserError(
            "the kernels of context nodes are redrawn: to_networkx takes graphs "
            "without them"
        )
    found = networkx.DiGraph(first_token=graph.process.first_token)
    for node in graph.nodes:
        fields = dataclasses.asdict(node)
        del fields["name"], fields["parents"]
        found.add_node(node.name, **fields, kernel=graph.kernels[node.name])
    for node in graph.nodes:
        for place, parent in enumerate(node.parents):
            found.add_edge(parent, node.name, input=place)
    return found


def from_networkx(found: Any, **options: Any) -> Graph:
    """Returns a graph of a networkx.DiGraph, from parents to children.

    Args:
      found: its nodes have state_dim and alpha, and optionally the other fields of
        `Node`, and all or none a "kernel"; its edges optionally an "input", by which
        parents are ordered; it may have a "first_token".
      **options: of `Graph`; they take precedence.

    Raises:
      UserError: as `Graph`; if it is not directed.
    """
    directed = getattr(found, "is_directed", bool)()
    if not directed or found.is_multigraph():
        raise UserError(
            "from_networkx needs a networkx.DiGraph, from parents to children"
        )
    nodes, kernels = [], {}
    for name, attributes in found.nodes(data=True):
        fields = dict(attributes)
        if (kernel := fields.pop("kernel", None)) is not None:
            kernels[name] = kernel
        edges = found.in_edges(name, data="input", default=0)
        parents = [parent for parent, _, _ in sorted(edges, key=lambda edge: edge[2])]
        nodes.append({"name": name, "parents": parents} | fields)
    if 0 < len(kernels) < len(nodes):
        raise UserError(
            f"{len(kernels)} of {len(nodes)} nodes have a kernel: give one to all of "
            "them, or to none"
        )
    given = {"kernels": kernels, "first_token": found.graph.get("first_token")}
    return Graph(nodes, **{name: one for name, one in given.items() if one} | options)
