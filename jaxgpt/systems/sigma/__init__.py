"""σ-GPT (arXiv 2404.09562): a GPT that generates in any order.

Each token is read with two positions, its own and that of the token it must predict,
so the order of reading is free. Training draws an order for every sequence.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.core import layers
from jaxgpt.core.positions import Positions
from jaxgpt.data.text import TextData, open_text
from jaxgpt.systems import Batch, System, check_order
from jaxgpt.systems.sigma import orders

SAMPLING_ORDERS = ("random", "left-to-right", "fractal")


class SigmaGPT(System):
    """Predicts the token at position order[t + 1] from those at order[0 .. t]."""

    def architecture(self) -> dict[str, Any]:
        """Two positions a token; what `config.sigma` adds to the original."""
        c = self.config.sigma
        return {
            "positions": "double",
            "begin_token": c.begin_token,
            "adaptive_norm": c.adaptive_norm,
        }

    def open_data(self) -> TextData:
        """Opens the text of `config.data`."""
        return open_text(self.config, self.window)

    def train_batch(self, tokens_BT: jax.Array, key: jax.Array, step) -> Batch:
        """Draws each row's order as `config.sigma.order` says."""
        B, T = tokens_BT.shape
        c = self.config.sigma
        progress = step / self.config.steps
        order_BT = orders.training(
            key, B, T, c.order, c.order_start, progress, c.left_to_right_share
        )
        return {"tokens": tokens_BT, "order": order_BT}

    def eval_batches(self, tokens_BT: jax.Array, key: jax.Array) -> dict[str, Batch]:
        """Returns the loss in the order trained for, and left to right.

        Under a curriculum that is the random order it leads to, so that losses of
        different steps compare.
        """
        B, T = tokens_BT.shape
        kind = self.config.sigma.order
        main = orders.training(key, B, T, kind, 1.0, jnp.float32(1))
        straight = orders.left_to_right(B, T)
        return {
            "": {"tokens": tokens_BT, "order": main},
            "_left_to_right": {"tokens": tokens_BT, "order": straight},
        }

    def nll(
        self, params: dict, batch: Batch, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Returns [B, T - 1], in prediction order; the first token is given.

        With a beginning token the first is predicted too: [B, T].
        """
        read, where = self.read(batch["tokens"], batch["order"])
        return self.model(params).nll(read[:, :-1], read[:, 1:], where, dropout_key)

    def read(
        self, tokens_BT: jax.Array, order_BT: jax.Array
    ) -> tuple[jax.Array, Positions]:
        """Returns the tokens in reading order, and the positions of all but the last.

        [B, T] and [B, T - 1]; one more of each with a beginning token.
        """
        read_BT = jnp.take_along_axis(tokens_BT, order_BT, 1)
        if self.model_config.begin_token:
            begin = lambda array, value: jnp.pad(
                array, ((0, 0), (1, 0)), constant_values=value
            )
            read_BT = begin(read_BT, self.model_config.vocab_size)
            order_BT = begin(order_BT, self.model_config.block_size)
        return read_BT, (order_BT[:, :-1], order_BT[:, 1:])

    def score(
        self, params: dict, tokens_BT: jax.Array, order_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns logits [B, T - 1, V], row t for position order[t + 1], and nll."""
        read, where = self.read(tokens_BT, order_BT)
        logits_BTV = self.model(params)(read[:, :-1], where)
        nll_BT = layers.cross_entropy(logits_BTV, read[:, 1:])
        first = int(self.model_config.begin_token)
        return logits_BTV[:, first:], nll_BT[:, first:]

    def reading(
        self, known_BT: np.ndarray, order: str, key: jax.Array
    ) -> tuple[np.ndarray, Positions]:
        """Reads what is given first, left to right, then the rest in order."""
        order = order or "random"
        check_order(order, SAMPLING_ORDERS)
        B, T = known_BT.shape
        read_BT = np.zeros((B, T), np.int32)
        noise_BT = np.asarray(jax.random.uniform(key, (B, T)))
        for row, known in enumerate(known_BT):
            missing = np.flatnonzero(~known)
            if order == "random":
                missing = missing[np.argsort(noise_BT[row, missing])]
            elif order == "fractal":
                missing = missing[orders.fractal(len(missing))]
            read_BT[row] = np.concatenate([np.flatnonzero(known), missing])
        own_BS = np.zeros((B, self.model_config.block_size), np.int32)
        own_BS[:, :T] = read_BT
        return read_BT, (own_BS, np.roll(own_BS, -1, 1))
