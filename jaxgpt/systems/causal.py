"""A plain causal language model: GPT-2 and nanoGPT, read left to right."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.config import UserError
from jaxgpt.core import generate, layers
from jaxgpt.core.positions import Positions, in_order
from jaxgpt.data.text import TextData, open_text
from jaxgpt.systems import Batch, System, check_order


class CausalLM(System):
    """Predicts token t + 1 from tokens 0 .. t."""

    extra_tokens = 1
    goes_past_block = True

    def open_data(self) -> TextData:
        """Opens the text of `config.data`."""
        return open_text(self.config, self.window)

    def nll(
        self, params: dict, batch: Batch, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Returns [B, T]: tokens [B, T + 1] are inputs and targets."""
        tokens = batch["tokens"]
        model = self.model(params)
        return model.nll(tokens[:, :-1], tokens[:, 1:], dropout_key=dropout_key)

    def score(
        self, params: dict, tokens_BT: jax.Array, order_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns logits [B, T, V], where row t predicts token t + 1, and nll."""
        logits_BTV = self.model(params)(tokens_BT)
        nll_BT = layers.cross_entropy(logits_BTV[:, :-1], tokens_BT[:, 1:])
        return logits_BTV, nll_BT

    def sample(
        self,
        params: dict,
        tokens_BT: np.ndarray,
        known_BT: np.ndarray,
        key: jax.Array,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        **options: Any,
    ) -> np.ndarray:
        """Fills what is missing; past the block, from the last block of tokens."""
        block = self.model_config.block_size
        head_BT = super().sample(
            params,
            tokens_BT[:, :block],
            known_BT[:, :block],
            key,
            temperature=temperature,
            top_k=top_k,
            **options,
        )
        if tokens_BT.shape[1] <= block:
            return head_BT
        missing = np.zeros((len(tokens_BT), tokens_BT.shape[1] - block), np.int32)
        whole_BN = generate.slide(
            self.graphdef,
            params,
            jnp.asarray(np.concatenate([head_BT, missing], 1)),
            jnp.int32(block),
            jax.random.fold_in(key, 1),
            jnp.float32(temperature),
            top_k=top_k,
        )
        return np.asarray(whole_BN)

    def reading(
        self, known_BT: np.ndarray, order: str, key: jax.Array
    ) -> tuple[np.ndarray, Positions]:
        """Reads left to right; what is given must come first."""
        check_order(order or "left-to-right", ("left-to-right",))
        if (np.diff(known_BT.astype(np.int8), axis=1) > 0).any():
            raise UserError(
                "this model reads left to right: a template's gap must be at its end"
            )
        B, T = known_BT.shape
        block = self.model_config.block_size
        own = np.broadcast_to(np.arange(block), (B, block))
        return own[:, :T], tuple(own for _ in in_order(1, self.model_config))
