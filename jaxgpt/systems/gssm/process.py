"""A graph with its kernels: a stochastic process whose exact likelihood is known."""

from __future__ import annotations

import copy
import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxgpt import config as configs
from jaxgpt.errors import UserError, log, require
from jaxgpt.model import rng
from jaxgpt.systems.gssm import handmade, kernels, likelihood, sequences
from jaxgpt.systems.gssm.graph import LatentGraph, load_graph

# Training, evaluation, fitting the baselines, a last test. A split's place in the list
# seeds its sequences.
SPLITS = ("train", "val", "fit", "test")


class GraphProcess:
    """Samples and scores sequences; batch `step` of a split is a pure function.

    The kernels of context nodes are redrawn for every batch, whose rows share them, or
    for every sequence (`context`).
    """

    def __init__(
        self,
        graph: LatentGraph,
        tables: kernels.Tables,
        first_token: str = "start",
        clip: float = 0.0,
        context: str = "batch",
    ):
        self.graph, self.first_token = graph, first_token
        self.clip = clip
        # Whether each sequence has its own kernels.
        self.by_sequence = graph.has_context and context == "sequence"
        self._use(tables)
        self.vocab_size = graph.observed.state_dim
        self._sample = jax.jit(self._sample_batch, static_argnums=(2, 3, 4))
        self._context = jax.jit(self._context_tables, static_argnums=1)

    def with_tables(self, tables: kernels.Tables) -> GraphProcess:
        """Returns the process with other kernels; nothing is compiled anew."""
        other = copy.copy(self)
        other.__dict__.pop("digest", None)  # Cached, of these kernels.
        other._use(tables)
        return other

    def _use(self, tables: kernels.Tables) -> None:
        for table in tables.values():
            table.flags.writeable = False  # Sampling has sums of them.
        self.tables = tables
        self.thresholds = {
            name: sequences.cumulative(table, jnp.float32)
            for name, table in tables.items()
        }

    @property
    def floor_name(self) -> str:
        """What the exact score is called.

        An estimate where every batch has its own kernels: it is given those, which a
        model must infer.
        """
        return "estimate" if self.graph.has_context else "exact"

    def dependent_rows(self, rows: int) -> int:
        """Returns how many neighbouring held-out sequences share drawn kernels."""
        return rows if self.graph.has_context and not self.by_sequence else 1

    def sample(
        self, seed: int, split: str, step: int, rows: int, length: int
    ) -> jax.Array:
        """Samples int32 tokens [rows, length], on the device; see `sample_nodes`."""
        X = self.graph.observed.name
        return self.sample_nodes((X,), seed, split, step, rows, length)[X]

    def sample_nodes(
        self,
        names: tuple[str, ...],
        seed: int,
        split: str,
        step: int,
        rows: int,
        length: int,
    ) -> dict[str, jax.Array]:
        """Samples {name: int32 states [rows, length]} of nodes, on the device.

        Raises:
          UserError: for a batch that needs 2^32 uniform numbers or more, or kernels
            that do not fit.
        """
        states, remedy = len(self.graph.order) * rows * length, "lower batch_size"
        require(states < 1 << 32, "states of a batch", "< 2^32", states, remedy)
        self._check_kernels(rows)
        place = _place(seed, split, step)
        return self._sample(self.thresholds, place, names, rows, length)

    def _sample_batch(self, thresholds, place, names, rows, length):
        found = functools.partial(sequences.cumulative, dtype=jnp.float32)
        found = jax.vmap(found) if self.by_sequence else found
        context = self._context_tables(place, rows)
        thresholds = thresholds | {name: found(context[name]) for name in context}
        key = jax.random.fold_in(_key(place), 1)
        states = sequences.sample_nodes(
            self.graph, thresholds, key, rows, length, self.first_token
        )
        return {name: states[name] for name in names}

    def _context_tables(self, place, rows):
        """Returns the kernels of the context nodes, [rows, ...] if by sequence."""
        draw = lambda key: kernels.draw_context_tables(key, self.graph, self.clip)
        if self.by_sequence:
            key = _key(place, "kernels")
            keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))
            log_tables = jax.vmap(draw)(keys)
        else:
            log_tables = draw(jax.random.fold_in(_key(place), 0))
        return {name: jnp.exp(log_p) for name, log_p in log_tables.items()}

    def _check_kernels(self, rows: int) -> None:
        """Raises UserError if the kernels of a batch's sequences are too large."""
        if self.by_sequence:
            kernels.check_size(self.graph, rows)

    def held_out(
        self, seed: int, split: str, count: int, rows: int, length: int, first: int = 0
    ) -> np.ndarray:
        """Returns int32 [count, length]: sequences of a split from batch `first` on."""
        X = self.graph.observed.name
        return self.held_out_nodes((X,), seed, split, count, rows, length, first)[X]

    def held_out_nodes(
        self,
        names: tuple[str, ...],
        seed: int,
        split: str,
        count: int,
        rows: int,
        length: int,
        first: int = 0,
    ) -> dict[str, np.ndarray]:
        """Returns {name: int32 states [count, length]} of `held_out` sequences."""
        steps = range(first, first + -(-count // rows))
        where = ((seed, split, step, rows, length) for step in steps)
        parts = [jax.device_get(self.sample_nodes(names, *place)) for place in where]
        return {n: np.concatenate([p[n] for p in parts])[:count] for n in names}

    def score_held_out(
        self,
        tokens_NT: np.ndarray,
        seed: int,
        split: str,
        rows: int,
        dtype: str,
        wanted: str = "nll",
        first: int = 0,
    ) -> Any:
        """Returns the exact score, or what else is wanted, of `held_out` sequences.

        Those of a context graph are scored with the kernels that were drawn for them;
        `first` is the first batch. For the rest see `likelihood.forward`.
        """
        if not self.graph.has_context:
            return self.score(tokens_NT, dtype, wanted)
        self._check_kernels(rows)
        parts = []
        for step, start in enumerate(range(0, len(tokens_NT), rows), first):
            drawn = self._context(_place(seed, split, step), rows)
            tables, own = self.tables, None
            if self.by_sequence:
                own = drawn
            else:
                tables = {**tables, **drawn}
            parts.append(
                likelihood.forward(
                    self.graph,
                    tables,
                    tokens_NT[start : start + rows],
                    self.first_token,
                    dtype,
                    wanted,
                    own,
                )
            )
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    def score(
        self, tokens_BT: np.ndarray, dtype: str = "float32", wanted: str = "nll"
    ) -> Any:
        """Returns `likelihood.forward` of any sequences, by default their score."""
        return likelihood.forward(
            self.graph, self.tables, tokens_BT, self.first_token, dtype, wanted
        )

    def check_given(self, tokens_BT: np.ndarray, source: str) -> None:
        """Checks sequences that a user has, which `source` names in errors.

        Raises:
          UserError: if nothing is predicted, or the kernels that they were drawn with
            are not known.
        """
        if tokens_BT.shape[1] < 2:
            raise UserError(
                f"'{source}' has rows of 1 token: give 2 or more, since the first is "
                "not predicted"
            )
        if self.graph.has_context:
            raise UserError(
                "the kernels of a context graph are drawn for every batch: give those "
                f"of '{source}' with --kernels"
            )

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the graph, its tables and the conventions of its sequences."""
        text = f"{self.graph.to_json()} {self.first_token}"
        # Files of graphs without context nodes have the digest they always had.
        found = hashlib.sha256((text + " sequence" * self.by_sequence).encode())
        for name in sorted(self.tables):
            found.update(np.float32(self.tables[name]).tobytes())
        return found.hexdigest()


def _place(seed: int, split: str, step: int) -> tuple[np.uint32, ...]:
    return np.uint32(seed), np.uint32(SPLITS.index(split)), np.uint32(step)


def _key(place: tuple[Any, ...], stream: str = "data") -> jax.Array:
    seed, split, step = place
    return jax.random.fold_in(rng.at(seed, stream, step), split)


def resolve(config: ConfigDict) -> kernels.Tables | None:
    """Replaces the name in `gssm.graph` by what it names, as JSON.

    Returns:
      The kernels, if they are given: by `gssm.kernels`, or by a graph made by hand.

    Raises:
      UserError: if the graph or its kernels are unusable.
    """
    c = config.gssm
    named = "" if c.kernels.lstrip().startswith("{") else c.kernels
    if made := handmade.read(c.graph):
        if c.kernels:
            raise UserError(
                f"gssm.graph '{c.graph}' has kernels of its own: leave out gssm.kernels"
            )
        named = c.graph
        config.update_from_flattened_dict(made.fields())
    graph = load_graph(c.graph)
    c.graph = graph.to_json()
    if not c.kernels:
        return None
    tables = kernels.load_tables(graph, c.kernels)
    default = configs.base().gssm
    unused = [f"gssm.{name}={c[name]}" for name in ("graph_seed", "clip")
              if c[name] != default[name]]  # fmt: skip
    if named and unused:
        without = f"{' and '.join(unused)} without effect"
        log(f"note: the kernels are those of '{named}', which leaves {without}")
    return tables


def make_process(
    config: ConfigDict, tables: kernels.Tables | None = None
) -> GraphProcess:
    """Returns the process of `config.gssm`, by default with its kernels.

    Raises:
      UserError: as `resolve`.
    """
    c = config.gssm
    if tables is None:
        tables = resolve(config)
    graph = load_graph(c.graph)
    if unused := [node.name for node in graph.nodes if node not in graph.order]:
        log(
            f"note: {', '.join(unused)} of the graph: no path leads from there to "
            f"{graph.observed.name}, so it is left out"
        )
    if tables is not None:
        return GraphProcess(graph.known(), tables, c.first_token)
    tables = kernels.draw_tables(graph, c.graph_seed, c.clip)
    return GraphProcess(graph, tables, c.first_token, c.clip, c.context)
