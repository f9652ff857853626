"""The graph of a graph-structured sequential model: its nodes, and what they read.

Latent nodes Z and one observed node X evolve in discrete time from state 0. In a step
every latent reads its own old state, the new states of its parents, and the old state
of X where X is a parent; then X reads the new states of its parents, and its own old
one where it lists itself. Only ancestors of X evolve.
"""

from __future__ import annotations

import dataclasses
import functools
import graphlib
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import yaml

from jaxgpt.errors import UserError, require

# gssm.kernels: those that a version of the original draws from its seed.
ORIGINAL_KERNELS = re.compile(r"(older|newer):([0-9]{1,19})")
# Their functions are in handmade.py.
HANDMADE = ("controller", "copy", "induction", "parity")
MODES = ("default", "slow", "dead", "context")
KERNELS = ("fullrank", "product")
LARGEST_INDEX = 2**31 - 1
# Copies of a float64 table held at once while it is drawn: 7.4 were measured.
COPIES = 8
# Beyond these, 1 / alpha or alpha itself overflows float32, which context kernels use.
LEAST_ALPHA, LARGEST_ALPHA = 1e-30, 1e30


@dataclasses.dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
      name: unique in the graph.
      state_dim: number of states.
      alpha: of the symmetric Dirichlet distribution that kernel rows are drawn from.
      parents: names of the nodes it reads.
      mode: in "slow" the likeliest new state is the old one, in "dead" it is 0;
        "context" draws a new kernel for every batch, or every sequence.
      kernel_type: "fullrank" draws a row for every combination of inputs; "product"
        multiplies one factor for each input. The original's newer version has product
        as its default.
      observed: whether its states are the tokens.
    """

    name: str
    state_dim: int
    alpha: float
    parents: tuple[str, ...] = ()
    mode: str = "default"
    kernel_type: str = "fullrank"
    observed: bool = False


@dataclasses.dataclass(frozen=True)
class LatentGraph:
    """A checked graph; made by `parse_graph`."""

    nodes: tuple[Node, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Node]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    @functools.cached_property
    def observed(self) -> Node:
        """The observed node."""
        return next(node for node in self.nodes if node.observed)

    @functools.cached_property
    def order(self) -> tuple[Node, ...]:
        """The nodes that evolve, in order: parents first, as X lists them; X last."""
        found: list[Node] = []

        def visit(node: Node) -> None:
            for name in node.parents:
                parent = self.by_name[name]
                if not parent.observed and parent not in found:
                    visit(parent)
            found.append(node)

        visit(self.observed)
        return tuple(found)

    @property
    def latents(self) -> tuple[Node, ...]:
        """The latents that evolve, in order."""
        return self.order[:-1]

    @property
    def has_context(self) -> bool:
        """Whether some kernel is redrawn for every batch or sequence."""
        return bool(self.context)

    @property
    def context(self) -> tuple[Node, ...]:
        """The nodes that evolve by a kernel that is redrawn."""
        return tuple(node for node in self.order if node.mode == "context")

    def inputs(self, node: Node) -> tuple[str, ...]:
        """Returns the axes of a node's table but the last: own old state, parents."""
        return node.parents if node.observed else (node.name, *node.parents)

    def shape(self, node: Node) -> tuple[int, ...]:
        """Returns the shape of a node's table: inputs, then the new state."""
        dims = [self.by_name[name].state_dim for name in self.inputs(node)]
        return (*dims, node.state_dim)

    def known(self) -> LatentGraph:
        """Returns the graph for given kernels, with which modes have no effect."""
        replace = dataclasses.replace
        return LatentGraph(tuple(replace(n, mode="default") for n in self.nodes))

    def to_json(self) -> str:
        """Returns the graph as `load_graph` reads it."""
        return json.dumps({"nodes": [dataclasses.asdict(node) for node in self.nodes]})

    def to_yaml(self) -> str:
        """Returns the graph as a file of `load_graph`: every field of every node.

        Under "gssm:" of a config, the original's newer version reads it too.
        """
        nodes = json.loads(self.to_json())  # YAML has no tuples.
        return yaml.safe_dump(nodes, sort_keys=False, allow_unicode=True, width=1000,
                              default_flow_style=None)  # fmt: skip


def parse_graph(spec: Any, source: str) -> LatentGraph:
    """Checks a list of nodes, or {"nodes": list}.

    Where no node is marked as observed, the one named X is.

    Args:
      spec: as decoded from JSON or YAML; a `Node` may stand for its fields.
      source: named in errors.

    Raises:
      UserError: naming what is wrong with which node.
    """
    entries = spec.get("nodes") if isinstance(spec, Mapping) else spec
    if not isinstance(entries, list | tuple) or not entries:
        raise UserError(f"graph '{source}' has no list of nodes")
    nodes = [_parse_node(entry, source) for entry in entries]
    if not any(node.observed for node in nodes):
        nodes = [dataclasses.replace(node, observed=node.name == "X") for node in nodes]
    graph = LatentGraph(tuple(nodes))
    _check(graph, f"graph '{source}'")
    return graph


def _parse_node(entry: Any, source: str) -> Node:
    entry = dataclasses.asdict(entry) if isinstance(entry, Node) else entry
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise UserError(f"graph '{source}': a node has no name: {str(entry)[:80]}")
    name = entry["name"]
    where = f"graph '{source}', node {name}"
    if not name or "/" in name:
        raise UserError(f"{where}: a name must be non-empty and without '/'")
    fields = [field.name for field in dataclasses.fields(Node)]
    if unknown := sorted(map(str, set(entry) - set(fields))):
        raise UserError(
            f"{where}: unknown '{unknown[0]}': a node has {', '.join(fields)}"
        )
    for field in ("state_dim", "alpha"):
        if field not in entry:
            raise UserError(f"{where} has no {field}")

    def check(condition: bool, field: str, rule: str) -> None:
        require(condition, f"{where}: {field}", rule, str(entry.get(field))[:40])

    state_dim, alpha = _number(entry["state_dim"]), _number(entry["alpha"])
    whole = 1 <= state_dim <= LARGEST_INDEX and state_dim == int(state_dim)
    check(whole, "state_dim", "an integer from 1 to 2^31 - 1")
    check(LEAST_ALPHA <= alpha <= LARGEST_ALPHA, "alpha", "a number from 1e-30 to 1e30")
    parents = entry.get("parents") or []
    listed = isinstance(parents, list | tuple)
    named = listed and all(isinstance(p, str) for p in parents)
    check(named, "parents", "a list of names")
    observed = entry.get("observed", False)
    check(isinstance(observed, bool), "observed", "true or false")
    choices = {}
    for field, known in (("mode", MODES), ("kernel_type", KERNELS)):
        choices[field] = str(entry.get(field, known[0])).lower()
        check(choices[field] in known, field, f"one of {', '.join(known)}")
    return Node(
        name, int(state_dim), alpha, tuple(parents), observed=observed, **choices
    )


def _number(value: Any) -> float:
    """Returns a number, NaN for anything else; YAML reads 1e-2 as text."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _check(graph: LatentGraph, where: str) -> None:
    """Checks how nodes refer to each other, and that this machine can draw them."""
    names = [node.name for node in graph.nodes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{where} has two nodes named {twice}")
    observed = [node.name for node in graph.nodes if node.observed]
    if len(observed) != 1:
        marked = f"{' and '.join(observed)} are" if observed else "none is"
        raise UserError(
            f"{where} needs one observed node: {marked} marked; give one of its nodes "
            "observed: true"
        )
    for node in graph.nodes:
        here = f"{where}, node {node.name}"
        if unknown := next((p for p in node.parents if p not in names), None):
            raise UserError(f"{here}: its parent {unknown} is not a node")
        if len(set(node.parents)) < len(node.parents):
            raise UserError(f"{here} lists a parent twice")
        if node.observed and node.mode in ("slow", "dead"):
            raise UserError(f"{here}: the observed node cannot be {node.mode}")
        product = node.kernel_type == "product"
        if node.mode == "slow" and product and node.parents:
            raise UserError(
                f"{here}: a slow product kernel has no parents: use fullrank"
            )
    # X is left out: its old state is read, so nothing waits for it.
    waits = {n.name: [p for p in n.parents if p not in observed] for n in graph.nodes}
    try:
        graphlib.TopologicalSorter(waits).prepare()
    except graphlib.CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise UserError(f"{where} has a cycle: {cycle} (each reads the next)") from None
    _check_sizes(graph, where)


def memory() -> int:
    """Returns the bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(needed: int, what: str, remedy: str) -> None:
    """Raises UserError if the machine has fewer bytes of memory than are needed."""
    if needed > memory():
        raise UserError(
            f"{what} would take {needed / 2**30:.1f} GiB, and this machine has "
            f"{memory() / 2**30:.1f}: {remedy}"
        )


def _check_sizes(graph: LatentGraph, where: str) -> None:
    total = 0
    for node in graph.order:
        size = math.prod(graph.shape(node))
        total += size
        kernel = " x ".join(map(str, graph.shape(node)))[:60]
        remedy = "lower state_dim or the number of parents"
        if size > LARGEST_INDEX:
            raise UserError(
                f"{where}, node {node.name}: its kernel of {kernel} has more than 2^31 "
                f"- 1 entries: {remedy}"
            )
        what = f"{where}, node {node.name}: {COPIES} copies of its kernel of {kernel}"
        check_memory(COPIES * 8 * total, what, remedy)
