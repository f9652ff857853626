"""A model with its memories: stores on the host, segments read and written."""

from __future__ import annotations

import dataclasses
import itertools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxgpt.model.config import ModelConfig
from jaxgpt.parallel import sharding
from jaxgpt.systems.host_state import Batch, HostState
from jaxgpt.systems.memory import entries as ops
from jaxgpt.systems.memory import model
from jaxgpt.systems.memory.config import IndexConfig
from jaxgpt.systems.memory.entries import Entries
from jaxgpt.systems.memory.model import MODES, Carried, MemoryModel, SegmentOutput
from jaxgpt.systems.memory.retrieval import (
    Lookup,
    Search,
    exact_search,
    make_search,
)
from jaxgpt.systems.memory.store import Store

TRAINING = 0  # Serial number of the store that training reads and writes.


class MemoryRuntime(HostState):
    """Opens stores, and reads and writes segments.

    Parameters and carried state are arguments. Compiled functions can take the runtime
    as a static argument: it is compared by identity.

    Attributes:
      stores: by serial number; that of training is `TRAINING`.
    """

    def __init__(self, graphdef: nnx.GraphDef, config: ModelConfig, memory: ConfigDict):
        self.graphdef, self.config, self.memory = graphdef, config, memory
        self.format = MODES[memory.mode].carried_format(config, memory)
        names = {field.name for field in dataclasses.fields(IndexConfig)} & set(memory)
        metric = "inner_product" if memory.mode == "attention" else "l2"
        self.index_config = IndexConfig(
            metric=metric, **{name: memory[name] for name in names}
        )
        self.stores: dict[int, Store] = {}
        self.search = make_search(self.stores, memory.num_search_results)
        self._serials = itertools.count(TRAINING + 1)

    def memory_rows(self, rows: int) -> int:
        """Returns how many memories a batch of this many rows has."""
        return 1 if self.memory.shared else rows

    def open(self, rows: int) -> tuple[Store, Carried]:
        """Returns an empty memory that compiled programs can search.

        `close` frees it.
        """
        serial = next(self._serials)
        state = self.recurrent_state(rows, serial)
        self.stores[serial] = Store(state["entries"], self.index_config)
        return self.stores[serial], state

    def close(self, store: Store) -> None:
        """Frees a memory that `open` returned."""
        del self.stores[int(store.version[0])]

    def recurrent_state(self, rows: int, serial: int = TRAINING) -> Carried:
        """Returns an empty memory and no recent tokens."""
        shape = (self.memory_rows(rows), self.memory.memory_size)
        return {
            "entries": ops.empty(*shape, self.format.key, self.format.values, serial),
            "recent": jnp.full((rows, self.format.context), -1, jnp.int32),
        }

    def on_restore(self, carried: Carried, host: dict[str, np.ndarray]) -> None:
        """Makes the training store of entries that are fresh or were restored."""
        self.stores[TRAINING] = Store(carried["entries"], self.index_config, host)

    def on_step_end(self, carried: Carried) -> None:
        """Updates the index with what the step has written."""
        self.stores[TRAINING].update(carried["entries"])

    def host_state(self) -> dict[str, np.ndarray]:
        """Returns what the training store's index holds in addition to the keys."""
        return self.stores[TRAINING].host_state()

    def split_groups(
        self, batch: Batch, carried: Carried, groups: int
    ) -> tuple[Batch, Carried]:
        """See `HostState.split_groups`: a row's memory goes where the row goes."""
        repeat = lambda array: jnp.broadcast_to(array, (groups, *jnp.shape(array)))
        of_rows = {name: array for name, array in batch.items() if jnp.ndim(array)}
        of_batch = {
            "progress": repeat(batch["progress"]),
            "weight_of_row": repeat(batch["weight_of_row"]),
            "forget": jax.random.split(batch["forget"], groups),
        }
        version, of_memory = _without_version(carried)
        state = sharding.in_groups(of_memory, groups)
        state["entries"]["version"] = repeat(version)
        return sharding.in_groups(of_rows, groups) | of_batch, state

    def merge_groups(self, carried: Carried) -> Carried:
        """See `HostState.merge_groups`."""
        version, of_memory = _without_version(carried)
        join = lambda array: array.reshape(-1, *array.shape[2:])
        state = jax.tree.map(join, of_memory)
        state["entries"]["version"] = version[0]
        return state

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
        """Returns what a batch reads.

        Args:
          state: the memory.
          reading: "on", "shuffled" to read another row's memory, or "off".
          store_row_B: of training, which rows of the store these are; None takes the
            first ones, and searches in the compiled program where that is possible.
          decision_key: see `Lookup`.
        """
        row_B = jnp.arange(len(state["recent"])) % len(state["entries"]["id"])
        search = self.search
        if store_row_B is None:
            store_row_B = row_B
            search = self.search_of(state["entries"], self.memory.num_search_results)
        if reading == "shuffled":
            row_B, store_row_B = jnp.roll(row_B, 1), jnp.roll(store_row_B, 1)
        entries = None if reading == "off" else state["entries"]
        return Lookup(row_B, entries, search, store_row_B, decision_key)

    def search_of(self, entries: Entries, k: int) -> Search:
        """Returns a search of entries whose rows are those of their store.

        Exact search needs no index, and XLA's disk cache keeps only programs that do
        not call the host: with others every command would compile again.
        """
        if self.memory.index_type == "flat":
            return exact_search(entries, self.index_config.metric, k)
        return make_search(self.stores, k)

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
          batch: of `model.write_segment`; for training with what
            `MemoryLM.train_batch` adds.
          reading: as of `lookup`.
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


def _without_version(carried: Carried) -> tuple[jax.Array, Carried]:
    """Returns the version, and what else is carried: all of it [rows, ...]."""
    entries = dict(carried["entries"])
    return entries.pop("version"), carried | {"entries": entries}
