"""Documents that a memory has read: kept in a file, looked up, forgotten for good."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.data import reading
from jaxgpt.errors import UserError, log
from jaxgpt.systems.memory import file
from jaxgpt.systems.memory.config import IndexConfig
from jaxgpt.systems.memory.header import Document, Header, peek
from jaxgpt.systems.memory.ingestion import ingest, recent
from jaxgpt.systems.memory.runtime import MemoryRuntime
from jaxgpt.systems.memory.store import Store, with_prefix

# Settings of memory.* that must agree for a memory to make sense to a model.
SETTINGS = ("mode", "context", "store_layer", "delete", "layer")
# Of an index: how it is searched, not how it is built.
SEARCHING = ("candidates", "ef_search", "threads")


class Nearest(NamedTuple):
    """An entry: number of its document, position there, and how near it is."""

    document: int
    position: int
    score: float


class Memory:
    """The entries of what was read, and the documents that they come from.

    Attributes:
      store: of the entries; one row, except for texts sampled side by side.
      settings: those that must agree with a model's.
      names: of the documents; an entry's document is a number in this list.
      texts: the tokens of each document.
      reads: (document, tokens) of every text that was read, in order.
      written_by, dtype: see `Header`.
      evicted: whether entries were evicted that documents still lack.
      file: path and digest of the file it was read from or last saved as.
    """

    def __init__(
        self,
        store: Store,
        settings: dict[str, Any],
        runtime: MemoryRuntime | None,
        written_by: dict[str, Any] | None,
    ):
        self.store, self.settings = store, settings
        self._runtime, self.written_by = runtime, written_by
        self.names: list[str] = []
        self.texts: list[np.ndarray] = []
        self.reads: list[tuple[int, int]] = []
        self.dtype = file.DTYPES[0]
        self.evicted = False
        self.file: tuple[pathlib.Path | None, str] = None, ""

    @classmethod
    def empty(
        cls,
        runtime: MemoryRuntime,
        rows: int = 1,
        written_by: dict[str, Any] | None = None,
    ) -> Memory:
        """Returns a memory without documents."""
        store, _ = runtime.open(rows)
        return cls(store, _settings(runtime), runtime, written_by)

    @property
    def runtime(self) -> MemoryRuntime:
        """Of the model; listing and forgetting documents may need none."""
        assert self._runtime
        return self._runtime

    def begin(self, name: str) -> int:
        """Begins a document, or continues the one of this name; returns its number."""
        if name not in self.names:
            self.names.append(name)
            self.texts.append(np.zeros(0, np.int32))
        return self.names.index(name)

    def unused_name(self) -> str:
        """Returns "text N", the next that no document has."""
        names = (f"text {number}" for number in itertools.count(len(self.names) + 1))
        return next(name for name in names if name not in self.names)

    def end(self, number: int, tokens_T: np.ndarray) -> None:
        """Notes that these tokens of a document have been read."""
        self.texts[number] = np.concatenate([self.texts[number], tokens_T])
        self.reads.append((number, len(tokens_T)))
        written = int(np.asarray(self.store.entries["next_id"])[0])
        self.evicted |= written > self.store.size()

    def documents(self) -> list[Document]:
        """Returns the documents, in the order in which they were first read."""
        return self._header().documents()

    def _header(self) -> Header:
        entries = self.store.entries
        document_N = np.asarray(entries["document"])[np.asarray(entries["id"]) >= 0]
        counts = np.bincount(document_N, minlength=len(self.names))
        return Header(
            names=self.names,
            entries=counts.tolist(),
            reads=[list(read) for read in self.reads],
            settings=self.settings,
            index=dataclasses.asdict(self.store.config),
            memory_size=self.store.stamps.shape[1],
            written_by=self.written_by,
            evicted=self.evicted,
            dtype=self.dtype,
            digest="",
        )

    def number(self, name: str) -> int:
        """Returns the number of a document; UserError if there is none of this name."""
        if name not in self.names:
            known = reading.some(self.names) if self.names else "none"
            raise UserError(f"the memory has no document '{name}': it has {known}")
        return self.names.index(name)

    def read(self, params: dict, name: str, tokens_T: np.ndarray) -> None:
        """Reads int32 tokens as a document, or continues the one of this name."""
        number = self.begin(name)
        before_T = self.texts[number]
        text_T = np.concatenate([before_T, tokens_T])
        ingest(self.runtime, self.store, params, text_T, number, len(before_T))
        self.end(number, tokens_T)

    def forget(self, name: str, params: dict | None = None) -> int:
        """Removes a document; returns how many entries it had.

        The memory is then one that never read it. For that the other documents are read
        again where entries depend on others (`CarriedFormat.entangled`) or were
        evicted; without params, what was evicted does not come back.

        Raises:
          UserError: if it holds no such document, or params are needed.
        """
        number = self.number(name)
        entangled = self.settings["entangled"]
        if entangled and params is None:
            raise UserError(
                f"other documents' entries may hold what was read of '{name}': name "
                "the run with --workdir, so that they can be read again"
            )
        count = self.documents()[number].entries
        if params is not None and (entangled or self.evicted):
            self.read_again(params, number)
        else:
            self.store.forget_document(number)
            del self.names[number], self.texts[number]
            self.reads = [
                (other - (other > number), tokens)
                for other, tokens in self.reads
                if other != number
            ]
        return count

    def read_again(self, params: dict, without: int | None = None) -> None:
        """Empties the memory, and reads all documents but that of one number."""
        names, texts, reads = self.names, self.texts, self.reads
        self.runtime.close(self.store)
        self.store, _ = self.runtime.open(len(self.store.stamps))
        self.names, self.texts, self.reads, self.evicted = [], [], [], False
        done = [0] * len(names)
        for number, count in reads:
            if number != without:
                start, done[number] = done[number], done[number] + count
                self.read(params, names[number], texts[number][start : start + count])

    def nearest(self, params: dict, tokens_T: np.ndarray, k: int) -> list[Nearest]:
        """Returns at most k entries of row 0, those nearest to the end of a text.

        Of all heads' nearest, they have the largest sum over heads. Only the last
        segment of the text is read; nothing is written.
        """
        runtime, entries = self.runtime, self.store.entries
        block = runtime.config.block_size
        recent_1W = recent(tokens_T[:-block], runtime.format.context)[None]
        tokens_T = tokens_T[-block:]
        padded_1T = np.pad(tokens_T, (0, block - len(tokens_T)))[None]
        query_1TGK = _query(runtime, params, entries, padded_1T, recent_1W)
        query_11GK = query_1TGK[:, len(tokens_T) - 1 :][:, :1]
        search = runtime.search_of(entries, min(k, self.store.size()))
        row_1 = jnp.zeros(1, jnp.int32)
        slot_N = np.unique(search(entries["version"], row_1, query_11GK))
        slot_N = slot_N[slot_N >= 0]
        indices = self.store.indices[0]  # One of each head.
        key_NGK = np.stack([index.vectors[slot_N] for index in indices], 1)
        query_1GK = np.asarray(query_11GK)[0]
        if runtime.index_config.metric == "inner_product":
            score_N = (query_1GK * key_NGK).sum((1, 2))
        else:
            score_N = -((query_1GK - key_NGK) ** 2).sum((1, 2))
        document_E = np.asarray(entries["document"])[0]
        position_E = np.asarray(entries["position"])[0]
        order = (-score_N).argsort(kind="stable")[:k]
        return [
            Nearest(int(document_E[slot]), int(position_E[slot]), float(score))
            for slot, score in zip(slot_N[order], score_N[order], strict=True)
        ]

    def save(self, path: pathlib.Path) -> None:
        """Writes the file, atomically.

        Raises:
          UserError: if it cannot, the file there is not a memory, or it has changed
            since this memory was read.
        """
        arrays = file.pack(self.store.entries, self.dtype)
        # Rounded keys need another index, which is built when they are read.
        if self.dtype == file.DTYPES[0]:
            arrays |= {f"index/{k}": v for k, v in self.store.host_state().items()}
        arrays |= {f"texts/{n}": text for n, text in enumerate(self.texts)}
        known, digest = self.file
        there = peek(path).digest if path.exists() else None
        if there and known == path.resolve() and there != digest:
            raise UserError(
                f"'{path}' has changed since it was read: open it again, to not "
                "overwrite the changes"
            )
        self.file = path.resolve(), file.write(path, self._header(), arrays).digest

    @classmethod
    def load(
        cls,
        path: pathlib.Path,
        runtime: MemoryRuntime | None = None,
        model: dict[str, Any] | None = None,
        allow_other_model: bool = False,
    ) -> Memory:
        """Reads a file that `save` wrote.

        Args:
          path: of the file.
          runtime: of the model that reads it, with room for its entries; its index may
            be of another type.
          model: what `Header.written_by` must be, if there is a runtime.
          allow_other_model: only warns if it is something else.

        Raises:
          UserError: if it is damaged, of another model or with other settings, or has
            more entries than there is room for.
        """
        header, arrays = file.read(path)
        index, size = IndexConfig(**header.index), header.memory_size
        if runtime:
            index, size = runtime.index_config, runtime.memory.memory_size
            _check_settings(path, header.settings, _settings(runtime))
            _check_model(path, header.written_by, model, allow_other_model)
        count = len(arrays["entries/slot"])
        if count > size:
            raise UserError(
                f"--memory='{path}' holds {count} entries: memory_size must be "
                f">= {count}, got {size}"
            )
        entries, moved = file.unpack(arrays, size)
        kept = with_prefix(arrays, "index/")
        if moved or not _built_alike(header.index, dataclasses.asdict(index)):
            kept = {}
        if runtime:
            store, _ = runtime.open(1)
            # The serial numbers of stores are local to a process.
            store.load(entries | {"version": store.entries["version"]}, kept)
        else:
            store = Store(entries, index, kept)
        memory = cls(store, header.settings, runtime, header.written_by)
        memory.names = header.names
        memory.texts = [arrays[f"texts/{n}"] for n in range(len(memory.names))]
        memory.reads = [(number, tokens) for number, tokens in header.reads]
        memory.dtype, memory.evicted = header.dtype, header.evicted
        memory.file = path.resolve(), header.digest
        return memory


def _settings(runtime: MemoryRuntime) -> dict[str, Any]:
    """Returns what must agree between a memory and the model that reads it."""
    found = {f"memory.{name}": runtime.memory[name] for name in SETTINGS}
    shapes = {name: list(shape) for name, shape in runtime.format.values.items()}
    return found | {
        "the shape of a key": list(runtime.format.key),
        "the shapes of values": shapes,
        "stores_next": runtime.format.stores_next,
        "entangled": runtime.format.entangled,
    }


def _built_alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Returns whether an index of one config may be searched with the other."""
    return all(one.get(n) == other[n] for n in other if n not in SEARCHING)


def _check_settings(
    path: pathlib.Path, found: dict[str, Any], wanted: dict[str, Any]
) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            raise UserError(
                f"--memory='{path}' is of a model with {name} {found.get(name)}: this "
                f"one has {value}"
            )


def _check_model(
    path: pathlib.Path,
    found: dict[str, Any] | None,
    wanted: dict[str, Any] | None,
    allow: bool,
) -> None:
    """Compares the model that wrote a memory with the one that reads it."""
    if not (found and wanted):
        return
    for name, what in (("params", "other weights"), ("tokenizer", "another tokenizer")):
        if found[name] == wanted[name]:
            continue
        text = (
            f"--memory='{path}' was written with {what} (run '{found['run']}', step "
            f"{found['step']}) than those of run '{wanted['run']}', step "
            f"{wanted['step']}"
        )
        if not allow:
            raise UserError(
                f"{text}: ingest its documents into a file of this model, or read it "
                "all the same with --allow_other_model"
            )
        log(f"warning: {text}: its entries may be meaningless to this model")


@functools.partial(jax.jit, static_argnames="runtime")
def _query(runtime: MemoryRuntime, params, entries, tokens_BT, recent_BW) -> jax.Array:
    """Returns the queries [B, T, G, K] of tokens, without searching for them."""
    queries = []

    def search(version_2, row_B, query_BTGK):
        queries.append(query_BTGK)
        shape = (*query_BTGK.shape[:3], runtime.memory.num_search_results)
        return jnp.full(shape, -1, jnp.int32)

    state = {"entries": entries, "recent": recent_BW}
    lookup = dataclasses.replace(runtime.lookup(state, "on"), search=search)
    runtime.model(params).read(tokens_BT, recent_BW, lookup)
    return queries[0].astype(jnp.float32)
