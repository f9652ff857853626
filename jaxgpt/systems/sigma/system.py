"""σ-GPT (arXiv 2404.09562): a GPT that generates in any order.

Each token is read with two positions, its own and that of the token it must predict,
so the order of reading is free. Training draws an order for every sequence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.data.dataset import Dataset
from jaxgpt.data.text import open_text
from jaxgpt.errors import UserError
from jaxgpt.model import layers
from jaxgpt.model.positions import Positions
from jaxgpt.sampling.state import DecodeState, SamplingParams
from jaxgpt.systems.base import Batch, System, check_order
from jaxgpt.systems.sigma import orders
from jaxgpt.systems.sigma.samplers import best_of, speculative, unmask

SAMPLING_ORDERS = (*orders.GENERATION, "low-entropy-first")
DOUBLE = {"learned": "double", "sinusoidal": "double-sinusoidal"}
BURST_ORDERS = 5  # The original's default.
BLOCK_LENGTH = 16
# On a CPU the cost of a call grows with its tokens from the start: more to a round
# would save calls and lose time.
CPU_MAX_DRAFT_LENGTH = 8


class SigmaGPT(System):
    """Predicts the token at position order[t + 1] from those at order[0 .. t]."""

    def architecture(self) -> dict[str, Any]:
        """Two positions a token; what `config.sigma` adds to the original."""
        c = self.config.sigma
        return {
            "positions": DOUBLE[self.config.model.positions],
            "begin_token": c.begin_token,
            "adaptive_norm": c.adaptive_norm,
        }

    def open_data(self) -> Dataset:
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
        read, positions = self.read(batch["tokens"], batch["order"])
        return self.model(params).nll(read[:, :-1], read[:, 1:], positions, dropout_key)

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
        read, positions = self.read(tokens_BT, order_BT)
        logits_BTV, _ = self.model(params)(read[:, :-1], positions)
        nll_BT = layers.cross_entropy(logits_BTV, read[:, 1:])
        first = int(self.model_config.begin_token)
        return logits_BTV[:, first:], nll_BT[:, first:]

    def sampler(self, sampling: SamplingParams) -> Callable[..., DecodeState]:
        """Exact bursts by default; see `jaxgpt.systems.sigma.samplers`."""
        name = sampling.sampler or "exact-burst"
        if sampling.num_orders and name != "burst":
            raise UserError(f"--num_orders is for --sampler=burst: not {name}")
        if sampling.order and name == "burst":
            raise UserError(
                "--order does not go with --sampler=burst, which tries many"
            )
        if name == "burst":
            N = sampling.num_orders or BURST_ORDERS
            return functools.partial(best_of.advance, num_orders=N)
        if sampling.order == "low-entropy-first":
            if name != "ar":
                raise UserError(
                    "--order=low-entropy-first chooses anew after every token: it goes "
                    "with --sampler=ar"
                )
            return functools.partial(
                unmask.advance, rank="entropy", most=1, bound=jnp.float32(jnp.inf)
            )
        if name == "exact-burst":
            return functools.partial(
                speculative.advance, max_draft_length=self.max_draft_length
            )
        return super().sampler(sampling)

    @property
    def max_draft_length(self) -> int:
        """The most tokens that an exact burst tries in a round."""
        return (
            CPU_MAX_DRAFT_LENGTH if self.model_config.kernels == "cpu" else self.window
        )

    def decode_order(
        self, prompt_mask_BT: np.ndarray, sampling: SamplingParams, key: jax.Array
    ) -> np.ndarray:
        """Reads what is given first, left to right, then the rest in order."""
        noise_BT = np.asarray(jax.random.uniform(key, prompt_mask_BT.shape))
        kind = sampling.order or "random"
        given = None
        if kind.replace(",", "").isdigit():
            given, kind = np.array(kind.split(","), np.int64), "left-to-right"
        if kind == "low-entropy-first":
            kind = "left-to-right"
        check_order(kind, SAMPLING_ORDERS)
        if sampling.block_length and kind != "block":
            raise UserError("--block_length is for --order=block")
        rows = []
        for prompt_mask_T, noise_T in zip(prompt_mask_BT, noise_BT, strict=True):
            missing = orders.generation(
                prompt_mask_T,
                kind,
                noise_T,
                block_length=sampling.block_length or BLOCK_LENGTH,
            )
            if given is not None:
                if not np.array_equal(np.sort(given), missing):
                    raise UserError(
                        f"--order={sampling.order[:60]} must name each of the "
                        f"{len(missing)} missing positions once, counted from 0"
                    )
                missing = given
            rows.append(np.concatenate([np.flatnonzero(prompt_mask_T), missing]))
        return np.array(rows, np.int32)
