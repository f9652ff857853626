"""Documents read into a memory: many segments at a time where none depends on another.

An entry of a mode that is not `entangled` follows from the text alone, so nothing is
searched for, and XLA drops every part of the model that leads to no entry.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.systems.base import Batch
from jaxgpt.systems.memory import entries as ops
from jaxgpt.systems.memory import model
from jaxgpt.systems.memory.entries import Entries
from jaxgpt.systems.memory.model import Carried
from jaxgpt.systems.memory.modes import MODES
from jaxgpt.systems.memory.retrieval import Lookup, Retrieval
from jaxgpt.systems.memory.runtime import MemoryRuntime
from jaxgpt.systems.memory.store import Store

# Segments in a compiled call, largest first: few programs, and nothing is padded.
AT_ONCE = (64, 8, 1)


class Held(Protocol):
    """A memory: its model, its index and entries, and what is carried."""

    store: Store
    state: Carried

    @property
    def runtime(self) -> MemoryRuntime:
        """Of the model."""


def ingest(
    memory: Held,
    params: dict,
    tokens_T: np.ndarray,
    number: int,
    start: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Reads a document into a memory of one row.

    Every token gets an entry, or with memory.keep=decided those that the model keeps;
    where an entry holds the token that followed, the last one has none. They are those
    of `session.sample` with the same tokens given.

    Args:
      memory: is extended.
      params: of the model.
      tokens_T: int32, the document from its beginning, of one token or more.
      number: of the document.
      start: how many of its tokens have been read; they are context.
      on_progress: is called with how many of the others have been read so far.
    """
    runtime = memory.runtime
    end = len(tokens_T) - MODES[runtime.memory.mode].stores_next
    entangled = runtime.format.entangled
    at_once = (1,) if entangled else AT_ONCE
    for batch in _batches(runtime, tokens_T, number, start, end, at_once):
        recent_BW = batch.pop("recent")
        if entangled:
            memory.state = memory.state | {"recent": recent_BW}
            read_segment(memory, params, batch)
        else:
            entries = _read(runtime, params, memory.state["entries"], batch, recent_BW)
            memory.state = memory.state | {"entries": entries}
            memory.store.update(entries)
        if on_progress:
            read = int(batch["start"][-1]) + runtime.config.block_size
            on_progress(min(read, len(tokens_T)) - start)


def recent(tokens_T: np.ndarray, width: int) -> np.ndarray:
    """Returns the last tokens [width] of a text, -1 before its beginning."""
    last = tokens_T[-width:]
    return np.pad(last, (width - len(last), 0), constant_values=-1)


def read_segment(memory: Held, params: dict, batch: Batch) -> Retrieval:
    """Reads and writes a segment; returns what each of its tokens retrieved.

    Args:
      memory: is searched and extended.
      params: of the model.
      batch: as of `model.write_segment`.
    """
    memory.state, found = _read_segment(memory.runtime, params, memory.state, batch)
    memory.store.update(memory.state["entries"])
    return found


def _batches(
    runtime: MemoryRuntime,
    tokens_T: np.ndarray,
    number: int,
    start: int,
    end: int,
    at_once: tuple[int, ...],
) -> Iterator[dict[str, Any]]:
    """Yields batches of the segments that begin at start, start + block, ... < end."""
    block, W = runtime.config.block_size, runtime.format.context
    padded = np.pad(tokens_T, (0, block))
    while start < end:
        left = -(-(end - start) // block)
        count = next(size for size in at_once if size <= left)
        start_B = start + block * np.arange(count, dtype=np.int32)
        yield {
            "tokens": padded[start_B[:, None] + np.arange(block + 1)],
            "recent": np.stack([recent(padded[:first], W) for first in start_B]),
            "document": np.full(count, number, np.int32),
            "start": start_B,
            "stored": start_B[:, None] + np.arange(block) < end,
        }
        start += block * count


@functools.partial(jax.jit, static_argnames="runtime", donate_argnums=2)
def _read(
    runtime: MemoryRuntime, params: dict, entries: Entries, batch: Batch, recent_BW
) -> Entries:
    """Returns the memory of one row with the entries of B segments that read none."""
    module, tokens_BT = runtime.model(params), batch["tokens"][:, :-1]
    read = module.read(tokens_BT, recent_BW, Lookup(jnp.arange(len(tokens_BT))))
    new, wanted_BT, _ = model.new_entries(module, read, batch, runtime.memory, True)
    new, wanted_1N = model.in_one_row((new, wanted_BT))
    written = ops.write(entries, new, wanted_1N, runtime.memory.eviction)
    return ops.next_version(written)


@functools.partial(jax.jit, static_argnames="runtime")
def _read_segment(runtime: MemoryRuntime, params, state, batch):
    state, read, _ = runtime.read(
        params, state, batch, runtime.memory.reading, continues=True
    )
    return state, dataclasses.replace(read.retrieval, to_store={})
