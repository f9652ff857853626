"""The graph of a graph-structured sequential model: its nodes, and what they read.

Latent nodes Z and one observed node X evolve in discrete time from state 0. In a step
every latent reads its own old state, the new states of its parents, and the old state
of X where X is a parent; then X reads the new states of its parents, and its own old
one where it lists itself. Only ancestors of X evolve.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import graphlib
import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

from jaxgpt.config import find_path, shipped
from jaxgpt.errors import UserError, log, require

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
        return any(self.context)

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
        """Returns the graph for kernels that are known: nothing is drawn by mode."""
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


def load_graph(text: str, typed: Collection[str] = ()) -> LatentGraph:
    """Reads a graph: JSON text, the name of a JSON or YAML file, or of a shipped graph.

    A file may hold the graph anywhere below its top, as the original's configs do. One
    of several is named by keys that lead to it: "data.yaml:sparse",
    "data.yaml:gssm.nodes.3".

    Args:
      text: as above.
      typed: nodes whose kernel_type is set later, whatever the file says of them.

    Raises:
      UserError: if the file is missing, does not describe a graph, or holds several.
    """
    if not text:
        raise UserError(
            "gssm.graph is empty: name a file, such as data/graphs/easy.yaml"
        )
    if text.lstrip().startswith(("{", "[")):
        return parse_graph(_decode(text, "gssm.graph"), "gssm.graph")
    keys, file = "", find_path(text)
    if not file.is_file():
        file = find_path(f"data/graphs/{text}.yaml")
    if not file.is_file() and ":" in text:
        # A file's name may have colons of its own.
        name, _, keys = text.rpartition(":")
        file = find_path(name)
    if not file.is_file():
        if text.partition(":")[0] in HANDMADE:
            raise UserError(
                f"'{text}' is made by hand, with its kernels: only nodes whose kernels "
                "are drawn can be changed"
            )
        graphs = shipped("data/graphs").glob("*.yaml")
        raise UserError(
            f"no graph file '{text}': name JSON or YAML with a list of nodes, or one "
            f"of {', '.join(sorted(graph.stem for graph in graphs))}, or of those made "
            f"by hand: {', '.join(HANDMADE)}"
        )
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"graph file '{text}' cannot be read: {error}") from None
    nodes = _choose(_decode(content, text), keys, text)
    graph = parse_graph(nodes, text)
    _say_kernel_types(graph, nodes, typed, text)
    return graph


def _choose(spec: Any, keys: str, source: str) -> Any:
    """Returns the list of nodes that keys lead to in a file."""
    try:
        found = {".".join(path): nodes for path, nodes in _graphs(spec)}
    except RecursionError:  # YAML may hold itself.
        raise UserError(f"graph '{source}' is nested too deeply") from None
    chosen = [n for n in found if not keys or n == keys or n.startswith(f"{keys}.")]
    if len(chosen) == 1:
        return found[chosen[0]]
    if not found:
        raise UserError(f"graph '{source}' has no list of nodes")
    file = source.removesuffix(f":{keys}")
    names = [n.removesuffix(".nodes").removesuffix(".gssm") for n in chosen or found]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    what = f"holds {len(chosen)} graphs" if chosen else "names no graph of its file"
    raise UserError(
        f"'{source}' {what}: name {file}:KEY, where KEY is one of "
        f"{', '.join(names[:6])}{more}"
    )


def _graphs(spec: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple, list]]:
    """Yields (keys, nodes) of the graphs in a file, also of a list of graphs."""
    if isinstance(spec, list):
        nodes = all(isinstance(entry, Mapping) for entry in spec)
        if not path or ("nodes" in path[-2:] and nodes):
            yield path, spec
            return
        spec = dict(enumerate(spec))
    if isinstance(spec, Mapping):
        for key, value in spec.items():
            yield from _graphs(value, (*path, str(key)))


def _say_kernel_types(
    graph: LatentGraph, entries: Any, typed: Collection[str], source: str
) -> None:
    """Says which kernels the original's newer version would make in another way."""
    newer = any("observed" in entry or "kernel_type" in entry for entry in entries)
    told = {entry["name"] for entry in entries if "kernel_type" in entry} | {*typed}
    names = [n.name for n in graph.order
             if n.name not in told and len(graph.inputs(n)) > 1]  # fmt: skip
    if newer and names:
        log(
            f"note: graph '{source}' has no kernel_type for {', '.join(names)}: it is "
            "fullrank here, product in the original's newer version; "
            f"gssm.nodes.{names[0]}.kernel_type sets it"
        )


def change_nodes(
    graph: LatentGraph, changes: Mapping[str, Any], known_kernels: bool = False
) -> LatentGraph:
    """Returns a graph with other fields of its nodes.

    Args:
      graph: to begin with.
      changes: {"gssm.nodes.NODE.FIELD": value}, which may be text: parents as "Z1,Z2"
        or "[Z1, Z2]".
      known_kernels: whether the kernels are given, so that none is drawn.

    Raises:
      UserError: for an unknown node or field, a field that only matters to kernels
        that are drawn, or a graph that cannot be.
    """
    entries = {node.name: dataclasses.asdict(node) for node in graph.nodes}
    fields = [f.name for f in dataclasses.fields(Node) if f.name != "name"]
    for key, value in changes.items():
        name, _, field = key.removeprefix("gssm.nodes.").rpartition(".")
        require(bool(name), "a change of the graph", "gssm.nodes.NODE.FIELD", key)
        if name not in entries:
            raise UserError(f"{key}: the nodes of gssm.graph are {', '.join(entries)}")
        if field not in fields:
            raise UserError(f"{key}: the fields of a node are {', '.join(fields)}")
        if known_kernels and field in ("alpha", "mode", "kernel_type"):
            raise UserError(
                f"{key} says how kernels are drawn, and gssm.kernels gives them: "
                "remove one of the two"
            )
        entries[name][field] = _read_field(field, value, key)
    return parse_graph(list(entries.values()), "gssm.graph")


def _read_field(field: str, value: Any, source: str) -> Any:
    """Returns a field of a node as parsed from text; other fields read their own."""
    if not isinstance(value, str):
        return value
    if field == "observed":
        return {"true": True, "false": False}.get(value.lower(), value)
    if field == "parents":
        listed = value.lstrip().startswith("[")
        return _decode(value, source) if listed else value.replace(",", " ").split()
    return value


def _decode(text: str, source: str) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)  # JSON with tabs is not YAML.
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"graph '{source}' is neither JSON nor YAML: {reason}"
        ) from None


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
    """Checks what nodes say of each other, and what this machine can draw."""
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
        if (needed := COPIES * 8 * total) > memory():
            raise UserError(
                f"{where}, node {node.name}: drawing its kernel of {kernel} entries "
                f"needs {needed / 2**30:.1f} GiB ({COPIES} copies), and this machine "
                f"has {memory() / 2**30:.1f}: {remedy}"
            )
