"""Texts that a memory reads and continues."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.model import attention
from jaxgpt.sampling.autoregressive import autoregress
from jaxgpt.sampling.state import (
    Callback,
    DecodeParams,
    DecodeState,
    Draws,
    SamplerOutput,
    SamplingParams,
    prefill,
)
from jaxgpt.systems.memory import ingestion
from jaxgpt.systems.memory.documents import Memory
from jaxgpt.systems.memory.runtime import MemoryRuntime

Shown = Callable[[np.ndarray], int]


@dataclasses.dataclass(frozen=True)
class MemorySamplerOutput(SamplerOutput):
    """Generated texts, and what they were predicted with.

    Attributes:
      weight_BTM: float32, how much each of M entries contributed to a token.
      document_BTM, position_BTM: int32, where the entry comes from; -1 for none.
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
        tokens_BS = jax.lax.dynamic_update_slice_in_dim(
            cache["tokens"], tokens_BT, start, axis=1
        )
        before_BN = jnp.concatenate([state["recent"], tokens_BS], 1)
        W = state["recent"].shape[1]
        recent_BW = jax.lax.dynamic_slice_in_dim(before_BN, start, W, axis=1)
        read = self.runtime.model(params).read(
            tokens_BT,
            recent_BW,
            self.runtime.lookup(state, self.runtime.memory.reading),
            positions=positions[:1],
            cache=cache["kv"],
            start=start,
        )
        return read.logits_BTV, {"kv": read.cache, "tokens": tokens_BS}


def _generate(
    memory: Memory,
    params: dict,
    recent_BW: np.ndarray,
    tokens_BS: np.ndarray,
    num_decoded: int,
    task: DecodeParams,
) -> DecodeState:
    """Returns a segment continued from its first tokens; the memory is only read."""
    B, S = tokens_BS.shape
    decoder = MemoryDecoder(memory.runtime)
    carried = params, {"entries": memory.store.entries, "recent": recent_BW}
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
    draws: Draws,
    sampling: SamplingParams,
    callback: Callback | None = None,
    document: str = "",
    shown: Shown | None = None,
) -> MemorySamplerOutput:
    """Reads the prompt and continues it segment by segment, as it does the memory.

    Args:
      memory: of B rows; read and extended.
      params, tokens_BT, prompt_mask_BT, sampling: as of `System.sample`.
      draws: of the rows.
      callback: is called after every segment, before it is written to the memory.
      document: name of the text in the memory; default "text N".
      shown: how many tokens of a text [T] the user is shown; the others are not stored.
    """
    B, N = tokens_BT.shape
    runtime = memory.runtime
    block = runtime.config.block_size
    number = memory.begin(document or memory.unused_name())
    already_read = len(memory.texts[number])
    recent_W = ingestion.recent(memory.texts[number], runtime.format.context)
    recent_BW = np.tile(recent_W, (B, 1))
    tokens_BT, decoded_BT = tokens_BT.copy(), prompt_mask_BT.copy()
    log_p_BT = np.zeros((B, N), np.float32)
    shape = (B, N, runtime.memory.num_search_results)
    weight_BTM = np.zeros(shape, np.float32)
    sources = {name: np.full(shape, -1, np.int32) for name in ("document", "position")}
    calls = 0
    # Nothing has followed the last token yet.
    unstored = int(runtime.format.stores_next)
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
            task = sampling.decode_params(size, draws.fold_in(start))
            state = _generate(memory, params, recent_BW, part_BS, num_decoded, task)
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
            rank_BT=np.tile(np.arange(N, dtype=np.int32), (B, 1)),
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
        entries = memory.store.entries
        recent_BW, retrieval = ingestion.read_segment(
            runtime, memory.store, params, batch, recent_BW
        )
        # In the output: what a token retrieved was used to predict the next one.
        slot_BTM = np.asarray(retrieval.slot_BTM)[:, : size - 1]
        row_B11 = np.asarray(retrieval.row_B)[:, None, None]
        next_tokens = np.s_[:, start + 1 : stop]
        weight_BTM[next_tokens] = np.asarray(retrieval.weight_BTM)[:, : size - 1]
        for name, array in sources.items():
            found = np.asarray(entries[name])[row_B11, slot_BTM]
            array[next_tokens] = np.where(slot_BTM < 0, -1, found)
        start += block
    memory.end(number, tokens_BT[0, :length])
    return output
