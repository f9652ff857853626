"""VardaGPT's memory, made trainable and causal."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxgpt.model import layers
from jaxgpt.model.config import ModelConfig
from jaxgpt.systems.memory import entries as ops
from jaxgpt.systems.memory.config import EMBEDDING
from jaxgpt.systems.memory.modes import CarriedFormat, Mode, find_one_key
from jaxgpt.systems.memory.retrieval import Retrieval

FADE = 0.6  # Weight of a token in an address, relative to the one after it.
# Scale of the store decision's logits: large, so that the decision settles before the
# rest of the model has learned to make do with half of a vector.
DECISION_SCALE = 8


def normalise(x: jax.Array) -> jax.Array:
    """Returns vectors of length 1; zero stays zero."""
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-12)


def addresses(table_VD: jax.Array, tokens_BN: jax.Array, context: int) -> jax.Array:
    """Returns the address [B, N - context + 1, D] of every token that has a context.

    A sum of the last `context` token embeddings of length 1, each weighing 0.6 of the
    one after it; -1 stands for no token.
    """
    e_BND = normalise(table_VD)[jnp.maximum(tokens_BN, 0)]
    e_BND = jnp.where(tokens_BN[..., None] < 0, 0, e_BND)
    count = tokens_BN.shape[1] - context + 1
    shifted = (
        FADE**back * e_BND[:, context - 1 - back : context - 1 - back + count]
        for back in range(context)
    )
    return normalise(functools.reduce(jnp.add, shifted))


class Associative(Mode):
    """Vectors found by the address of the tokens so far, joined with the input.

    The vector of an entry and the decision to store it are computed when it is read,
    so that gradients reach them through entries of any age: of its token's embedding,
    or of a hidden state stored with it, in which earlier entries live on.
    """

    def __init__(self, config: ModelConfig, memory: ConfigDict, *, rngs: nnx.Rngs):
        super().__init__(config, memory, rngs=rngs)
        D, M = config.n_embd, memory.num_search_results
        W = memory.memory_dim or D
        make = lambda n, m, std=0.02, bias=True: layers.Linear(
            n, m, config, std=std, bias=bias, rngs=rngs
        )
        self.storable_vector = make(D, W)
        self.store_decision = make(D, 1)
        self.join_input = make(D, D, std=0)
        self.join_memory = make(M * W, D, std=memory.join_std, bias=False)
        self.sharpness = nnx.Param(jnp.zeros((), config.param_dtype))
        if memory.delete:
            self.deletable_vector = make(D, W)
            self.delete_decision = make(D, M)
        self.store_layer, self.deletes = memory.store_layer, memory.delete

    @staticmethod
    def carried_format(config: ModelConfig, memory: ConfigDict) -> CarriedFormat:
        """Keys are addresses; values hidden states: its own, if stored, a reader's."""
        D = config.n_embd
        stored = memory.store_layer != EMBEDDING
        hidden: dict[str, tuple[int, ...]] = {"hidden": (D,)} if stored else {}
        # The hidden state of the last reader, and 1 + the entry's rank in its results.
        reader = {"reader": (D,), "rank": (1,)} if memory.delete else {}
        values, entangled = {**hidden, **reader}, stored or memory.delete
        return CarriedFormat((1, D), values, memory.context, entangled)

    def read_input(self, x_BTD, table_VD, tokens_BN, lookup):
        """Returns the input joined with what was found; see `Mode.read_input`."""
        B, T, _ = x_BTD.shape
        address = addresses(table_VD, tokens_BN, self.context)
        # An entry is found by what came before it: its key is the address of the token
        # before, so there is one address more than there are tokens.
        key_BTGD = jax.lax.stop_gradient(address[:, -T - 1 : -1, None])
        to_store = {"key": key_BTGD, "embedding": x_BTD}
        joined_BTD = x_BTD + self.join_input(x_BTD)
        entries = lookup.entries
        if entries is None:
            return joined_BTD, self.nothing(lookup, T, **to_store)
        query_BTD = address[:, -T:]
        slot_BTM, valid_BTM, square_BTMD = find_one_key(query_BTD, lookup)
        weight_BTM = jnp.exp(-2 * jnp.exp(self.sharpness[...]) * square_BTMD.sum(-1))
        if self.store_layer == EMBEDDING:
            token_BTM = lookup.take(entries["token"], slot_BTM)
            state_BTMD = jax.lax.stop_gradient(table_VD)[token_BTM]
        else:
            state_BTMD = lookup.take(entries["values"]["hidden"], slot_BTM)
        vector_BTMW = self.storable_vector(state_BTMD)
        keep_BTM = self.store_probability(state_BTMD)
        if lookup.decision_key is not None:
            # Straight-through: the weight is a sampled 0 or 1, since only an entry that
            # is really missing teaches what to store, with the probability's gradient.
            kept_BTM = jax.random.bernoulli(lookup.decision_key, keep_BTM)
            kept_BTM = kept_BTM.astype(keep_BTM.dtype)
            keep_BTM = keep_BTM + jax.lax.stop_gradient(kept_BTM - keep_BTM)
        weight_BTM *= keep_BTM
        weight_BTM *= lookup.take(entries["strength"], slot_BTM)
        if self.deletes:
            reader_BTMD = lookup.take(entries["values"]["reader"], slot_BTM)
            rank_BTM = lookup.take(entries["values"]["rank"], slot_BTM)[..., 0]
            rank_BTM = rank_BTM.astype(jnp.int32)
            deletion_BTM = self.deletion(reader_BTMD, rank_BTM, vector_BTMW)
            weight_BTM *= 1 - jnp.where(rank_BTM > 0, deletion_BTM, 0)
            to_store["vector"] = vector_BTMW
        weight_BTM = jnp.where(valid_BTM, weight_BTM, 0)
        read_BTC = (weight_BTM[..., None] * vector_BTMW).reshape(B, T, -1)
        slot_BTM = jnp.where(valid_BTM, slot_BTM, -1)
        retrieval = Retrieval(lookup.row_B, slot_BTM, weight_BTM, to_store)
        return joined_BTD + self.join_memory(read_BTC), retrieval

    def store_probability(self, state: jax.Array) -> jax.Array:
        """Returns the decision to store, from 0 to 1, of states [..., D]."""
        return jax.nn.sigmoid(DECISION_SCALE * self.store_decision(state)[..., 0])

    def deletion(self, reader, rank, vector) -> jax.Array:
        """Returns how far readers [..., D] delete vectors [..., W], from 0 to 1.

        It is the decision of a reader for the result of this rank (from 1) times how
        close its deletable vector is to the stored one.
        """
        decision = jax.nn.sigmoid(self.delete_decision(reader))
        at = jnp.maximum(rank - 1, 0)[..., None]
        decision = jnp.take_along_axis(decision, at, -1)[..., 0]
        distance = ((self.deletable_vector(reader) - vector) ** 2).mean(-1)
        return decision * jnp.exp(-distance)

    def record(self, hidden, x_BTD, tokens_BT, retrieval):
        """Returns entries found by the address before each token; see `Mode.record`."""
        if self.store_layer == EMBEDDING:
            state_BTD = retrieval.to_store["embedding"]
        else:
            layer = self.store_layer % len(hidden)
            # The last block's output is stored as the last norm leaves it.
            state_BTD = x_BTD if layer == len(hidden) - 1 else hidden[layer]
        state_BTD = jax.lax.stop_gradient(state_BTD)
        values = {} if self.store_layer == EMBEDDING else {"hidden": state_BTD}
        if self.deletes:
            values["reader"] = jnp.zeros_like(state_BTD)
            values["rank"] = jnp.zeros((*state_BTD.shape[:2], 1))
        key = retrieval.to_store["key"]
        new = {"key": key, "values": values, "token": tokens_BT[:, :-1]}
        return new, self.store_probability(state_BTD)

    def mark_read(self, entries, x_BTD, retrieval, hard):
        """Notes the last reader of each entry; where hard, deletes what it deletes."""
        if not self.deletes:
            return entries
        R, E = entries["id"].shape
        B, T, M = retrieval.slot_BTM.shape
        row_B11 = jnp.reshape(retrieval.row_B, (-1, 1, 1))
        slot = jnp.where(retrieval.slot_BTM < 0, E, retrieval.slot_BTM)
        # Several tokens may have read an entry: the last one counts.
        order = jnp.arange(B * T * M).reshape(B, T, M)
        last_RE = jnp.full((R, E), -1).at[row_B11, slot].max(order, mode="drop")
        is_last = last_RE[row_B11, jnp.minimum(slot, E - 1)] == order
        slot = jnp.where(is_last, slot, E)
        rank = jnp.broadcast_to(jnp.arange(M) + 1, slot.shape)
        x_BTD = jax.lax.stop_gradient(x_BTD)
        reader = jnp.broadcast_to(x_BTD[:, :, None], (B, T, M, x_BTD.shape[-1]))
        values = entries["values"]
        put = lambda array, new: array.at[row_B11, slot].set(new, mode="drop")
        marked = {
            "reader": put(values["reader"], reader),
            "rank": put(values["rank"], rank[..., None].astype(jnp.float32)),
        }
        entries = entries | {"values": values | marked}
        if not hard or "vector" not in retrieval.to_store:  # Nothing was read.
            return entries
        gone = self.deletion(reader, rank, retrieval.to_store["vector"]) > 0.5
        return ops.remove(entries, put(jnp.zeros((R, E), bool), gone))
