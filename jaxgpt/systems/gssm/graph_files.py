"""Graphs read from files, ours and the original's, and changed by node fields."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

from jaxgpt.config import find_path, shipped
from jaxgpt.errors import UserError, log, require
from jaxgpt.systems.gssm.graph import HANDMADE, LatentGraph, Node, parse_graph


def load_graph(text: str, typed: Collection[str] = ()) -> LatentGraph:
    """Reads a graph: JSON text, the name of a JSON or YAML file, or of a shipped graph.

    A file may hold the graph at any depth, as the original's configs do. One of several
    is named by the keys that lead to it: "data.yaml:sparse", "data.yaml:gssm.nodes.3".

    Args:
      text: as above.
      typed: nodes whose kernel_type is overridden, so that no note on it is logged.

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
        # The last colon: a file's name may contain others.
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
    except RecursionError:  # YAML anchors can be recursive.
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
    """Logs which kernels would be of another type in the original's newer version."""
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
      known_kernels: whether the kernels are given rather than drawn.

    Raises:
      UserError: for an unknown node or field, a field that has no effect on given
        kernels, or an invalid graph.
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
                f"{key} sets how kernels are drawn, but gssm.kernels gives them: "
                "remove one of the two"
            )
        entries[name][field] = _read_field(field, value, key)
    return parse_graph(list(entries.values()), "gssm.graph")


def _read_field(field: str, value: Any, source: str) -> Any:
    """Parses the text of a field, where `parse_graph` does not."""
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
        return json.loads(text)  # First: JSON with tabs is not valid YAML.
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"graph '{source}' is neither JSON nor YAML: {reason}"
        ) from None
