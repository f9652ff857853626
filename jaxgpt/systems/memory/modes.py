"""How a model reads a memory and what it stores: three modes behind one interface.

A mode is a module `memory` of a `MemoryModel` (see `model.py`), with

  layout           (G, K) of a key, and the shapes of an entry's values
  read             what attention and input get from the memory, before the blocks
  predict          logits of hidden states
  record           the entries that a segment leaves behind

`Look` is what a read found; it is handed from one to the next.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.core import attention, layers, positions
from jaxgpt.core.transformer import Beside, ModelConfig
from jaxgpt.systems.memory import entries as ops
from jaxgpt.systems.memory.entries import Entries
from jaxgpt.systems.memory.store import Search

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from jaxgpt.systems.memory.model import MemoryModel

FADE = 0.6  # What the token before weighs in an address.
# Of the store decision's logits: it settles before what is read makes up for it.
DECISION_SCALE = 8
Layout = tuple[tuple[int, int], dict[str, tuple[int, ...]]]


@dataclasses.dataclass
class Look:
    """What one forward pass looks at, and what it found.

    Attributes:
      entries: of the memory, which rows row_B read; None reads nothing.
      row_B: the memory row that each row of the batch reads.
      search: finds places.
      draw: the key that store decisions are drawn with in training, None for their
        probability.
      place_BTM: what was found, -1 none (in `attention`, of the first head).
      weight_BTM: how much of it was used, from 0 to 1.
      found: what else a mode hands from one step to the next.
    """

    entries: Entries | None
    row_B: jax.Array
    search: Search
    draw: jax.Array | None = None
    place_BTM: jax.Array | None = None
    weight_BTM: jax.Array | None = None
    found: dict[str, Any] = dataclasses.field(default_factory=dict)

    def find(self, query_BTGK: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns places [B, T, G, M] (0 for none) and which are entries."""
        assert self.entries is not None
        place = self.search(self.entries["version"], self.row_B, query_BTGK)
        # The index still has what a document that just began has left behind.
        there = self.take(self.entries["id"], place) >= 0
        return jnp.maximum(place, 0), (place >= 0) & there

    def take(self, array_RE: jax.Array, place: jax.Array) -> jax.Array:
        """Returns what stands at these places [B, ...] of the rows read."""
        return ops.take(array_RE, self.row_B, place)


def unit(x: jax.Array) -> jax.Array:
    """Returns vectors of length 1; zero stays zero."""
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-12)


def addresses(table_VD: jax.Array, tokens_BN: jax.Array, context: int) -> jax.Array:
    """Returns the address [B, N - context + 1, D] of each token after the first ones.

    A sum of the last `context` token embeddings of length 1, each weighing 0.6 of the
    one after it; a token of -1 is none.
    """
    e_BND = unit(table_VD)[jnp.maximum(tokens_BN, 0)]
    e_BND = jnp.where(tokens_BN[..., None] < 0, 0, e_BND)
    count = tokens_BN.shape[1] - context + 1
    shifted = (
        FADE**back * e_BND[:, context - 1 - back : context - 1 - back + count]
        for back in range(context)
    )
    return unit(functools.reduce(jnp.add, shifted))


class Associative(nnx.Module):
    """VardaGPT's memory, made trainable and causal.

    A token is joined with M vectors, found by the address of the tokens up to it. An
    entry is kept as hidden state; the vector and the decision to store are made of it
    when it is read, so that gradients reach them through entries of any age.
    """

    def __init__(self, config: ModelConfig, memory: ConfigDict, *, rngs: nnx.Rngs):
        D, M = config.n_embd, memory.num_search_results
        self.width = memory.memory_dim or D
        std = memory.join_std
        make = lambda n, m, std=0.02: layers.Linear(
            n, m, config, std=std, bias=True, rngs=rngs
        )
        self.storable_vector = make(D, self.width)
        self.store_decision = make(D, 1)
        self.join_input = layers.Linear(D, D, config, std=0, bias=True, rngs=rngs)
        self.join_memory = layers.Linear(
            M * self.width, D, config, std=std, bias=False, rngs=rngs
        )
        self.sharpness = nnx.Param(jnp.zeros((), config.param_dtype))
        if memory.delete:
            self.deletable_vector = make(D, self.width)
            self.delete_decision = make(D, M)
        # Floats and strings only: a module must be comparable to be compiled for.
        self.context, self.layer = memory.context, memory.store_layer
        self.results, self.deletes = M, memory.delete
        self.config = config

    @property
    def layout(self) -> Layout:
        """Keys are addresses; hidden states, and with deletion who asked for it."""
        D = self.config.n_embd
        values: dict[str, tuple[int, ...]] = {"hidden": (D,)}
        if self.deletes:
            # The hidden state of the last reader, and 1 + where among its results.
            values |= {"reader": (D,), "rank": (1,)}
        return (1, D), values

    def read(
        self, model: MemoryModel, x_BTD: jax.Array, tokens_BN: jax.Array, look: Look
    ) -> tuple[jax.Array, dict[int, Beside]]:
        """Returns the input joined with what was found."""
        T = x_BTD.shape[1]
        address = addresses(model.table[...], tokens_BN, self.context)
        # One more than there are tokens: an entry is found by what came before it.
        look.found["key"] = jax.lax.stop_gradient(address[:, -T - 1 : -1])
        joined_BTD = x_BTD + self.join_input(x_BTD)
        if look.entries is None:
            return joined_BTD, {}
        query_BTD = address[:, -T:]
        place, valid = look.find(query_BTD[:, :, None])
        place_BTM, valid_BTM = place[:, :, 0], valid[:, :, 0]
        key_BTMD = look.take(look.entries["key"], place_BTM)[..., 0, :]
        far_BTM = ((query_BTD[:, :, None] - key_BTMD) ** 2).sum(-1)
        near_BTM = jnp.exp(-2 * jnp.exp(self.sharpness[...]) * far_BTM)
        hidden_BTMD = look.take(look.entries["values"]["hidden"], place_BTM)
        vector_BTMW = self.storable_vector(hidden_BTMD)
        keep_BTM = self.stores(hidden_BTMD)
        if look.draw is not None:
            # What is dropped is missed, or not: that, and no half measure, teaches to
            # decide. The gradient is that of the probability.
            kept_BTM = jax.random.bernoulli(look.draw, keep_BTM).astype(keep_BTM.dtype)
            keep_BTM = keep_BTM + jax.lax.stop_gradient(kept_BTM - keep_BTM)
        weight_BTM = near_BTM * keep_BTM
        weight_BTM *= look.take(look.entries["strength"], place_BTM)
        if self.deletes:
            weight_BTM *= 1 - self._deleted(look, place_BTM, vector_BTMW)
        weight_BTM = jnp.where(valid_BTM, weight_BTM, 0)
        look.place_BTM = jnp.where(valid_BTM, place_BTM, -1)
        look.weight_BTM = weight_BTM
        read_BTC = weight_BTM[..., None] * vector_BTMW
        read_BTC = read_BTC.reshape(*x_BTD.shape[:2], -1)
        return joined_BTD + self.join_memory(read_BTC), {}

    def stores(self, hidden: jax.Array) -> jax.Array:
        """Returns the decision to store, from 0 to 1, for hidden states [..., D]."""
        return jax.nn.sigmoid(DECISION_SCALE * self.store_decision(hidden)[..., 0])

    def _deleted(self, look: Look, place_BTM, vector_BTMW) -> jax.Array:
        """Returns from 0 to 1 how far the last reader of each entry deleted it."""
        assert look.entries is not None
        values = look.entries["values"]
        reader_BTMD = look.take(values["reader"], place_BTM)
        rank_BTM = look.take(values["rank"], place_BTM)[..., 0].astype(jnp.int32)
        return jnp.where(
            rank_BTM > 0, self.deletes_at(reader_BTMD, rank_BTM, vector_BTMW), 0
        )

    def deletes_at(self, reader, rank, vector) -> jax.Array:
        """Returns decision times match: the likeness of deletable and stored vector."""
        decision = jax.nn.sigmoid(self.delete_decision(reader))
        at = jnp.maximum(rank - 1, 0)[..., None]
        decision = jnp.take_along_axis(decision, at, -1)[..., 0]
        far = ((self.deletable_vector(reader) - vector) ** 2).mean(-1)
        return decision * jnp.exp(-far)

    def predict(self, model: MemoryModel, x_BTD: jax.Array, look: Look) -> jax.Array:
        """Returns the model's own logits: the memory came in with the input."""
        del look
        return model.head(x_BTD)

    def record(
        self,
        outputs: list[jax.Array],
        x_BTD: jax.Array,
        tokens_BT: jax.Array,
        look: Look,
    ) -> tuple[Entries, jax.Array]:
        """Returns entries found by the address before each token; the decision [B, T].

        Args:
          outputs: what enters the first block, and what leaves each.
          x_BTD: of the last norm.
          tokens_BT: of the segment, and its last target.
          look: what was found.
        """
        layer = self.layer if self.layer >= 0 else len(outputs) + self.layer
        hidden_BTD = x_BTD if layer == len(outputs) - 1 else outputs[layer]
        hidden_BTD = jax.lax.stop_gradient(hidden_BTD)
        keep_BT = self.stores(hidden_BTD)
        values = {"hidden": hidden_BTD}
        if self.deletes:
            values |= {
                "reader": jnp.zeros_like(hidden_BTD),
                "rank": jnp.zeros((*hidden_BTD.shape[:2], 1)),
            }
        key = look.found["key"][:, :, None]
        return {"key": key, "values": values, "token": tokens_BT[:, :-1]}, keep_BT

    def mark(self, entries: Entries, x_BTD: jax.Array, look: Look, hard: bool):
        """Notes the last reader of each entry; where hard, deletes what it deletes."""
        if not self.deletes or look.place_BTM is None:
            return entries
        R, E = entries["id"].shape
        B, T, M = look.place_BTM.shape
        x_BTD = jax.lax.stop_gradient(x_BTD)
        row_B11 = jnp.reshape(look.row_B, (-1, 1, 1))
        place = jnp.where(look.place_BTM < 0, E, look.place_BTM)
        order = jnp.arange(B * T * M).reshape(B, T, M)
        last_RE = jnp.full((R, E), -1).at[row_B11, place].max(order, mode="drop")
        wins = last_RE[row_B11, jnp.minimum(place, E - 1)] == order
        place = jnp.where(wins, place, E)
        rank = jnp.broadcast_to(jnp.arange(M) + 1, place.shape)
        reader = jnp.broadcast_to(x_BTD[:, :, None], (B, T, M, x_BTD.shape[-1]))
        values = entries["values"]
        put = lambda array, new: array.at[row_B11, place].set(new, mode="drop")
        marked = entries | {
            "values": values
            | {
                "reader": put(values["reader"], reader),
                "rank": put(values["rank"], rank[..., None].astype(jnp.float32)),
            }
        }
        if not hard:
            return marked
        at = jnp.minimum(place, E - 1)
        vector = self.storable_vector(values["hidden"][row_B11, at])
        gone = self.deletes_at(reader, rank, vector) > 0.5
        gone_RE = jnp.zeros((R, E), bool).at[row_B11, place].set(gone, mode="drop")
        return ops.remove(marked, gone_RE)


class AttentionMemory(nnx.Module):
    """Keys and values of earlier segments in one block's attention.

    The memory's part is weighed by a gate against the window's: the odds are those of
    a softmax over both, times e to the power of a learned number for each head (0 at
    first). With M at least what is stored that is attention to all of it.
    """

    def __init__(self, config: ModelConfig, memory: ConfigDict, *, rngs: nnx.Rngs):
        del rngs
        self.gate = nnx.Param(jnp.zeros(config.n_head, config.param_dtype))
        layer = memory.layer
        self.layer = layer if layer >= 0 else config.n_layer + layer
        self.context = 1
        self.config = config

    @property
    def layout(self) -> Layout:
        """A key and a value for each head."""
        H = self.config.n_head
        K = self.config.n_embd // H
        return (H, K), {"value": (H, K)}

    def read(
        self, model: MemoryModel, x_BTD: jax.Array, tokens_BN: jax.Array, look: Look
    ) -> tuple[jax.Array, dict[int, Beside]]:
        """Returns what the block's attention gets more than without a memory."""
        del tokens_BN
        attn = model.transformer.blocks[self.layer].attn
        c = self.config

        def beside(h_BTD, layer, start):
            T = h_BTD.shape[1]
            S = layer[0].shape[2] if layer else 0
            projected = attn.project(h_BTD, max(S, T), start)
            q, k, v = attention.split_heads(projected, c.n_head)
            look.found |= {"k": k, "v": v}
            if look.entries is None:
                return jnp.zeros_like(h_BTD)
            own_T = jnp.reshape(start, ()) + jnp.arange(T)
            slot_S = jnp.concatenate([jnp.arange(S), own_T])
            seen_TS = jnp.concatenate(
                [
                    jnp.broadcast_to(jnp.arange(S) < jnp.reshape(start, ()), (T, S)),
                    jnp.tril(jnp.ones((T, T), bool)),
                ],
                1,
            )
            if layer:
                k, v = (
                    jnp.concatenate(pair, 2) for pair in zip(layer, (k, v), strict=True)
                )
            bias = positions.score_bias(own_T, slot_S, c)
            local = jnp.einsum("bhtk,bhsk->bhts", q, k) / math.sqrt(q.shape[-1]) + bias
            local = jnp.where(seen_TS, local, -jnp.inf)
            y_local = jnp.einsum("bhts,bhsk->bhtk", jax.nn.softmax(local, -1), v)
            scores, value = self._find(q, look)
            total = jax.nn.logsumexp(scores, -1, where=scores > -jnp.inf)
            any_found = (scores > -jnp.inf).any(-1)
            share = jnp.where(any_found[..., None], scores - total[..., None], -jnp.inf)
            y_memory = jnp.einsum("bhtm,bhtmk->bhtk", jnp.exp(share), value)
            odds = self.gate[...][:, None] + total - jax.nn.logsumexp(local, -1)
            gate = jnp.where(any_found, jax.nn.sigmoid(odds), 0)[..., None]
            look.weight_BTM = (gate * jnp.exp(share)).mean(1)
            change = gate * (y_memory - y_local)
            return layers.matmul(attention.merge_heads(change), attn.out.kernel[...], c)

        return x_BTD, {self.layer: beside}

    def _find(self, q_BHTK: jax.Array, look: Look) -> tuple[jax.Array, jax.Array]:
        """Returns scores [B, H, T, M], -inf for none, and values [B, H, T, M, K]."""
        assert look.entries is not None
        place, valid = look.find(q_BHTK.swapaxes(1, 2))
        look.place_BTM = jnp.where(valid, place, -1)[:, :, 0]
        head = jnp.arange(place.shape[2])[:, None]
        row = jnp.reshape(look.row_B, (-1, 1, 1, 1))
        key = look.entries["key"][row, place, head].swapaxes(1, 2)
        value = look.entries["values"]["value"][row, place, head].swapaxes(1, 2)
        scores = jnp.einsum("bhtk,bhtmk->bhtm", q_BHTK, key)
        scores = scores / math.sqrt(q_BHTK.shape[-1])
        strength = look.entries["strength"][row, place].swapaxes(1, 2)
        scores += jnp.log(jnp.maximum(strength, 1e-30))
        return jnp.where(valid.swapaxes(1, 2), scores, -jnp.inf), value

    def predict(self, model: MemoryModel, x_BTD: jax.Array, look: Look) -> jax.Array:
        """Returns the model's own logits."""
        del look
        return model.head(x_BTD)

    def record(self, outputs, x_BTD, tokens_BT, look) -> tuple[Entries, jax.Array]:
        """Returns each token's keys and values; all are kept."""
        del outputs, x_BTD
        key = jax.lax.stop_gradient(look.found["k"].swapaxes(1, 2))
        value = jax.lax.stop_gradient(look.found["v"].swapaxes(1, 2))
        new = {"key": key, "values": {"value": value}, "token": tokens_BT[:, :-1]}
        return new, jnp.ones(tokens_BT[:, :-1].shape, jnp.float32)

    def mark(self, entries: Entries, x_BTD: jax.Array, look: Look, hard: bool):
        """Deletes nothing."""
        del x_BTD, look, hard
        return entries


class Output(nnx.Module):
    """kNN-LM (arXiv 1911.00172): the tokens that followed similar states.

    It has no parameters: any trained model can use it.
    """

    def __init__(self, config: ModelConfig, memory: ConfigDict, *, rngs: nnx.Rngs):
        del rngs
        self.weight, self.temperature = memory.weight, memory.temperature
        self.context = 1
        self.config = config

    @property
    def layout(self) -> Layout:
        """Keys are last hidden states."""
        return (1, self.config.n_embd), {}

    def read(
        self, model: MemoryModel, x_BTD: jax.Array, tokens_BN: jax.Array, look: Look
    ) -> tuple[jax.Array, dict[int, Beside]]:
        """Leaves the input as it is."""
        del model, tokens_BN, look
        return x_BTD, {}

    def predict(self, model: MemoryModel, x_BTD: jax.Array, look: Look) -> jax.Array:
        """Returns log-probabilities, the memory's mixed in where it found any."""
        logits_BTV = model.head(x_BTD)
        if look.entries is None or not self.weight:
            return logits_BTV
        place, valid = look.find(x_BTD[:, :, None])
        place_BTM, valid_BTM = place[:, :, 0], valid[:, :, 0]
        key_BTMD = look.take(look.entries["key"], place_BTM)[..., 0, :]
        far_BTM = ((x_BTD[:, :, None] - key_BTMD) ** 2).mean(-1)
        near = jnp.where(valid_BTM, -far_BTM / self.temperature, -jnp.inf)
        found_BT1 = valid_BTM.any(-1, keepdims=True)
        p_BTM = jax.nn.softmax(jnp.where(found_BT1, near, 0), -1)
        p_BTM *= look.take(look.entries["strength"], place_BTM) * found_BT1
        look.place_BTM = jnp.where(valid_BTM, place_BTM, -1)
        look.weight_BTM = self.weight * p_BTM
        token_BTM = look.take(look.entries["token"], place_BTM)
        B, T, V = logits_BTV.shape
        b, t = jnp.arange(B)[:, None, None], jnp.arange(T)[:, None]
        p_BTV = jnp.zeros((B, T, V), p_BTM.dtype).at[b, t, token_BTM].add(p_BTM)
        own_BTV = jax.nn.softmax(logits_BTV, -1)
        # What has faded leaves its share to the model.
        share = self.weight * p_BTM.sum(-1, keepdims=True)
        mixed_BTV = (1 - share) * own_BTV + self.weight * p_BTV
        return jnp.where(found_BT1, jnp.log(mixed_BTV), logits_BTV)

    def record(self, outputs, x_BTD, tokens_BT, look) -> tuple[Entries, jax.Array]:
        """Returns each state with the token that followed; all are kept."""
        del outputs, look
        key = jax.lax.stop_gradient(x_BTD[:, :, None])
        new: Entries = {"key": key, "values": {}, "token": tokens_BT[:, 1:]}
        return new, jnp.ones(tokens_BT[:, 1:].shape, jnp.float32)

    def mark(self, entries: Entries, x_BTD: jax.Array, look: Look, hard: bool):
        """Deletes nothing."""
        del x_BTD, look, hard
        return entries


MODES = {"associative": Associative, "attention": AttentionMemory, "output": Output}
