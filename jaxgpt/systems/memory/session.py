"""Texts that a memory reads and continues; the memory as a file between them.

A file holds the entries, the index over them, and the documents that they come from,
with a digest of it all.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxgpt.errors import UserError, atomic_write
from jaxgpt.model import attention
from jaxgpt.sampling.autoregressive import autoregress
from jaxgpt.sampling.state import (
    Callback,
    DecodeParams,
    DecodeState,
    SamplerOutput,
    SamplingParams,
    prefill,
)
from jaxgpt.systems.memory import ingestion
from jaxgpt.systems.memory.modes import MODES
from jaxgpt.systems.memory.runtime import MemoryRuntime
from jaxgpt.systems.memory.store import with_prefix

Shown = Callable[[np.ndarray], int]

# Settings that must agree for a memory to make sense to a model.
SETTINGS = ("mode", "index_type", "memory_size", "context", "store_layer", "layer")


class Nearest(NamedTuple):
    """An entry: number of its document, position there, and how near it is."""

    document: int
    position: int
    score: float


class Memory:
    """A memory of `rows` rows, and the documents it has read.

    Attributes:
      names: of the documents; an entry's document is a number in this list.
      texts: the tokens of each document.
    """

    def __init__(self, runtime: MemoryRuntime, rows: int = 1):
        self.runtime = runtime
        self.store, self.state = runtime.open(rows)
        self.names: list[str] = []
        self.texts: list[np.ndarray] = []

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

    def forget(self, name: str) -> int:
        """Removes every entry of a document; returns how many there were.

        Raises:
          UserError: if it holds no such document.
        """
        if name not in self.sizes():
            known = ", ".join(self.sizes()) or "none"
            raise UserError(f"the memory has no document '{name}': it has {known}")
        number = self.names.index(name)
        del self.names[number], self.texts[number]
        count = self.store.forget_document(number)
        self.state = self.state | {"entries": self.store.entries}
        return count

    def sizes(self) -> dict[str, int]:
        """Returns {document: how many entries it has}, of those not forgotten."""
        used_RE = self.store.stamps >= 0
        document_N = np.asarray(self.store.entries["document"])[used_RE]
        counts = np.bincount(document_N, minlength=len(self.names)).tolist()
        sizes = zip(self.names, counts, strict=True)
        return {name: size for name, size in sizes if name}

    def nearest(self, params: dict, tokens_T: np.ndarray, k: int) -> list[Nearest]:
        """Returns the k entries of row 0 that are nearest to the end of a text.

        Of all heads' nearest, those with the largest sum over heads. Writes nothing.

        Args:
          params: of the model.
          tokens_T: one or more; of more than a segment, the last are read.
          k: how many at most.
        """
        block, W = self.runtime.config.block_size, self.state["recent"].shape[1]
        recent_1W = ingestion.recent(tokens_T[:-block], W)[None]
        tokens_T = tokens_T[-block:]
        padded_1T = np.pad(tokens_T, (0, block - len(tokens_T)))[None]
        query_1TGK = _query(self.runtime, params, self.state, padded_1T, recent_1W)
        query_11GK = np.asarray(query_1TGK)[:, len(tokens_T) - 1 :][:, :1]
        row, k = np.zeros(1, np.int32), min(k, self.store.size())
        slot_N = np.unique(self.store.search(self.store.version, row, query_11GK, k))
        slot_N = slot_N[slot_N >= 0]
        indices = self.store.indices[0]  # One of each head.
        key_NGK = np.stack([index.vectors[slot_N] for index in indices], 1)
        if self.runtime.index_config.metric == "inner_product":
            score_N = (query_11GK[0] * key_NGK).sum((1, 2))
        else:
            score_N = -((query_11GK[0] - key_NGK) ** 2).sum((1, 2))
        document_E = np.asarray(self.store.entries["document"])[0]
        position_E = np.asarray(self.store.entries["position"])[0]
        order = (-score_N).argsort(kind="stable")[:k]
        return [
            Nearest(int(document_E[slot]), int(position_E[slot]), float(score))
            for slot, score in zip(slot_N[order], score_N[order], strict=True)
        ]

    def save(self, path: pathlib.Path) -> None:
        """Writes the file, atomically; UserError if it cannot."""
        entries = flatten_dict(self.store.entries, sep=".")
        arrays = {f"entries/{name}": np.array(a) for name, a in entries.items()}
        arrays |= {f"index/{k}": v for k, v in self.store.host_state().items()}
        arrays |= {f"texts/{n}": text for n, text in enumerate(self.texts)}
        header = {
            "names": self.names,
            "settings": _settings(self.runtime),
            "digest": _digest(arrays),
        }
        try:
            with atomic_write(path, "wb") as stream:
                stream.write(save(arrays, {"memory": json.dumps(header)}))
        except OSError as error:
            raise UserError(f"--memory='{path}': {error.strerror}") from None

    @classmethod
    def load(cls, runtime: MemoryRuntime, path: pathlib.Path) -> Memory:
        """Reads a file that `save` wrote.

        Raises:
          UserError: if it is damaged, or of a model with other settings.
        """
        try:
            with safe_open(path, "numpy") as file:
                header = json.loads(file.metadata()["memory"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            raise UserError(
                f"--memory='{path}' is not a memory, or damaged: restore a copy, or "
                "name a file that does not exist yet"
            ) from None
        if header["digest"] != _digest(arrays):
            raise UserError(
                f"--memory='{path}' is damaged (its digest differs): restore a copy"
            )
        for name, value in _settings(runtime).items():
            if header["settings"].get(name) != value:
                raise UserError(
                    f"--memory='{path}' is of a model with {name} "
                    f"{header['settings'].get(name)}: this one has {value}"
                )
        memory = cls(runtime)
        flat = {n: jnp.asarray(a) for n, a in with_prefix(arrays, "entries/").items()}
        entries = {"values": {}} | unflatten_dict(flat, sep=".")
        # Serial numbers of stores are local to a process.
        entries["version"] = memory.state["entries"]["version"]
        memory.store.load(entries, with_prefix(arrays, "index/"))
        memory.state = memory.state | {"entries": entries}
        memory.names = header["names"]
        memory.texts = [arrays[f"texts/{n}"] for n in range(len(memory.names))]
        return memory


def _settings(runtime: MemoryRuntime) -> dict[str, Any]:
    found = {f"memory.{name}": runtime.memory[name] for name in SETTINGS}
    values = str(tuple(runtime.format.values.items()))
    return found | {"memory_dim": list(runtime.format.key), "values": values}


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class MemorySamplerOutput(SamplerOutput):
    """Generated texts, and what they were predicted with.

    Attributes:
      weight_BTM: float32, how much each of M entries contributed to a token.
      document_BTM, position_BTM: int32, where the entry comes from; -1 is no entry.
    """

    weight_BTM: np.ndarray
    document_BTM: np.ndarray
    position_BTM: np.ndarray


@dataclasses.dataclass(frozen=True)
class MemoryDecoder:
    """The `Decoder` of a `MemoryRuntime`; its params are (parameters, carried)."""

    runtime: MemoryRuntime

    def init_cache(self, params: Any, batch: int, slots: int) -> dict[str, Any]:
        """Returns a cache without keys, values and tokens."""
        del params
        tokens = jnp.full((batch, slots), -1, jnp.int32)
        cache = attention.empty_cache(self.runtime.config, batch, slots)
        return {"kv": cache, "tokens": tokens}

    def forward(self, params, tokens_BT, positions, cache, start, mask_TT=None):
        """See `Decoder.forward`."""
        del mask_TT
        params, state = params
        tokens_BS = jax.lax.dynamic_update_slice(cache["tokens"], tokens_BT, (0, start))
        before_BN = jnp.concatenate([state["recent"], tokens_BS], 1)
        recent_BW = jax.lax.dynamic_slice(before_BN, (0, start), state["recent"].shape)
        read = self.runtime.model(params).read(
            tokens_BT,
            recent_BW,
            self.runtime.lookup(state, self.runtime.memory.reading),
            positions=positions[:1],
            cache=cache["kv"],
            start=start,
        )
        return read.logits_BTV, {"kv": read.cache, "tokens": tokens_BS}


@functools.partial(jax.jit, static_argnames="runtime")
def _query(runtime: MemoryRuntime, params, state, tokens_BT, recent_BW) -> jax.Array:
    """Returns what tokens ask the memory for [B, T, G, K]; it is not read."""
    asked = []

    def search(version_2, row_B, query_BTGK):
        asked.append(query_BTGK)
        shape = (*query_BTGK.shape[:3], runtime.memory.num_search_results)
        return jnp.full(shape, -1, jnp.int32)

    lookup = dataclasses.replace(runtime.lookup(state, "on"), search=search)
    runtime.model(params).read(tokens_BT, recent_BW, lookup)
    return asked[0].astype(jnp.float32)


def _generate(
    memory: Memory,
    params: dict,
    tokens_BS: np.ndarray,
    num_decoded: int,
    task: DecodeParams,
) -> DecodeState:
    """Returns a segment continued from its first tokens; the memory is only read."""
    B, S = tokens_BS.shape
    decoder, carried = MemoryDecoder(memory.runtime), (params, memory.state)
    # The last token, the first input of the next segment, is never read in this one:
    # it gets a position that exists.
    own_BS = jnp.minimum(jnp.arange(S), S - 2)[None].repeat(B, 0)
    num_decoded_B = jnp.full(B, num_decoded, jnp.int32)
    state = prefill(
        decoder, carried, jnp.asarray(tokens_BS), own_BS, own_BS, num_decoded_B
    )
    return autoregress(decoder, carried, state, task, jnp.int32(S))


def sample(
    memory: Memory,
    params: dict,
    tokens_BT: np.ndarray,
    prompt_mask_BT: np.ndarray,
    key: jax.Array,
    sampling: SamplingParams,
    callback: Callback | None = None,
    document: str = "",
    shown: Shown | None = None,
) -> MemorySamplerOutput:
    """Reads the prompt and continues it, segment by segment, the memory with it.

    Args:
      memory: of B rows; read and extended.
      params: of the model.
      tokens_BT, prompt_mask_BT, key, sampling: as in `System.sample`.
      callback: is called after every segment, before it is written to the memory.
      document: name of the text in the memory; default "text N".
      shown: how many tokens of a text [T] the user is shown; the others are not stored.
    """
    B, N = tokens_BT.shape
    runtime = memory.runtime
    block = runtime.config.block_size
    number = memory.begin(document or memory.unused_name())
    already_read = len(memory.texts[number])
    W = memory.state["recent"].shape[1]
    before_BW = np.tile(ingestion.recent(memory.texts[number], W), (B, 1))
    memory.state = memory.state | {"recent": before_BW}
    tokens_BT, decoded_BT = tokens_BT.copy(), prompt_mask_BT.copy()
    log_p_BT = np.zeros((B, N), np.float32)
    shape = (B, N, runtime.memory.num_search_results)
    weight_BTM = np.zeros(shape, np.float32)
    sources = {name: np.full(shape, -1, np.int32) for name in ("document", "position")}
    calls = 0
    # Nothing has followed the last token yet.
    unstored = int(MODES[runtime.memory.mode].stores_next)
    length, start = N, 0
    while not start or start < length - unstored:
        # The last token of a segment's buffer is the first input of the next.
        stop = min(start + block + 1, length)
        size = stop - start
        part_BS = np.zeros((B, block + 1), np.int32)
        part_BS[:, :size] = tokens_BT[:, start:stop]
        prompt_length = int(prompt_mask_BT[:, start:stop].sum(1).min())
        num_decoded = max(prompt_length, 1)
        if num_decoded < size:
            task = sampling.decode_params(size, jax.random.fold_in(key, start))
            state = _generate(memory, params, part_BS, num_decoded, task)
            part_BS = np.array(state.tokens_BS)
            log_p_BT[:, start:stop] += np.asarray(state.log_p_BS)[:, :size]
            calls += size - num_decoded
            tokens_BT[:, start:stop] = part_BS[:, :size]
        decoded_BT[:, :stop] = True
        output = MemorySamplerOutput(
            tokens_BT=tokens_BT,
            decoded_BT=decoded_BT,
            log_p_BT=log_p_BT,
            decode_step_BT=np.where(prompt_mask_BT, 0, 1 + np.arange(N)),
            num_forward_passes_B=np.full(B, calls),
            tokens_processed_B=np.full(B, calls),
            weight_BTM=weight_BTM,
            document_BTM=sources["document"],
            position_BTM=sources["position"],
        )
        if callback and not callback(output):
            length = stop
        if shown:
            length_B = [shown(text_T) for text_T in tokens_BT[:, :stop]]
            if max(length_B) < stop:  # Otherwise more may follow.
                length = max(length_B)
        batch = {
            "tokens": part_BS,
            "document": np.full(B, number, np.int32),
            "start": np.full(B, already_read + start, np.int32),
            "stored": np.arange(block)[None].repeat(B, 0) < length - unstored - start,
        }
        entries = memory.state["entries"]
        retrieval = ingestion.read_segment(memory, params, batch)
        # In the output: what a token retrieved was used to predict the next one.
        slot_BTM = np.asarray(retrieval.slot_BTM)[:, : size - 1]
        row_B11 = np.asarray(retrieval.row_B)[:, None, None]
        next_tokens = np.s_[:, start + 1 : stop]
        weight_BTM[next_tokens] = np.asarray(retrieval.weight_BTM)[:, : size - 1]
        for name, array in sources.items():
            found = np.asarray(entries[name])[row_B11, slot_BTM]
            array[next_tokens] = np.where(slot_BTM < 0, -1, found)
        start += block
    text_T = tokens_BT[0, :length]
    memory.texts[number] = np.concatenate([memory.texts[number], text_T])
    return output
