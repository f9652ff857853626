"""How a model reads a memory and what it stores: three modes behind one interface.

A mode is a module `memory` of a `MemoryModel` (see `model.py`), with

  layout           (G, K) of a key, and the shapes of an entry's values
  read             what attention and input get from the memory, before the blocks
  predict          logits of hidden states
  record           the entries that a segment leaves behind

`Look` is what a read found; it is handed from one to the next.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.model import attention, positions
from jaxgpt.model.config import ModelConfig
from jaxgpt.systems.memory.associative import Associative
from jaxgpt.systems.memory.entries import Entries
from jaxgpt.systems.memory.look import Layout, Look

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from jaxgpt.systems.memory.model import MemoryModel


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
    ) -> tuple[jax.Array, dict[int, attention.AttentionHook]]:
        """Returns what the block's attention gets more than without a memory."""
        del model, tokens_BN
        c = self.config

        def hook(q, k, v, layer, start):
            T = q.shape[2]
            S = layer[0].shape[2] if layer else 0
            look.found |= {"k": k, "v": v}
            if look.entries is None:
                return jnp.zeros_like(v), None
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
            return gate * (y_memory - y_local), None

        return x_BTD, {self.layer: hook}

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
    ) -> tuple[jax.Array, dict[int, attention.AttentionHook]]:
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
