"""The language model with a memory: how it reads a segment, and what that writes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxgpt.model.attention import KVCache
from jaxgpt.model.config import ModelConfig
from jaxgpt.model.positions import Positions, in_order
from jaxgpt.model.transformer import LanguageModel
from jaxgpt.systems.memory import entries as ops
from jaxgpt.systems.memory.associative import Associative
from jaxgpt.systems.memory.entries import Entries
from jaxgpt.systems.memory.modes import KNNLM, AttentionMemory, Mode
from jaxgpt.systems.memory.retrieval import Lookup, Retrieval

MODES: dict[str, type[Mode]] = {
    "associative": Associative,
    "attention": AttentionMemory,
    "output": KNNLM,
}
# What is carried from segment to segment: {"entries", "recent": the last tokens}.
Carried = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SegmentOutput:
    """The result of reading a segment.

    Attributes:
      logits_BTV: of the next tokens.
      x_BTD: the last hidden states.
      hidden: the input of the first block, and each block's output.
      retrieval: what was read of the memory.
      cache: with these tokens, where there was one.
    """

    logits_BTV: jax.Array
    x_BTD: jax.Array
    hidden: list[jax.Array]
    retrieval: Retrieval
    cache: KVCache | None = None


class MemoryModel(LanguageModel):
    """GPT-2 with one of `MODES` as `memory`; its other parameters are GPT-2's."""

    def __init__(self, config: ModelConfig, memory: ConfigDict, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.memory = MODES[memory.mode](config, memory, rngs=rngs)

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions: Positions | None = None,
        *,
        dropout_key: jax.Array | None = None,
        **cached: Any,
    ) -> tuple[jax.Array, None]:
        """Returns logits [B, T, V] of texts read left to right without a memory."""
        assert not cached, "with a cache a memory is read too: see `read`"
        del positions
        recent_BW = jnp.full((len(tokens_BT), self.memory.context), -1, jnp.int32)
        nothing = Lookup(jnp.arange(len(tokens_BT)))
        read = self.read(tokens_BT, recent_BW, nothing, dropout_key=dropout_key)
        return read.logits_BTV, None

    def read(
        self,
        tokens_BT: jax.Array,
        recent_BW: jax.Array,
        lookup: Lookup,
        *,
        positions: Positions | None = None,
        cache: KVCache | None = None,
        start: jax.typing.ArrayLike = 0,
        dropout_key: jax.Array | None = None,
    ) -> SegmentOutput:
        """Reads T tokens and the memory.

        Args:
          tokens_BT: int32.
          recent_BW: the `memory.context` tokens before them, -1 for none.
          lookup: the memory.
          positions: of the tokens; None begins at 0.
          cache: keys and values of the segment so far, if it is read piece by piece.
          start: the cache slot of the first token.
          dropout_key: turns dropout on.
        """
        if positions is None:
            positions = in_order(tokens_BT.shape[1], self.config)
        tokens_BN = jnp.concatenate([recent_BW, tokens_BT], 1)
        table_VD = self.table[...]
        x_BTD, of_input = self.memory.read_input(
            table_VD[tokens_BT], table_VD, tokens_BN, lookup
        )
        x_BTD, blocks = self.transformer(
            self.with_positions(x_BTD, positions),
            dropout_key=dropout_key,
            cache=cache,
            start=start,
            hooks=self.memory.attention_hooks(lookup),
            keep_hidden=True,
        )
        logits_BTV, of_output = self.memory.read_output(self.head(x_BTD), x_BTD, lookup)
        # A mode reads in one of three places.
        found = (of_input, *blocks.hooked.values(), of_output)
        (retrieval,) = (one for one in found if one is not None)
        return SegmentOutput(logits_BTV, x_BTD, blocks.hidden, retrieval, blocks.cache)

    def with_positions(self, x_BTD: jax.Array, positions: Positions) -> jax.Array:
        """Adds position embeddings to token embeddings."""
        return x_BTD if self.positions is None else x_BTD + self.positions(positions)


def begin_documents(state: Carried, new_B: jax.Array) -> Carried:
    """Empties the memory of the rows in which a new document begins.

    A shared memory is kept until one begins in all of them. The version stays, because
    the index still has the old entries (see `Lookup.find`).
    """
    entries = state["entries"]
    shared = len(entries["id"]) != len(new_B)
    emptied_R = new_B.all()[None] if shared else new_B
    return {
        "entries": ops.remove(entries, emptied_R[:, None]),
        "recent": jnp.where(new_B[:, None], -1, state["recent"]),
    }


def write_segment(
    model: MemoryModel,
    state: Carried,
    read: SegmentOutput,
    batch: dict[str, jax.Array],
    memory: ConfigDict,
    hard: bool,
    forget_key: jax.Array | None = None,
) -> tuple[Carried, jax.Array]:
    """Writes a segment that was read; returns the state and store decisions [B, T].

    Args:
      model: that read it.
      state: before.
      read: of the segment.
      batch: tokens [B, T + 1], document and start [B], and optionally "stored" [B, T],
        which tokens to store.
      memory: `config.memory`.
      hard: whether the model's decisions to store and delete are carried out.
      forget_key: turns on the ageing and random forgetting of training.
    """
    entries, mode = state["entries"], model.memory
    new, wanted_BT, keep_BT = new_entries(model, read, batch, memory, hard)
    entries = mode.mark_read(entries, read.x_BTD, read.retrieval, hard)
    if forget_key is not None and memory.decay < 1:
        entries = ops.age(entries, memory.decay)
    if forget_key is not None and memory.forgetfulness_factor:
        entries = ops.forget(entries, forget_key, memory.forgetfulness_factor)
    if len(entries["id"]) != len(keep_BT):  # One memory that all rows share.
        new, wanted_BT = in_one_row((new, wanted_BT))
    entries = ops.next_version(ops.write(entries, new, wanted_BT, memory.eviction))
    W = state["recent"].shape[1]
    before_BN = jnp.concatenate([state["recent"], batch["tokens"][:, :-1]], 1)
    return {"entries": entries, "recent": before_BN[:, -W:]}, keep_BT


def new_entries(
    model: MemoryModel,
    read: SegmentOutput,
    batch: dict[str, jax.Array],
    memory: ConfigDict,
    hard: bool,
) -> tuple[Entries, jax.Array, jax.Array]:
    """Returns an entry for each token, which are to be stored [B, T], and decisions.

    The arguments are those of `write_segment`.
    """
    new, keep_BT = model.memory.record(
        read.hidden, read.x_BTD, batch["tokens"], read.retrieval
    )
    B, T = keep_BT.shape
    new["position"] = batch["start"][:, None] + jnp.arange(T)
    new["document"] = jnp.broadcast_to(batch["document"][:, None], (B, T))
    wanted_BT = batch.get("stored", jnp.ones((B, T), bool))
    if hard and memory.keep == "decided":
        wanted_BT &= keep_BT > 0.5
    return new, wanted_BT, keep_BT


def in_one_row(tree_BT: Any) -> Any:
    """Returns arrays [B, T, ...] as [1, B T, ...]: what B rows write to one memory."""
    return jax.tree.map(lambda a: a.reshape(1, -1, *a.shape[2:]), tree_BT)
