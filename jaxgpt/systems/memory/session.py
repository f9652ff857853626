"""Texts that a memory reads and goes on with; the memory as a file between them.

A file holds the entries, the index over them, and the documents that they come from,
with a digest of it all.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxgpt.errors import UserError
from jaxgpt.model import attention
from jaxgpt.sampling.autoregressive import autoregress
from jaxgpt.sampling.state import Callback, SamplerOutput, SamplingParams, prefill
from jaxgpt.systems.memory import model

if TYPE_CHECKING:
    from jaxgpt.systems.memory.system import MemoryLM

# Settings that a memory is only good with.
SETTINGS = ("mode", "index_type", "memory_size", "context", "store_layer", "layer")


class Memory:
    """One memory of `rows` rows, and the documents it has read.

    Attributes:
      names: of the documents; an entry's document is a number in this list.
      texts: the tokens of each document.
    """

    def __init__(self, system: MemoryLM, rows: int = 1):
        self.system = system
        self.store, self.state = system.fresh(rows)
        self.names: list[str] = []
        self.texts: list[np.ndarray] = []

    def begin(self, name: str) -> int:
        """Begins a document, or goes on with that of this name; returns its number."""
        recent = jnp.full_like(self.state["recent"], -1)
        self.state = self.state | {"recent": recent}
        if name not in self.names:
            self.names.append(name)
            self.texts.append(np.zeros(0, np.int32))
        return self.names.index(name)

    def forget(self, name: str) -> int:
        """Removes every entry of a document; returns how many there were.

        Raises:
          UserError: where it holds no such document.
        """
        if name not in self.names:
            known = ", ".join(self.names) or "none"
            raise UserError(f"the memory holds no document '{name}': it has {known}")
        number = self.names.index(name)
        self.texts[number] = np.zeros(0, np.int32)
        self.names[number] = ""
        count = self.store.forget_document(number)
        self.state = self.state | {"entries": self.store.entries}
        return count

    def save(self, path: pathlib.Path) -> None:
        """Writes the file, atomically."""
        arrays = {f"entries/{k}": v for k, v in _flat(self.store.entries).items()}
        arrays |= {f"index/{k}": v for k, v in self.store.host_state().items()}
        arrays |= {f"texts/{n}": text for n, text in enumerate(self.texts)}
        header = {
            "names": self.names,
            "settings": _settings(self.system),
            "digest": _digest(arrays),
        }
        temporary = path.with_name(path.name + ".tmp")
        try:
            save_file(arrays, temporary, {"memory": json.dumps(header)})
            temporary.replace(path)
        except OSError as error:
            raise UserError(f"--memory='{path}': {error.strerror}") from None

    @classmethod
    def load(cls, system: MemoryLM, path: pathlib.Path) -> Memory:
        """Reads a file that `save` wrote.

        Raises:
          UserError: where it is damaged, or of a model with other settings.
        """
        try:
            with safe_open(path, "numpy") as file:
                header = json.loads(file.metadata()["memory"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            raise UserError(
                f"--memory='{path}' is no memory, or damaged: bring back a copy, or "
                "name a file that is not there yet"
            ) from None
        if header["digest"] != _digest(arrays):
            raise UserError(
                f"--memory='{path}' is damaged (its digest differs): bring back a copy"
            )
        for name, value in _settings(system).items():
            if header["settings"].get(name) != value:
                raise UserError(
                    f"--memory='{path}' is of a model with {name} "
                    f"{header['settings'].get(name)}: this one has {value}"
                )
        part = lambda prefix: {
            name.removeprefix(prefix): array
            for name, array in arrays.items()
            if name.startswith(prefix)
        }
        self = cls(system)
        entries = _nested(part("entries/"))
        # The number of a store is of this process.
        entries["version"] = self.state["entries"]["version"]
        self.store.attach(entries, part("index/"))
        self.state = self.state | {"entries": entries}
        self.names = header["names"]
        self.texts = [arrays[f"texts/{n}"] for n in range(len(self.names))]
        return self


def _settings(system: MemoryLM) -> dict[str, Any]:
    layout = system.layout(1)
    found = {f"memory.{name}": system.memory[name] for name in SETTINGS}
    return found | {"memory_dim": list(layout.key), "values": str(layout.values)}


def _flat(entries: dict) -> dict[str, np.ndarray]:
    flat = {f"values.{name}": array for name, array in entries["values"].items()}
    flat |= {name: array for name, array in entries.items() if name != "values"}
    return {name: np.array(array) for name, array in flat.items()}


def _nested(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    values = {
        name.removeprefix("values."): jnp.asarray(array)
        for name, array in flat.items()
        if name.startswith("values.")
    }
    rest = {n: jnp.asarray(a) for n, a in flat.items() if not n.startswith("values.")}
    return rest | {"values": values}


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class MemoryDecoder:
    """The `Decoder` of a system; its params are (parameters, carried)."""

    system: MemoryLM

    def empty(self, params: Any, batch: int, slots: int) -> dict[str, Any]:
        """Returns a cache without keys, values and tokens."""
        del params
        tokens = jnp.full((batch, slots), -1, jnp.int32)
        return {
            "kv": attention.empty_cache(self.system.model_config, batch, slots),
            "tokens": tokens,
        }

    def read(self, params, tokens_BT, where, cache, start, new_token_mask_TT=None):
        """See `Decoder.read`."""
        del new_token_mask_TT
        params, state = params
        tokens_BS = jax.lax.dynamic_update_slice(cache["tokens"], tokens_BT, (0, start))
        before_BN = jnp.concatenate([state["recent"], tokens_BS], 1)
        B, W = state["recent"].shape
        recent_BW = jax.lax.dynamic_slice(before_BN, (0, start), (B, W))
        module = self.system.model(params)
        look = self.system.look(state, self.system.memory.reading)
        read = module.more(tokens_BT, recent_BW, where[:1], cache["kv"], start, look)
        return read.logits_BTV, {"kv": read.cache, "tokens": tokens_BS}


@functools.partial(jax.jit, static_argnames="system")
def _extend(system: MemoryLM, params, state, batch):
    """Reads a segment and writes it; returns what each token found before."""
    module = system.model(params)
    look = system.look(state, system.memory.reading)
    read = module.segment(batch["tokens"][:, :-1], state["recent"], look)
    shape = (*batch["tokens"][:, :-1].shape, system.memory.num_search_results)
    place = -jnp.ones(shape, jnp.int32) if look.place_BTM is None else look.place_BTM
    weight = jnp.zeros(shape) if look.weight_BTM is None else look.weight_BTM
    state, _ = model.commit(module, state, read, batch, system.memory, True)
    return state, place, weight


def sample(
    system: MemoryLM,
    params: dict,
    tokens_BT: np.ndarray,
    prompt_mask_BT: np.ndarray,
    key: jax.Array,
    sampling: SamplingParams,
    callback: Callback | None,
) -> SamplerOutput:
    """Reads what is given and goes on, segment by segment, the memory with it.

    `how.memory` is a `Memory` of as many rows that is read and extended; without one
    the text begins with an empty memory. `watch` is asked after every segment.
    """
    B, N = tokens_BT.shape
    block = system.model_config.block_size
    own = sampling.memory is None
    memory = sampling.memory or Memory(system, B)
    document = memory.begin(sampling.document or f"text {len(memory.names) + 1}")
    before = len(memory.texts[document])
    tokens_BT, decoded_BT = tokens_BT.copy(), prompt_mask_BT.copy()
    log_p_BT = np.zeros((B, N), np.float32)
    memories: list[list[list]] = [[[]] * N for _ in range(B)]
    calls = 0
    decoder = MemoryDecoder(system)
    for start in range(0, max(N - 1, 1), block):
        # The last token of a segment's buffer is the first input of the next.
        stop = min(start + block + 1, N)
        size = stop - start
        part_BS = np.zeros((B, block + 1), np.int32)
        part_BS[:, :size] = tokens_BT[:, start:stop]
        given = int(prompt_mask_BT[:, start:stop].sum(1).min())
        if given < size:
            own_BS = np.minimum(np.arange(block + 1), block - 1)[None].repeat(B, 0)
            state = prefill(
                decoder,
                (params, memory.state),
                jnp.asarray(part_BS),
                jnp.asarray(own_BS),
                jnp.asarray(own_BS),
                jnp.full(B, max(given, 1), jnp.int32),
            )
            task = sampling.decode_params(size, jax.random.fold_in(key, start))
            state = autoregress(
                decoder, (params, memory.state), state, task, jnp.int32(block + 1)
            )
            part_BS = np.array(state.tokens_BS)
            log_p_BT[:, start:stop] += np.asarray(state.log_p_BS)[:, :size]
            calls += size - max(given, 1)
            tokens_BT[:, start:stop] = part_BS[:, :size]
        decoded_BT[:, :stop] = True
        fed = min(block, N - start)
        batch = {
            "tokens": part_BS,
            "document": np.full(B, document, np.int32),
            "start": np.full(B, before + start, np.int32),
            "stored": np.arange(block)[None].repeat(B, 0) < fed,
        }
        entries = memory.state["entries"]
        memory.state, place, weight = _extend(system, params, memory.state, batch)
        memory.store.follow(memory.state["entries"])
        _explain(memories, entries, place, weight, start, stop)
        partial = SamplerOutput(
            tokens_BT=tokens_BT,
            decoded_BT=decoded_BT,
            log_p_BT=log_p_BT,
            decode_step_BT=np.where(prompt_mask_BT, 0, 1 + np.arange(N)),
            num_forward_passes_B=np.full(B, calls),
            tokens_processed_B=np.full(B, calls),
            memories=memories,
        )
        if callback and not callback(partial):
            break
    memory.texts[document] = np.concatenate([memory.texts[document], tokens_BT[0]])
    if own:
        system.close(memory.store)
    return partial


def _explain(memories, entries, place_BTM, weight_BTM, start: int, stop: int) -> None:
    """Notes for each token what the one before it found: (weight, document, place)."""
    place, weight = np.asarray(place_BTM), np.asarray(weight_BTM)
    source = {name: np.asarray(entries[name]) for name in ("document", "position")}
    for row, of_row in enumerate(memories):
        memory_row = row % len(source["document"])
        for token in range(start + 1, stop):
            at = place[row, token - 1 - start]
            used = weight[row, token - 1 - start]
            of_row[token] = [
                (
                    float(used[m]),
                    int(source["document"][memory_row, at[m]]),
                    int(source["position"][memory_row, at[m]]),
                )
                for m in np.argsort(-used, kind="stable")
                if at[m] >= 0
            ]
