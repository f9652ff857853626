"""The stores of a memory system, and the state that training carries."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxgpt.model.config import ModelConfig
from jaxgpt.parallel import sharding
from jaxgpt.systems.base import Batch, HostState
from jaxgpt.systems.memory.index import IndexConfig
from jaxgpt.systems.memory.model import Carried
from jaxgpt.systems.memory.modes import MODES
from jaxgpt.systems.memory.retrieval import make_search
from jaxgpt.systems.memory.store import Layout, Store

TRAINING = 0  # Serial number of the store that training reads and writes.


class MemoryHost(HostState):
    """Opens stores, and keeps the one of training in step with what steps carry.

    Attributes:
      stores: by serial number.
      search: of all of them, for compiled programs.
    """

    def __init__(self, config: ModelConfig, memory: ConfigDict):
        self.memory = memory
        mode = MODES[memory.mode]
        self.entry_format = mode.entry_format(config, memory)
        # As many tokens as the mode sees before a segment.
        self.context = memory.context if memory.mode == "associative" else mode.context
        names = {field.name for field in dataclasses.fields(IndexConfig)} & set(memory)
        metric = "inner_product" if memory.mode == "attention" else "l2"
        self.index_config = IndexConfig(
            metric=metric, **{name: memory[name] for name in names}
        )
        self.stores: dict[int, Store] = {}
        self.search = make_search(self.stores, memory.num_search_results)
        self._serials = itertools.count(TRAINING + 1)

    def layout(self, rows: int) -> Layout:
        """Returns the shape of a memory for a batch of this many rows."""
        key, values = self.entry_format
        rows = 1 if self.memory.shared else rows
        return Layout(rows, self.memory.memory_size, key, tuple(values.items()))

    def open(self, rows: int) -> tuple[Store, Carried]:
        """Returns an empty memory that compiled programs can search.

        Call `close` when it is no longer used.
        """
        serial = next(self._serials)
        state = self.recurrent_state(rows, serial)
        store = Store(self.layout(rows), self.index_config, state["entries"])
        self.stores[serial] = store
        return store, state

    def close(self, store: Store) -> None:
        """Frees a memory of `open`."""
        del self.stores[int(store.version[0])]

    def recurrent_state(self, rows: int, serial: int = TRAINING) -> Carried:
        """Returns an empty memory and no recent tokens."""
        return {
            "entries": self.layout(rows).empty(serial),
            "recent": jnp.full((rows, self.context), -1, jnp.int32),
        }

    def on_restore(self, carried: Carried, host: dict[str, np.ndarray]) -> None:
        """Makes the training store of entries that are fresh or were restored."""
        layout = self.layout(len(carried["recent"]))
        store = Store(layout, self.index_config, carried["entries"], host)
        self.stores[TRAINING] = store

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


def _without_version(carried: Carried) -> tuple[jax.Array, Carried]:
    """Returns the version, and what else is carried: all of it [rows, ...]."""
    entries = dict(carried["entries"])
    return entries.pop("version"), carried | {"entries": entries}
