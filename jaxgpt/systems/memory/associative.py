"""VardaGPT's memory, made trainable and causal: a mode of `modes`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.model import attention, layers
from jaxgpt.model.config import ModelConfig
from jaxgpt.systems.memory import entries as ops
from jaxgpt.systems.memory.entries import Entries
from jaxgpt.systems.memory.look import Layout, Look

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from jaxgpt.systems.memory.model import MemoryModel

FADE = 0.6  # What the token before weighs in an address.
# Of the store decision's logits: it settles before what is read makes up for it.
DECISION_SCALE = 8


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
    ) -> tuple[jax.Array, dict[int, attention.AttentionHook]]:
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
