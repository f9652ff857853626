"""What every memory mode has: how the model reads a memory, and what it stores."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxgpt.model import attention
from jaxgpt.model.config import ModelConfig
from jaxgpt.systems.memory.entries import Entries
from jaxgpt.systems.memory.retrieval import Lookup, Retrieval


class CarriedFormat(NamedTuple):
    """What a mode carries: keys (G, K), values, and how many recent tokens.

    `entangled` says whether entries depend on what was read from the memory, so that
    what is removed lives on in those written after it.
    """

    key: tuple[int, int]
    values: dict[str, tuple[int, ...]]
    context: int = 1
    entangled: bool = False


class Mode(nnx.Module):
    """A way to read a memory; the submodule `memory` of a `MemoryModel`.

    Of the three places to read in, a mode uses one: the input vectors, the attention
    of a block, or the logits. The others return None for what they retrieved.
    """

    stores_next = False  # Whether an entry holds the token after its own.

    def __init__(self, config: ModelConfig, memory: ConfigDict, *, rngs: nnx.Rngs):
        del rngs
        # Numbers and strings only: jit compares modules by their static attributes.
        self.num_results = memory.num_search_results
        self.context = self.carried_format(config, memory).context
        self.config = config

    @staticmethod
    def carried_format(config: ModelConfig, memory: ConfigDict) -> CarriedFormat:
        """Returns the shapes of this mode's memory."""
        raise NotImplementedError

    def read_input(
        self,
        x_BTD: jax.Array,
        table_VD: jax.Array,
        tokens_BN: jax.Array,
        lookup: Lookup,
    ) -> tuple[jax.Array, Retrieval | None]:
        """Returns the token vectors, joined with what was retrieved.

        Args:
          x_BTD: token embeddings, without positions.
          table_VD: all of them.
          tokens_BN: `context` tokens before these, and these; -1 for none.
          lookup: the memory.
        """
        del table_VD, tokens_BN, lookup
        return x_BTD, None

    def attention_hooks(self, lookup: Lookup) -> dict[int, attention.AttentionHook]:
        """Returns {block: hook of its attention}, which hands back a `Retrieval`."""
        del lookup
        return {}

    def read_output(
        self, logits_BTV: jax.Array, x_BTD: jax.Array, lookup: Lookup
    ) -> tuple[jax.Array, Retrieval | None]:
        """Returns the logits of last hidden states, the memory's mixed in."""
        del x_BTD, lookup
        return logits_BTV, None

    def record(
        self,
        hidden: list[jax.Array],
        x_BTD: jax.Array,
        tokens_BT: jax.Array,
        retrieval: Retrieval,
    ) -> tuple[Entries, jax.Array]:
        """Returns an entry for each token, and the decision to store it [B, T].

        Args:
          hidden: what enters the first block, and what leaves each.
          x_BTD: the last hidden states.
          tokens_BT: [B, T + 1], the segment with its last target.
          retrieval: what was read.
        """
        raise NotImplementedError

    def mark_read(
        self, entries: Entries, x_BTD: jax.Array, retrieval: Retrieval, hard: bool
    ) -> Entries:
        """Returns entries with a note of who read them; where hard, without deleted."""
        del x_BTD, retrieval, hard
        return entries

    def nothing(self, lookup: Lookup, T: int, **to_store: jax.Array) -> Retrieval:
        """Returns the `Retrieval` of T tokens that read no entry."""
        shape = (len(lookup.row_B), T, self.num_results)
        none_BTM = jnp.full(shape, -1, jnp.int32)
        zeros_BTM = jnp.zeros(shape, jnp.float32)
        return Retrieval(lookup.row_B, none_BTM, zeros_BTM, to_store)


def all_kept(tokens_BT: jax.Array) -> jax.Array:
    """Returns store decisions [B, T] of a mode that stores every token."""
    return jnp.ones(tokens_BT[:, 1:].shape, jnp.float32)
