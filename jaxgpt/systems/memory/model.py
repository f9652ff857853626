"""The language model with a memory, and the state that it carries between segments."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.model import attention
from jaxgpt.model.config import ModelConfig
from jaxgpt.model.positions import Positions, in_order
from jaxgpt.model.transformer import LanguageModel
from jaxgpt.systems.memory import entries as ops
from jaxgpt.systems.memory.look import Look
from jaxgpt.systems.memory.modes import MODES

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Carried = dict[str, Any]


@dataclasses.dataclass
class Reading:
    """One segment, read.

    Attributes:
      logits_BTV: of the next tokens.
      x_BTD: the last hidden states.
      outputs: what enters the first block, and what leaves each.
      look: what was found in the memory.
      cache: with these tokens, where there was one.
    """

    logits_BTV: jax.Array
    x_BTD: jax.Array
    outputs: list[jax.Array]
    look: Look
    cache: attention.KVCache | None = None


def _nothing(*_: Any) -> jax.Array:
    raise AssertionError("there is nothing to search in")


class MemoryModel(LanguageModel):
    """GPT-2 with one of `modes.MODES` as `memory`; its other parameters are GPT-2's."""

    def __init__(self, config: ModelConfig, memory: ConfigDict, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.memory: Any = MODES[memory.mode](config, memory, rngs=rngs)

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions: Positions | None = None,
        *,
        dropout_key: jax.Array | None = None,
        **cached: Any,
    ) -> tuple[jax.Array, None]:
        """Returns logits [B, T, V] of texts read left to right without a memory."""
        assert not cached, "a memory is read along with a cache: see `more`"
        del positions
        recent_BW = jnp.full((len(tokens_BT), self.memory.context), -1, jnp.int32)
        row_B = jnp.arange(len(tokens_BT))
        blind = Look(None, row_B, _nothing, row_B)
        return self.segment(tokens_BT, recent_BW, blind, dropout_key).logits_BTV, None

    def segment(
        self,
        tokens_BT: jax.Array,
        recent_BW: jax.Array,
        look: Look,
        dropout_key: jax.Array | None = None,
    ) -> Reading:
        """Reads T tokens from position 0 on.

        Args:
          tokens_BT: int32.
          recent_BW: the tokens before them, -1 for none.
          look: at which memory; filled with what was found.
          dropout_key: turns dropout on.
        """
        where = in_order(tokens_BT.shape[1], self.config)
        tokens_BN = jnp.concatenate([recent_BW, tokens_BT], 1)
        x_BTD = self.table[...][tokens_BT]
        x_BTD, hooks = self.memory.read(self, x_BTD, tokens_BN, look)
        x_BTD = self.placed(x_BTD, where)
        x_BTD, blocks = self.transformer(
            x_BTD, dropout_key=dropout_key, hooks=hooks, keep_hidden=True
        )
        logits_BTV = self.memory.predict(self, x_BTD, look)
        return Reading(logits_BTV, x_BTD, blocks.hidden, look)

    def more(
        self,
        tokens_BT: jax.Array,
        recent_BW: jax.Array,
        where: Positions,
        layers_kv: attention.KVCache,
        start: jax.Array,
        look: Look,
    ) -> Reading:
        """Reads T tokens against a cache, as `segment`, at slots start .. start + T."""
        tokens_BN = jnp.concatenate([recent_BW, tokens_BT], 1)
        x_BTD = self.table[...][tokens_BT]
        x_BTD, hooks = self.memory.read(self, x_BTD, tokens_BN, look)
        x_BTD = self.placed(x_BTD, where)
        x_BTD, blocks = self.transformer(
            x_BTD, cache=layers_kv, start=start, hooks=hooks
        )
        logits_BTV = self.memory.predict(self, x_BTD, look)
        return Reading(logits_BTV, x_BTD, [], look, blocks.cache)

    def placed(self, x_BTD: jax.Array, where: Positions) -> jax.Array:
        """Adds the positions to what the tokens are."""
        return x_BTD if self.positions is None else x_BTD + self.positions(where)


def begin(state: Carried, new_B: jax.Array) -> Carried:
    """Forgets the document before, in the rows where a new one begins.

    A shared memory is kept until all begin.
    """
    entries = state["entries"]
    rows = new_B if len(entries["id"]) == len(new_B) else new_B.all()[None]
    fresh = ops.reset(entries, rows)
    # Searched for at the version that the index was told of.
    fresh["version"] = entries["version"]
    return {
        "entries": fresh,
        "recent": jnp.where(new_B[:, None], -1, state["recent"]),
    }


def commit(
    model: MemoryModel,
    state: Carried,
    reading: Reading,
    batch: dict[str, jax.Array],
    memory: ConfigDict,
    hard: bool,
    forget_key: jax.Array | None = None,
) -> tuple[Carried, jax.Array]:
    """Writes what a segment leaves behind; returns the state and decisions [B, T].

    Args:
      model: that read it.
      state: before.
      reading: of the segment.
      batch: with tokens [B, T + 1], document and start [B], and perhaps which are
        stored [B, T].
      memory: `config.memory`.
      hard: whether the model's decisions to store and delete are carried out.
      forget_key: of what training forgets.
    """
    tokens_BT, entries = batch["tokens"], state["entries"]
    mode = model.memory
    new, keep_BT = mode.record(reading.outputs, reading.x_BTD, tokens_BT, reading.look)
    B, T = keep_BT.shape
    new["position"] = batch["start"][:, None] + jnp.arange(T)
    new["document"] = jnp.broadcast_to(batch["document"][:, None], (B, T))
    wanted_BT = batch.get("stored", jnp.ones((B, T), bool))
    if hard and memory.keep == "decided":
        wanted_BT &= keep_BT > 0.5
    entries = mode.mark(entries, reading.x_BTD, reading.look, hard)
    if forget_key is not None and memory.decay < 1:
        entries = ops.age(entries, memory.decay)
    if forget_key is not None and memory.forgetfulness_factor:
        entries = ops.forget(entries, forget_key, memory.forgetfulness_factor)
    if len(entries["id"]) != B:
        joined = lambda array: array.reshape(1, B * T, *array.shape[2:])
        new, wanted = jax.tree.map(joined, new), joined(wanted_BT)
    else:
        wanted = wanted_BT
    entries = ops.write(entries, new, wanted, memory.eviction)
    # However many changes a segment makes, the index is told of one.
    entries["version"] = state["entries"]["version"] + jnp.array([0, 1], jnp.int32)
    W = state["recent"].shape[1]
    recent = jnp.concatenate([state["recent"], tokens_BT[:, :-1]], 1)[:, -W:]
    return {"entries": entries, "recent": recent}, keep_BT
