"""Transition tables of a graph: drawn from Dirichlet distributions, or read.

A table holds p(new state | inputs) along its last axis; the other axes are the inputs
as `Graph.inputs` names them. Tables are made in log space, where a product of many
factors, or a row drawn with a small alpha, does not underflow.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.config import user_path
from jaxgpt.data.arrays import why_not_loaded
from jaxgpt.errors import UserError
from jaxgpt.model import rng
from jaxgpt.systems.gssm.graph import (
    COPIES,
    LARGEST_INDEX,
    ORIGINAL_KERNELS,
    LatentGraph,
    Node,
    memory,
)

Tables = dict[str, np.ndarray]

# Probabilities that the config of a run may hold: 5 MB of JSON.
MOST_KEPT = 1 << 18


def draw_tables(graph: LatentGraph, seed: int, clip: float) -> Tables:
    """Draws {node: float64 table [inputs ..., state_dim]} of all nodes that evolve.

    `clip` is the least probability before normalisation; 0 leaves zeros.
    """
    tables = {}
    for node in graph.order:
        # By NumPy in float64, so that every host and backend has the same tables.
        key = rng.at(seed, "graph", graph.nodes.index(node))
        generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        drawn = []
        for shape in _factors(graph, node):
            # Gamma(alpha) is Gamma(alpha + 1) times U^(1 / alpha), which underflows.
            larger = generator.standard_gamma(node.alpha + 1, shape)
            power = np.log1p(-generator.random(shape)) / node.alpha
            drawn.append(np.log(larger) + power)
        tables[node.name] = np.exp(_log_table(drawn, graph, node, clip, np))
    return tables


def draw_context_tables(
    key: jax.Array, graph: LatentGraph, clip: float
) -> dict[str, jax.Array]:
    """Draws {context node: float32 log table}."""
    tables = {}
    for index, node in enumerate(graph.nodes):
        if node in graph.order and node.mode == "context":
            own = jax.random.fold_in(key, index)
            drawn = [
                jax.random.loggamma(
                    jax.random.fold_in(own, i), node.alpha, shape, jnp.float32
                )
                for i, shape in enumerate(_factors(graph, node))
            ]
            tables[node.name] = _log_table(drawn, graph, node, clip, jnp)
    return tables


def check_size(graph: LatentGraph, rows: int) -> None:
    """Raises UserError if the context nodes' tables of so many sequences do not fit."""
    size = rows * sum(math.prod(graph.shape(node)) for node in graph.context)
    # Binary search pads rows to a power of two, up to twice as many, indexed by int32.
    most = min(memory() // (4 * COPIES), LARGEST_INDEX // 2)
    if size > most:
        raise UserError(
            f"gssm.context=sequence: the kernels of {rows} sequences have {size:,} "
            f"entries in all, and this machine takes {most:,}: lower batch_size or "
            "state_dim"
        )


def is_conjugate(graph: LatentGraph, node: Node) -> bool:
    """Returns whether counts update the distribution that a node's rows come from."""
    return len(_factors(graph, node)) == 1


def _factors(graph: LatentGraph, node: Node) -> list[tuple[int, ...]]:
    """Returns the shapes drawn: a matrix for each input, or the whole table."""
    shape = graph.shape(node)
    if node.kernel_type == "product" and len(shape) > 1:
        return [(dim, shape[-1]) for dim in shape[:-1]]
    return [shape]


def _log_table(
    drawn: list, graph: LatentGraph, node: Node, clip: float, xp: ModuleType
) -> Any:
    """Returns the normalised log table [inputs ..., state_dim] of a node.

    `drawn` has the logarithm of a Gamma(alpha) variable for each entry of each factor;
    `xp` is numpy or jax.numpy.
    """
    shape = graph.shape(node)
    total = 0.0
    for axis, factor in enumerate(drawn):
        log_p = _normalise(factor, xp)
        if node.mode == "dead":
            log_p = _put_largest(log_p, 0, xp)
        elif node.mode == "slow":
            own = xp.arange(shape[0]).reshape(-1, *[1] * (factor.ndim - 1))
            log_p = _put_largest(log_p, own, xp)
        if clip:
            log_p = xp.maximum(log_p, np.log(clip))
        if len(drawn) > 1:
            axes = [1] * (len(shape) - 1)
            axes[axis] = shape[axis]
            log_p = log_p.reshape(*axes, shape[-1])
        total = total + log_p
    return _normalise(total, xp)


def _normalise(log_p: Any, xp: ModuleType) -> Any:
    log_p = log_p - log_p.max(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return log_p - xp.log(xp.exp(log_p).sum(-1, keepdims=True))


def _put_largest(log_p: Any, state: Any, xp: ModuleType) -> Any:
    """Swaps each row's largest entry with the one at a state."""
    index = xp.arange(log_p.shape[-1])
    state = xp.broadcast_to(state, (*log_p.shape[:-1], 1))
    there = xp.take_along_axis(log_p, state, -1)
    largest = log_p.argmax(-1)[..., None]
    swapped = xp.where(index == largest, there, log_p)
    return xp.where(index == state, log_p.max(-1, keepdims=True), swapped)


def draw_as_original(
    graph: LatentGraph, version: str, generator: np.random.Generator
) -> Tables:
    """Draws the tables that the "older" or "newer" original draws, normalised.

    Raises:
      UserError: if that version does not support the graph.
    """
    older, X = version == "older", graph.observed
    reason = ""
    if graph.has_context:
        reason = "kernels of context nodes, which are redrawn"
    elif older and any(node.kernel_type == "product" for node in graph.nodes):
        reason = "product kernels, which the older version does not have"
    elif not older and any(X.name in node.parents for node in graph.nodes):
        reason = f"{X.name} as a parent, which the newer version does not have"
    if reason:
        raise UserError(f"gssm.kernels={version}: the graph has {reason}")
    # In the original's order, on which the draws depend: a node whose parents are not
    # made goes to the end. The older version draws X last; the newer one stops there.
    waiting = [n for n in graph.nodes if not (older and n.observed)] + [X] * older
    made = {X.name} if older else set()
    tables: Tables = {}
    while X.name not in tables:
        node = waiting.pop(0)
        if not made.issuperset(node.parents):
            waiting.append(node)
            continue
        with np.errstate(divide="ignore"):
            drawn = [
                np.log(generator.dirichlet(np.full(d, node.alpha), inputs))
                for *inputs, d in _factors(graph, node)
            ]
        clip = 0.0 if older else 1e-10
        tables[node.name] = np.exp(_log_table(drawn, graph, node, clip, np))
        made.add(node.name)
    return check_tables(graph, tables, f"gssm.kernels={version}")


def load_tables(graph: LatentGraph, text: str) -> Tables:
    """Returns the tables of nodes that evolve.

    `text` is the name of an .npz file; JSON of `tables_to_json`; or "older:SEED" or
    "newer:SEED", with the seed of the original's config for `draw_as_original`.

    Raises:
      UserError: as `read_tables` and `draw_as_original`.
    """
    if found := ORIGINAL_KERNELS.fullmatch(text):
        version, seed = found.groups()
        (child,) = np.random.SeedSequence(int(seed)).spawn(1)
        return draw_as_original(graph, version, np.random.default_rng(child))
    if not text.lstrip().startswith("{"):
        return read_tables(graph, text)
    try:
        tables = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"gssm.kernels is not valid JSON: {error}") from None
    return check_tables(graph, tables, "gssm.kernels")


def tables_to_json(tables: Tables) -> str:
    """Returns tables as `load_tables` reads them, to the last bit.

    Raises:
      UserError: if they are too large for the config of a run.
    """
    if (size := sum(table.size for table in tables.values())) > MOST_KEPT:
        raise UserError(
            f"gssm.kernels hold {size} probabilities: a run keeps at most {MOST_KEPT} "
            "in its config"
        )
    return json.dumps({name: table.tolist() for name, table in tables.items()})


def read_tables(graph: LatentGraph, file: str) -> Tables:
    """Reads the arrays table/NAME of an .npz file.

    Raises:
      UserError: if it cannot be read, or as `check_tables`.
    """
    try:
        archive = np.load(user_path(file), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with archive:
            return check_tables(graph, archive, file, "table/")
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"'{file}' is not an .npz file with arrays table/NAME: "
            f"{why_not_loaded(error)}"
        ) from None


def check_tables(
    graph: LatentGraph, arrays: Mapping[str, Any], source: str, prefix: str = ""
) -> Tables:
    """Returns the tables of the nodes that evolve, named so after a prefix.

    Raises:
      UserError: if one is missing, of no node, of another shape, or does not hold
        probabilities.
    """
    tables = {}
    for node in graph.order:
        name, shape = prefix + node.name, graph.shape(node)
        if name not in arrays:
            raise UserError(f"'{source}' has no array {name}: the graph needs it")
        try:
            table = tables[node.name] = np.array(arrays[name], np.float64)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"'{source}': {name} is not an array of numbers: "
                f"{why_not_loaded(error)}"
            ) from None
        if table.shape != shape:
            raise UserError(
                f"'{source}': {name} must have shape {list(shape)} "
                f"(old state, parents as listed, new state), got {list(table.shape)}"
            )
        # Positive conditions, because every comparison with NaN is false.
        right = (table >= 0).all(-1) & (np.abs(table.sum(-1) - 1) < 1e-6)
        if not right.all():
            row = np.argwhere(~right)[0]
            raise UserError(
                f"'{source}': {name} must hold probabilities that sum to 1 along the "
                f"last axis: row {row.tolist()} {_fault(table[tuple(row)])}"
            )
    known = {prefix + name for name in graph.by_name}
    unknown = [n for n in arrays if str(n).startswith(prefix) and n not in known]
    if unknown:
        raise UserError(f"'{source}' has {unknown[0]}: the graph has no such node")
    return tables


def _fault(row: np.ndarray) -> str:
    """Returns why a row of numbers is not a distribution."""
    if not np.isfinite(row).all():
        return "has a number that is not finite"
    if row.min() < 0:
        return f"has {row.min():.6g}"
    return f"sums to {row.sum():.6g}"
