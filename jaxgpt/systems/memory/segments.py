"""Segments read and written one after another, as training and everything else do."""

from __future__ import annotations

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxgpt.model.config import ModelConfig
from jaxgpt.systems.memory import model
from jaxgpt.systems.memory.host import MemoryHost
from jaxgpt.systems.memory.model import Carried, MemoryModel, SegmentOutput
from jaxgpt.systems.memory.retrieval import Lookup


@dataclasses.dataclass(frozen=True, eq=False)  # By identity, so that jit may hash it.
class SegmentReader:
    """A model and the stores that it reads; parameters and state are arguments."""

    graphdef: nnx.GraphDef
    config: ModelConfig
    memory: ConfigDict
    host: MemoryHost

    def model(self, params: dict) -> MemoryModel:
        """Returns the module over these parameters."""
        return cast(MemoryModel, nnx.merge(self.graphdef, params))

    def lookup(
        self,
        state: Carried,
        reading: str,
        store_row_B: jax.Array | None = None,
        decision_key: jax.Array | None = None,
    ) -> Lookup:
        """Returns what a batch reads: its own memory, another row's, or none.

        Args:
          state: the memory.
          reading: "on", "shuffled" or "off".
          store_row_B: which rows of the store these are; by default the first ones.
          decision_key: see `Lookup`.
        """
        row_B = jnp.arange(len(state["recent"])) % len(state["entries"]["id"])
        store_row_B = row_B if store_row_B is None else store_row_B
        if reading == "shuffled":
            row_B, store_row_B = jnp.roll(row_B, 1), jnp.roll(store_row_B, 1)
        entries = None if reading == "off" else state["entries"]
        return Lookup(row_B, entries, self.host.search, store_row_B, decision_key)

    def read(
        self,
        params: dict,
        state: Carried,
        batch: dict[str, jax.Array],
        reading: str,
        *,
        continues: bool = False,
        training: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> tuple[Carried, SegmentOutput, jax.Array]:
        """Reads a segment and writes it.

        Args:
          params: of the model.
          state: the memory.
          batch: as `model.write_segment` takes it; for training with what
            `MemoryLM.train_batch` adds.
          reading: see `lookup`.
          continues: keeps the memory where a document begins.
          training: stores every token and weighs it when it is read, so that store
            decisions have gradients; otherwise they are carried out.
          dropout_key: turns dropout on.

        Returns:
          (state, what was read, store decisions [B, T]).
        """
        module = self.model(params)
        if not continues:
            state = model.begin_documents(state, batch["start"] == 0)
        forget_key = batch["forget"] if training else None
        draws = training and self.memory.budget
        lookup = self.lookup(
            state,
            reading,
            batch["row"] if training else None,
            jax.random.fold_in(batch["forget"], 1) if draws else None,
        )
        tokens_BT = batch["tokens"][:, :-1]
        read = module.read(tokens_BT, state["recent"], lookup, dropout_key=dropout_key)
        state, keep_BT = model.write_segment(
            module, state, read, batch, self.memory, not training, forget_key
        )
        return state, read, keep_BT
