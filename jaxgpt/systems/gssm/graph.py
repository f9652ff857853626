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
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import yaml

from jaxgpt.config import user_path
from jaxgpt.errors import UserError

MODES = ("default", "slow", "dead", "context")
KERNELS = ("fullrank", "product")
REPOSITORY = pathlib.Path(__file__).parents[3]
LARGEST_INDEX = 2**31 - 1
# Of a table in float64, held at once while it is drawn: 7.4 were measured.
COPIES = 8
# Beyond these, 1 / alpha or alpha itself leaves float32, which context kernels are in.
LEAST_ALPHA, LARGEST_ALPHA = 1e-30, 1e30


@dataclasses.dataclass(frozen=True)
class Node:
    """One node.

    `alpha` is the parameter of the symmetric Dirichlet distribution that the rows of
    its kernel are drawn from. `mode`: in "slow" the likeliest new state is the old
    one, in "dead" it is 0, "context" draws the kernel anew for every batch.
    `kernel_type`: "fullrank" draws a row for every combination of inputs; "product"
    multiplies one factor for each input.
    """

    name: str
    state_dim: int
    alpha: float
    parents: tuple[str, ...] = ()
    mode: str = "default"
    kernel_type: str = "fullrank"
    observed: bool = False


@dataclasses.dataclass(frozen=True)
class Graph:
    """A checked graph; made by `parse`."""

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
        """Whether some kernel is drawn anew for every batch."""
        return any(node.mode == "context" for node in self.order)

    def inputs(self, node: Node) -> tuple[str, ...]:
        """Returns the axes of a node's table but the last: own old state, parents."""
        return node.parents if node.observed else (node.name, *node.parents)

    def shape(self, node: Node) -> tuple[int, ...]:
        """Returns the shape of a node's table: inputs, then the new state."""
        dims = [self.by_name[name].state_dim for name in self.inputs(node)]
        return (*dims, node.state_dim)

    def known(self) -> Graph:
        """Returns the graph of kernels that are known: no node is of context."""
        return Graph(
            tuple(
                dataclasses.replace(node, mode="default")
                if node.mode == "context"
                else node
                for node in self.nodes
            )
        )

    def to_json(self) -> str:
        """Returns the graph as `parse` reads it."""
        return json.dumps({"nodes": [dataclasses.asdict(node) for node in self.nodes]})


def load(text: str) -> Graph:
    """Reads a graph: JSON text, or the name of a JSON or YAML file.

    Raises:
      UserError: where there is no such file, or it describes no graph.
    """
    if not text:
        raise UserError(
            "gssm.graph is empty: name a file, such as data/graphs/easy.yaml"
        )
    if text.lstrip().startswith(("{", "[")):
        return parse(_decode(text, "gssm.graph"), "gssm.graph")
    path = user_path(text)
    file = next((p for p in (path, REPOSITORY / path) if p.is_file()), None)
    if file is None:
        raise UserError(f"no graph file '{text}': JSON or YAML with a list of nodes")
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"graph file '{text}' cannot be read: {error}") from None
    return parse(_decode(content, text), text)


def _decode(text: str, source: str) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)  # JSON with tabs is no YAML.
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"graph '{source}' is no JSON or YAML: {reason}") from None


def parse(spec: Any, source: str) -> Graph:
    """Checks a list of nodes, or {"nodes": list}.

    Where no node is marked as observed, the one named X is.

    Args:
      spec: as decoded from JSON or YAML.
      source: named in errors.

    Raises:
      UserError: naming what is wrong with which node.
    """
    nodes = spec.get("nodes") if isinstance(spec, Mapping) else spec
    if not isinstance(nodes, list) or not nodes:
        raise UserError(f"graph '{source}' has no list of nodes")
    read = [_node(entry, source) for entry in nodes]
    if not any(node.observed for node in read):
        read = [dataclasses.replace(node, observed=node.name == "X") for node in read]
    graph = Graph(tuple(read))
    _check(graph, source)
    return graph


def _node(entry: Any, source: str) -> Node:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise UserError(f"graph '{source}': a node has no name: {str(entry)[:80]}")
    name = entry["name"]
    where = f"graph '{source}', node {name}"
    if not name or "/" in name:
        raise UserError(f"{where}: a name is not empty and has no '/'")
    known = {field.name for field in dataclasses.fields(Node)}
    if unknown := sorted(map(str, set(entry) - known)):
        raise UserError(f"{where}: unknown '{unknown[0]}': it has {', '.join(known)}")
    for field in ("state_dim", "alpha"):
        if field not in entry:
            raise UserError(f"{where} has no {field}")
    state_dim = _number(entry["state_dim"], where, "state_dim")
    if not 1 <= state_dim <= LARGEST_INDEX or state_dim != int(state_dim):
        raise UserError(
            f"{where}: state_dim {state_dim:g} is no whole number from 1 to 2^31"
        )
    alpha = _number(entry["alpha"], where, "alpha")
    if alpha <= 0:
        raise UserError(f"{where}: alpha {alpha:g} is not above 0")
    if not LEAST_ALPHA <= alpha <= LARGEST_ALPHA:
        raise UserError(
            f"{where}: alpha {alpha:g} is not from {LEAST_ALPHA:g} to {LARGEST_ALPHA:g}"
        )
    parents = entry.get("parents") or []
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        raise UserError(f"{where}: parents are a list of names")
    observed = entry.get("observed", False)
    if not isinstance(observed, bool):
        raise UserError(f"{where}: observed is true or false: not {observed!r}")
    chosen = {}
    for field, choices in (("mode", MODES), ("kernel_type", KERNELS)):
        value = str(entry.get(field, choices[0])).lower()
        if value not in choices:
            raise UserError(
                f"{where}: {field} is one of {', '.join(choices)}: not '{value[:40]}'"
            )
        chosen[field] = value
    return Node(
        name, int(state_dim), alpha, tuple(parents), observed=observed, **chosen
    )


def _number(value: Any, where: str, field: str) -> float:
    """Returns a finite number; YAML reads 1e-2, without a point, as text."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {field} is a number: not {str(value)[:40]!r}")
    return number


def _check(graph: Graph, source: str) -> None:
    names = [node.name for node in graph.nodes]
    where = f"graph '{source}'"
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{where} has two nodes named {twice}")
    observed = [node.name for node in graph.nodes if node.observed]
    if len(observed) != 1:
        found = f"{' and '.join(observed)} are" if observed else "none is"
        raise UserError(
            f"{where} needs one observed node: {found} marked; give one of its nodes "
            "observed: true"
        )
    for node in graph.nodes:
        here = f"{where}, node {node.name}"
        if unknown := next((p for p in node.parents if p not in names), None):
            raise UserError(f"{here}: its parent {unknown} is no node")
        if len(set(node.parents)) < len(node.parents):
            raise UserError(f"{here} lists a parent twice")
        if node.observed and node.mode in ("slow", "dead"):
            raise UserError(f"{here}: the observed node is not {node.mode}")
        product = node.kernel_type == "product"
        if node.mode == "slow" and product and node.parents:
            raise UserError(
                f"{here}: a slow product kernel has no parents: take fullrank"
            )
    _check_cycles(graph, where)
    _check_sizes(graph, where)


def _check_cycles(graph: Graph, where: str) -> None:
    """Refuses latents that would wait for each other; X passes on its old state."""
    done: set[str] = set()
    for start in graph.nodes:
        path: list[str] = []
        stack = [(start.name, False)]
        while stack:
            name, leaves = stack.pop()
            if leaves:
                path.pop()
                done.add(name)
                continue
            if name in path:
                cycle = " -> ".join([*path[path.index(name) :], name])
                raise UserError(f"{where} has a cycle: {cycle} (each reads the next)")
            if name in done:
                continue
            path.append(name)
            stack.append((name, True))
            for parent in graph.by_name[name].parents:
                if not graph.by_name[parent].observed:
                    stack.append((parent, False))


def _check_sizes(graph: Graph, where: str) -> None:
    """Refuses tables that this machine cannot draw."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    total = 0
    for node in graph.order:
        shape = graph.shape(node)
        size = math.prod(shape)
        total += size
        if size > LARGEST_INDEX or COPIES * 8 * total > memory:
            raise UserError(
                f"{where}, node {node.name}: its kernel of {_shown(shape)} entries "
                f"takes {_bytes(8 * size)}, {COPIES} times while it is drawn, too much "
                f"for this machine's {_bytes(memory)}: lower state_dim or the number "
                "of parents"
            )


def _shown(shape: tuple[int, ...]) -> str:
    text = " x ".join(map(str, shape))
    return text if len(text) < 80 else f"{text[:60]} ... x {shape[-1]}"


def _bytes(count: int) -> str:
    """Returns a size as people write it; of any number of digits."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if count < 1024:
            return f"{count} {unit}"
        count //= 1024
    return f"10^{math.floor(math.log10(count) + math.log10(1024**6))} B"
