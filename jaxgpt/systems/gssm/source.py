"""A graph with its kernels: a source of sequences whose likelihood is known."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxgpt.errors import UserError
from jaxgpt.model import rng
from jaxgpt.systems.gssm import generator, graph, kernels, likelihood
from jaxgpt.systems.gssm.graph import Graph

# What sequences are for: training, evaluation, fitting the baselines, a last test. The
# place of a split draws its sequences.
SPLITS = ("train", "val", "fit", "test")


class Source:
    """Draws and scores sequences; batch `step` of a split is a pure function.

    The kernels of context nodes are drawn anew for every batch, shared by its rows.
    """

    def __init__(
        self,
        nodes: Graph,
        tables: kernels.Tables,
        first_token: str = "start",
        clip: float = 0.0,
    ):
        self.graph, self.tables, self.first_token = nodes, tables, first_token
        self.clip = clip
        self.vocab_size = nodes.observed.state_dim
        self.thresholds = {
            name: generator.cumulative(table, jnp.float32)
            for name, table in tables.items()
        }
        self._draw = jax.jit(self._draw_batch, static_argnums=(2, 3))
        self._context = jax.jit(self._draw_context)

    def draw(
        self, seed: int, split: str, step: int, rows: int, length: int
    ) -> jax.Array:
        """Draws int32 tokens [rows, length], on the device.

        Raises:
          UserError: for a batch that needs more than 2^32 draws.
        """
        if len(self.graph.order) * rows * length >= 1 << 32:
            raise UserError(
                f"a batch of {rows} x {length} tokens is too large for this graph of "
                f"{len(self.graph.order)} nodes: lower batch_size or model.block_size"
            )
        where = (np.uint32(seed), np.uint32(SPLITS.index(split)), np.uint32(step))
        return self._draw(self.thresholds, where, rows, length)

    def _draw_batch(self, thresholds, where, rows, length):
        tables = self._draw_context(where)
        thresholds = thresholds | {
            name: generator.cumulative(table, jnp.float32)
            for name, table in tables.items()
        }
        key = jax.random.fold_in(_key(where), 1)
        return generator.sequences(
            self.graph, thresholds, key, rows, length, self.first_token
        )

    def _draw_context(self, where):
        key = jax.random.fold_in(_key(where), 0)
        drawn = kernels.draw_context(key, self.graph, self.clip)
        return {name: jnp.exp(log_p) for name, log_p in drawn.items()}

    def tables_at(self, seed: int, split: str, step: int) -> dict[str, Any]:
        """Returns the tables of one batch: context nodes have their own."""
        where = (np.uint32(seed), np.uint32(SPLITS.index(split)), np.uint32(step))
        return {**self.tables, **self._context(where)}

    def held_out(
        self, seed: int, split: str, count: int, rows: int, length: int
    ) -> np.ndarray:
        """Returns the first count sequences of a split, int32 [count, length]."""
        steps = -(-count // rows)
        parts = [self.draw(seed, split, step, rows, length) for step in range(steps)]
        return np.concatenate([np.asarray(part) for part in parts])[:count]

    def score_held_out(
        self, tokens_NT: np.ndarray, seed: int, split: str, rows: int, dtype: str
    ) -> np.ndarray:
        """Returns the exact score [N, T - 1] of `held_out` sequences, in nats.

        Of a context graph: the score given each batch's own kernels, which no model
        that must infer them can reach.
        """
        if not self.graph.has_context:
            return self.score(tokens_NT, dtype)
        parts = [
            likelihood.score(
                self.graph,
                self.tables_at(seed, split, start // rows),
                tokens_NT[start : start + rows],
                self.first_token,
                dtype,
            )
            for start in range(0, len(tokens_NT), rows)
        ]
        return np.concatenate(parts)

    def score(self, tokens_BT: np.ndarray, dtype: str = "float32") -> np.ndarray:
        """Returns the exact score [B, T - 1] of given sequences, in nats."""
        return likelihood.score(
            self.graph, self.tables, tokens_BT, self.first_token, dtype
        )

    @functools.cached_property
    def digest(self) -> str:
        """What this source is: a hash of its graph, tables and first token."""
        found = hashlib.sha256(f"{self.graph.to_json()} {self.first_token}".encode())
        for name in sorted(self.tables):
            found.update(np.float32(self.tables[name]).tobytes())
        return found.hexdigest()


def _key(where) -> jax.Array:
    """Returns the key of batch `step` of a split: where is (seed, split, step)."""
    seed, split, step = where
    return jax.random.fold_in(rng.at(seed, "data", step), split)


def from_config(config: ConfigDict) -> Source:
    """Returns the source that `config.gssm` describes.

    Raises:
      UserError: where its graph cannot be used.
    """
    c = config.gssm
    nodes = graph.load(c.graph)
    return Source(
        nodes, kernels.draw(nodes, c.graph_seed, c.clip), c.first_token, c.clip
    )
