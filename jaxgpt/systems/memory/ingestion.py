"""Documents read into a memory: many segments at a time where none depends on another.

An entry of a mode that is not `entangled` follows from the text alone, so nothing is
searched for, and XLA drops every part of the model that leads to no entry.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.systems.base import Batch
from jaxgpt.systems.memory import entries as ops
from jaxgpt.systems.memory import model
from jaxgpt.systems.memory.entries import Entries
from jaxgpt.systems.memory.retrieval import Lookup, Retrieval
from jaxgpt.systems.memory.runtime import MemoryRuntime
from jaxgpt.systems.memory.store import Store

# Segments in a compiled call, largest first: few programs, and nothing is padded.
AT_ONCE = (64, 8, 1)


def ingest(
    runtime: MemoryRuntime,
    store: Store,
    params: dict,
    tokens_T: np.ndarray,
    number: int,
    start: int = 0,
) -> None:
    """Reads a document into a memory of one row.

    Every token gets an entry, or with memory.keep=decided those that the model keeps;
    where an entry holds the token that followed, the last one has none. They are those
    of `session.sample` with the same tokens given.

    Args:
      runtime, params: of the model.
      store: of `MemoryRuntime.open`; is extended.
      tokens_T: int32, the document from its beginning, of one token or more.
      number: of the document.
      start: how many of its tokens have been read; they are context.
    """
    end = len(tokens_T) - runtime.format.stores_next
    entangled = runtime.format.entangled
    at_once = (1,) if entangled else AT_ONCE
    for batch in _batches(runtime, tokens_T, number, start, end, at_once):
        recent_BW = batch.pop("recent")
        if entangled:
            read_segment(runtime, store, params, batch, recent_BW)
        else:
            store.update(_read(runtime, params, store.entries, batch, recent_BW))


def recent(tokens_T: np.ndarray, width: int) -> np.ndarray:
    """Returns the last tokens [width] of a text, -1 before its beginning."""
    last = tokens_T[-width:]
    return np.pad(last, (width - len(last), 0), constant_values=-1)


def read_segment(
    runtime: MemoryRuntime, store: Store, params: dict, batch: Batch, recent_BW: Any
) -> tuple[Any, Retrieval]:
    """Reads a segment and writes it; returns the new recent tokens, and what was read.

    Args:
      runtime, store, params: as of `ingest`.
      batch: as of `model.write_segment`.
      recent_BW: the tokens before it.
    """
    state = {"entries": store.entries, "recent": recent_BW}
    state, found = _read_segment(runtime, params, state, batch)
    store.update(state["entries"])
    return state["recent"], found


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
