"""A graph with its kernels: a stochastic process whose exact likelihood is known."""

from __future__ import annotations

import copy
import functools
import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxgpt import config as configs
from jaxgpt.errors import UserError, log, require
from jaxgpt.model import rng
from jaxgpt.systems.gssm import (
    context,
    handmade,
    kernels,
    likelihood,
    particles,
    sequences,
)
from jaxgpt.systems.gssm.graph import LatentGraph
from jaxgpt.systems.gssm.graph_files import load_graph

# Training, evaluation, fitting the baselines, a last test. A split's place in the list
# seeds its sequences.
SPLITS = ("train", "val", "fit", "test")


class Stream(NamedTuple):
    """An endless stream of sequences, sampled in batches of some rows.

    Its split is one of `SPLITS`.
    """

    seed: int
    split: str
    rows: int

    def at(self, step: int) -> tuple[np.uint32, ...]:
        """Returns the place of a batch, for a compiled function."""
        # jit would trace Python integers as int32, which has only half of the seeds.
        place = self.seed, SPLITS.index(self.split), step
        return tuple(map(np.uint32, place))


class GraphProcess:
    """Samples and scores sequences; batch `step` of a stream is a pure function.

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
        particles: int = 256,
    ):
        self.graph, self.first_token = graph, first_token
        self.clip, self.particles = clip, particles
        # Whether each sequence has its own kernels.
        self.by_sequence = graph.has_context and context == "sequence"
        self._use(tables)
        self.vocab_size = graph.observed.state_dim
        self._sample = jax.jit(self._sample_batch, static_argnums=(2, 3, 4))
        self._context = jax.jit(self._context_tables, static_argnums=1)

    def with_tables(self, tables: kernels.Tables) -> GraphProcess:
        """Returns the process with other kernels; what is compiled is shared."""
        other = copy.copy(self)
        other.__dict__.pop("digest", None)  # It is cached.
        other._use(tables)
        return other

    def _use(self, tables: kernels.Tables) -> None:
        for table in tables.values():
            table.flags.writeable = False  # The thresholds are made of them once.
        self.tables = tables
        self.thresholds = {
            name: sequences.cumulative(table, jnp.float32)
            for name, table in tables.items()
        }

    @property
    def floor_name(self) -> str:
        """The name of the lowest expected loss of any model.

        "exact" given the kernels; "bayes" for a context graph, where a model does not
        know them; "bayes_estimate" where that has no closed form.
        """
        if not self.graph.has_context:
            return "exact"
        return "bayes" if context.has_closed_form(self.graph) else "bayes_estimate"

    def dependent_rows(self, rows: int) -> int:
        """Returns how many consecutive held-out sequences share drawn kernels."""
        return rows if self.graph.has_context and not self.by_sequence else 1

    def sample(self, stream: Stream, step: int, length: int) -> jax.Array:
        """Samples int32 tokens [rows, length], on the device; see `sample_nodes`."""
        X = self.graph.observed.name
        return self.sample_nodes((X,), stream, step, length)[X]

    def sample_nodes(
        self, names: tuple[str, ...], stream: Stream, step: int, length: int
    ) -> dict[str, jax.Array]:
        """Samples {name: int32 states [rows, length]} of nodes, on the device.

        Raises:
          UserError: for a batch that needs 2^32 uniform numbers or more, or kernels
            that do not fit.
        """
        rows, remedy = stream.rows, "lower batch_size"
        states = len(self.graph.order) * rows * length
        require(states < 1 << 32, "states of a batch", "< 2^32", states, remedy)
        self._check_kernels(rows)
        return self._sample(self.thresholds, stream.at(step), names, rows, length)

    def _sample_batch(self, thresholds, place, names, rows, length):
        found = functools.partial(sequences.cumulative, dtype=jnp.float32)
        found = jax.vmap(found) if self.by_sequence else found
        drawn = self._context_tables(place, rows)
        thresholds = thresholds | {name: found(drawn[name]) for name in drawn}
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

    def held_out(self, stream: Stream, count: int, length: int) -> np.ndarray:
        """Returns int32 [count, length]: the first sequences of a stream."""
        X = self.graph.observed.name
        return self.held_out_nodes((X,), stream, count, length)[X]

    def held_out_nodes(
        self,
        names: tuple[str, ...],
        stream: Stream,
        count: int,
        length: int,
        first: int = 0,
    ) -> dict[str, np.ndarray]:
        """Returns {name: int32 states [count, length]} from batch `first` on."""
        steps = range(first, first + -(-count // stream.rows))
        sample = functools.partial(self.sample_nodes, names, stream, length=length)
        parts = [jax.device_get(sample(step)) for step in steps]
        return {n: np.concatenate([p[n] for p in parts])[:count] for n in names}

    def score_held_out(
        self,
        tokens_NT: np.ndarray,
        stream: Stream,
        dtype: str,
        wanted: str = "nll",
        first_token: str = "",
    ) -> Any:
        """Returns the exact score, or what else is wanted, of `held_out` sequences.

        Those of a context graph are scored with the kernels that were drawn for them.
        `first_token` is that of the process by default. For the rest see
        `likelihood.forward`.
        """
        if not self.graph.has_context:
            return self.score(tokens_NT, dtype, wanted)
        rows = stream.rows
        self._check_kernels(rows)
        how = first_token or self.first_token, dtype, wanted
        parts = []
        for step, start in enumerate(range(0, len(tokens_NT), rows)):
            drawn = self._context(stream.at(step), rows)
            tables, own = self.tables | drawn, None
            if self.by_sequence:
                tables, own = self.tables, drawn
            part_BT = tokens_NT[start : start + rows]
            parts.append(likelihood.forward(self.graph, tables, part_BT, *how, own))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    def bounds(
        self, tokens_NT: np.ndarray, stream: Stream, dtype: str
    ) -> dict[str, np.ndarray]:
        """Returns scores of `held_out` sequences, float64 [N, T - 1], in nats.

        Returns:
          The floor first, under `floor_name`; of a context graph also "known_kernels",
          the score given the kernels that were drawn. "bayes_estimate" is in
          expectation above the Bayes floor, "bayes_lower" below it, and
          "known_kernels" too.

        Raises:
          UserError: as `likelihood.forward` and `estimate`.
        """
        if self.floor_name == "exact":
            return {"exact": self.score(tokens_NT, dtype)}
        # From time 0 on, as particles are weighted.
        whole = likelihood.from_time_0(tokens_NT, self.first_token)
        known = self.score_held_out(whole, stream, dtype, "nll", "start")
        if self.floor_name == "bayes":
            found = {"bayes": self.score(tokens_NT)}
        else:
            names = tuple(node.name for node in self.graph.order)
            states = self.held_out_nodes(names, stream, *tokens_NT.shape)
            given = tokens_NT, stream.seed, stream.split
            found = {
                "bayes_estimate": self.estimate(*given),
                "bayes_lower": self.estimate(*given, states, known),
            }
        return found | {"known_kernels": self._predicted(known)}

    def estimate(
        self,
        tokens_NT: np.ndarray,
        seed: int,
        split: str,
        states: dict[str, np.ndarray] | None = None,
        known: np.ndarray | None = None,
        count: int = 0,
    ) -> np.ndarray:
        """Returns an estimate of the Bayes floor, float64 [N, T - 1]; see particles.py.

        Args:
          tokens_NT: integers.
          seed, split: of the random numbers.
          states, known: for the lower bound, the true {node: states [N, T]}, and the
            score from time 0 on under the true kernels.
          count: of particles; 0 takes `particles`.

        Raises:
          UserError: for other tokens, or particles that do not fit.
        """
        likelihood.check_tokens(self.graph, tokens_NT, self.first_token)
        key = jax.random.fold_in(rng.stream(seed, "particles"), SPLITS.index(split))
        key = jax.random.fold_in(key, int(states is not None))
        whole = lambda states_NT: likelihood.from_time_0(states_NT, self.first_token)
        given = self.graph, self.tables, whole(tokens_NT), count or self.particles, key
        if all(kernels.is_conjugate(self.graph, node) for node in self.graph.context):
            paths = states and {name: whole(path) for name, path in states.items()}
            nll = particles.filtered(*given, paths)
        else:
            nll = particles.weighted(*given, self.clip, known)
        return self._predicted(nll)

    def _predicted(self, nll: np.ndarray) -> np.ndarray:
        """Returns a score from time 0 on without the first token, if it is drawn."""
        return nll[:, int(self.first_token == "drawn") :]

    def score(
        self, tokens_BT: np.ndarray, dtype: str = "float32", wanted: str = "nll"
    ) -> Any:
        """Returns `likelihood.forward` of any sequences, by default their score.

        Of a context graph it is their Bayes floor.

        Raises:
          UserError: as `likelihood.forward` and `check_known`.
        """
        self.check_known("tokens", wanted)
        if self.floor_name == "bayes":
            return context.closed_form(self.graph, tokens_BT, self.first_token, wanted)
        return likelihood.forward(
            self.graph, self.tables, tokens_BT, self.first_token, dtype, wanted
        )

    def check_given(self, tokens_BT: np.ndarray, source: str) -> None:
        """Raises UserError if no token of a user's sequences is predicted."""
        if tokens_BT.shape[1] < 2:
            raise UserError(
                f"'{source}' has rows of 1 token: give 2 or more, since the first is "
                "not predicted"
            )

    def check_known(self, source: str, wanted: str) -> None:
        """Raises UserError if what is wanted needs kernels that are redrawn.

        A Bayes floor with a closed form needs none: its "nll" and "predictive".
        """
        bayes = self.floor_name == "bayes" and wanted in ("nll", "predictive")
        if self.graph.has_context and not bayes:
            remedy = "; gssm.estimate_nll needs none" if wanted == "nll" else ""
            raise UserError(
                f"the kernels of a context graph are redrawn, and {wanted} needs those "
                f"of '{source}': give them with --kernels{remedy}"
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
                f"gssm.graph '{c.graph}' has its own kernels: leave out gssm.kernels"
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
            f"note: {', '.join(unused)} of the graph: no path leads to "
            f"{graph.observed.name}, so it is left out"
        )
    if tables is not None:
        return GraphProcess(graph.known(), tables, c.first_token)
    tables = kernels.draw_tables(graph, c.graph_seed, c.clip)
    return GraphProcess(graph, tables, c.first_token, c.clip, c.context, c.particles)
