"""Memory modes: their interface, Memorizing Transformers' and kNN-LM's."""

from __future__ import annotations

import math
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
    """What a mode carries from segment to segment.

    Attributes:
      key: (G, K), the shape of an entry's keys.
      values: the shape of each value of an entry.
      context: how many recent tokens.
      entangled: whether entries depend on what was read from the memory, so that what
        is removed lives on in those written after it.
      stores_next: whether an entry holds the token after its own.
    """

    key: tuple[int, int]
    values: dict[str, tuple[int, ...]]
    context: int = 1
    entangled: bool = False
    stores_next: bool = False


class Mode(nnx.Module):
    """A way to read a memory; the submodule `memory` of a `MemoryModel`.

    A mode reads in one of three places: the input vectors, the attention of a block,
    or the logits. The others return None for what they retrieved.
    """

    def __init__(self, config: ModelConfig, memory: ConfigDict, *, rngs: nnx.Rngs):
        del rngs
        # Hashable values only: jit compares modules by their static attributes.
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
        """Returns {block: hook of its attention}, which returns a `Retrieval`."""
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
          hidden: the input of the first block, and each block's output.
          x_BTD: the last hidden states.
          tokens_BT: [B, T + 1], the segment with its last target.
          retrieval: what was read.
        """
        raise NotImplementedError

    def mark_read(
        self, entries: Entries, x_BTD: jax.Array, retrieval: Retrieval, hard: bool
    ) -> Entries:
        """Returns entries marked with their readers; where hard, some are deleted."""
        del x_BTD, retrieval, hard
        return entries

    def nothing(self, lookup: Lookup, T: int, **to_store: jax.Array) -> Retrieval:
        """Returns the `Retrieval` of T tokens that read no entry."""
        shape = (len(lookup.row_B), T, self.num_results)
        none_BTM = jnp.full(shape, -1, jnp.int32)
        zeros_BTM = jnp.zeros(shape, jnp.float32)
        return Retrieval(lookup.row_B, none_BTM, zeros_BTM, to_store)


class AttentionMemory(Mode):
    """Keys and values of earlier segments in one block's attention (arXiv 2203.08913).

    A gate weighs the memory against the window: its odds are those of a softmax over
    both, times e to the power of a learned number for each head (0 at first). With M
    at least the number of entries that is attention to all of them.
    """

    def __init__(self, config: ModelConfig, memory: ConfigDict, *, rngs: nnx.Rngs):
        super().__init__(config, memory, rngs=rngs)
        self.gate = nnx.Param(jnp.zeros(config.n_head, config.param_dtype))
        self.layer = memory.layer % config.n_layer

    @staticmethod
    def carried_format(config: ModelConfig, memory: ConfigDict) -> CarriedFormat:
        """A key and a value for each head."""
        del memory
        shape = (config.n_head, config.n_embd // config.n_head)
        return CarriedFormat(shape, {"value": shape})

    def attention_hooks(self, lookup: Lookup) -> dict[int, attention.AttentionHook]:
        """Returns the hook of block `layer`."""

        def hook(q, k, v, y_BHTK, total_BHT):
            own = {"key": k.swapaxes(1, 2), "value": v.swapaxes(1, 2)}
            if lookup.entries is None:
                return jnp.zeros_like(v), self.nothing(lookup, q.shape[2], **own)
            slot, scores_BHTM, value_BHTMK = self._retrieve(q, lookup)
            found = scores_BHTM > -jnp.inf
            total = jax.nn.logsumexp(scores_BHTM, -1, where=found)
            any_found = found.any(-1)
            share_BHTM = jnp.exp(
                jnp.where(
                    any_found[..., None], scores_BHTM - total[..., None], -jnp.inf
                )
            )
            more_BHTK = (share_BHTM[..., None] * value_BHTMK).sum(3) - y_BHTK
            odds = self.gate[...][:, None] + total - total_BHT
            gate = jnp.where(any_found, jax.nn.sigmoid(odds), 0)[..., None]
            retrieval = Retrieval(lookup.row_B, slot, (gate * share_BHTM).mean(1), own)
            return gate * more_BHTK, retrieval

        return {self.layer: hook}

    def _retrieve(
        self, q_BHTK: jax.Array, lookup: Lookup
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns slots [B, T, M], scores (-inf: none) and values [B, H, T, M, K]."""
        entries = lookup.entries
        assert entries is not None
        slot, valid = lookup.find(q_BHTK.swapaxes(1, 2))
        head = jnp.arange(slot.shape[2])[:, None]
        row = jnp.reshape(lookup.row_B, (-1, 1, 1, 1))
        key = entries["key"][row, slot, head].swapaxes(1, 2)
        value = entries["values"]["value"][row, slot, head].swapaxes(1, 2)
        # Products and sums, not a batch of small matrix products: XLA would compute
        # those in an order that depends on what surrounds them.
        scores = (q_BHTK[:, :, :, None] * key).sum(-1)
        scores = scores / math.sqrt(q_BHTK.shape[-1])
        strength = entries["strength"][row, slot].swapaxes(1, 2)
        # Not log(0) of a strength that has decayed to 0: -inf stands for no entry.
        scores += jnp.log(jnp.maximum(strength, 1e-30))
        scores = jnp.where(valid.swapaxes(1, 2), scores, -jnp.inf)
        return jnp.where(valid, slot, -1)[:, :, 0], scores, value

    def record(self, hidden, x_BTD, tokens_BT, retrieval):
        """Stores each token's keys and values; see `Mode.record`."""
        del hidden, x_BTD
        own = jax.lax.stop_gradient(retrieval.to_store)
        values = {"value": own["value"]}
        token_BT = tokens_BT[:, :-1]
        new = {"key": own["key"], "values": values, "token": token_BT}
        return new, jnp.ones(token_BT.shape, jnp.float32)


def find_one_key(
    query_BTD: jax.Array, lookup: Lookup
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Searches entries that have one key each.

    Returns:
      (slots [B, T, M], 0 for none; which of them are entries; the squared differences
      [B, T, M, D] of their keys from the query).
    """
    slot, valid = lookup.find(query_BTD[:, :, None])
    slot_BTM, valid_BTM = slot[:, :, 0], valid[:, :, 0]
    assert lookup.entries is not None
    key_BTMD = lookup.take(lookup.entries["key"], slot_BTM)[..., 0, :]
    return slot_BTM, valid_BTM, (query_BTD[:, :, None] - key_BTMD) ** 2


def neighbours(x_BTD: jax.Array, lookup: Lookup) -> tuple[jax.Array, jax.Array]:
    """Returns slots [B, T, M], -1 for none, and the distances of their keys from x.

    A distance is the mean of the squared differences, infinite for none.
    """
    slot_BTM, valid_BTM, square_BTMD = find_one_key(x_BTD, lookup)
    distance_BTM = jnp.where(valid_BTM, square_BTMD.mean(-1), jnp.inf)
    return jnp.where(valid_BTM, slot_BTM, -1), distance_BTM


class KNNLM(Mode):
    """The tokens that followed similar states (arXiv 1911.00172).

    It has no parameters: any trained model can use it.
    """

    def __init__(self, config: ModelConfig, memory: ConfigDict, *, rngs: nnx.Rngs):
        super().__init__(config, memory, rngs=rngs)
        self.weight, self.temperature = memory.weight, memory.temperature

    @staticmethod
    def carried_format(config: ModelConfig, memory: ConfigDict) -> CarriedFormat:
        """Keys are last hidden states."""
        del memory
        return CarriedFormat((1, config.n_embd), {}, stores_next=True)

    def read_output(self, logits_BTV, x_BTD, lookup):
        """Returns log-probabilities, the memory's mixed in where it found any."""
        entries = lookup.entries
        if entries is None or not self.weight:
            return logits_BTV, self.nothing(lookup, x_BTD.shape[1])
        slot_BTM, distance_BTM = neighbours(x_BTD, lookup)
        valid_BTM = slot_BTM >= 0
        score_BTM = -distance_BTM / self.temperature
        found_BT1 = valid_BTM.any(-1, keepdims=True)
        p_BTM = jax.nn.softmax(jnp.where(found_BT1, score_BTM, 0), -1)
        p_BTM *= lookup.take(entries["strength"], slot_BTM) * found_BT1
        token_BTM = lookup.take(entries["token"], slot_BTM)
        B, T, V = logits_BTV.shape
        b, t = jnp.arange(B)[:, None, None], jnp.arange(T)[:, None]
        p_BTV = jnp.zeros((B, T, V), p_BTM.dtype).at[b, t, token_BTM].add(p_BTM)
        own_BTV = jax.nn.softmax(logits_BTV, -1)
        # Not the weight itself: the share of faded entries is left to the model.
        share = self.weight * p_BTM.sum(-1, keepdims=True)
        mixed_BTV = (1 - share) * own_BTV + self.weight * p_BTV
        retrieval = Retrieval(lookup.row_B, slot_BTM, self.weight * p_BTM, {})
        return jnp.where(found_BT1, jnp.log(mixed_BTV), logits_BTV), retrieval

    def record(self, hidden, x_BTD, tokens_BT, retrieval):
        """Stores each state with the token that followed; see `Mode.record`."""
        del hidden, retrieval
        key = jax.lax.stop_gradient(x_BTD[:, :, None])
        token_BT = tokens_BT[:, 1:]
        new = {"key": key, "values": {}, "token": token_BT}
        return new, jnp.ones(token_BT.shape, jnp.float32)
