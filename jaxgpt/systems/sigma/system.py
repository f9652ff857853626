"""σ-GPT (arXiv 2404.09562): a GPT that generates in any order.

Each token is read with two positions, its own and that of the token it must predict,
so the order of reading is free. Training draws an order for every sequence.
"""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.data.dataset import Dataset
from jaxgpt.data.text import open_text
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import UserError, require
from jaxgpt.model import layers
from jaxgpt.model.positions import Positions
from jaxgpt.sampling.decoding import SampleRequest
from jaxgpt.sampling.state import DecodeState, Draws, SamplerOutput, SamplingParams
from jaxgpt.systems.base import Batch, System
from jaxgpt.systems.batches import Row
from jaxgpt.systems.sigma import open_gaps, options, orders, windows
from jaxgpt.systems.sigma.config import INEXACT, SAMPLERS, double_positions
from jaxgpt.systems.sigma.options import LOW_ENTROPY_FIRST
from jaxgpt.systems.sigma.samplers import fastest

# On a CPU every token adds to the time of a forward pass: longer drafts would save
# passes and lose time.
CPU_MAX_DRAFT_LENGTH = 8


class SigmaGPT(System):
    """Predicts the token at position order[t + 1] from those at order[0 .. t]."""

    reads_text = goes_past_block = fills_past_block = True

    def architecture(self) -> dict[str, Any]:
        """Two positions for each token; what `config.sigma` adds to the original."""
        c = self.config.sigma
        return {
            "positions": double_positions(self.config.model.positions),
            "begin_token": c.begin_token,
            "adaptive_norm": c.adaptive_norm,
            "separate_tables": c.separate_tables,
        }

    @property
    def max_gap(self) -> int:
        """See `System.max_gap`."""
        return self.config.sigma.max_gap

    def check_given(
        self, tokens: np.ndarray, known: np.ndarray, sampling: SamplingParams
    ) -> None:
        """See `System.check_given`."""
        T, block = tokens.shape[-1], self.model_config.block_size
        if block < T and options.read_positions(sampling.order) is not None:
            raise UserError(
                f"--order lists positions, which a text of {T} tokens does not take: "
                f"it is longer than the block of {block}; name an order"
            )
        unknown = self.max_gap and (known & (tokens == self.end_of_gap)).any()
        if unknown and sampling.order != "left-to-right":
            raise UserError(
                "a gap of unknown length is filled left to right, as it is trained: "
                "add --order=left-to-right"
            )

    def open_data(self, tokenizer: Tokenizer | None = None) -> Dataset:
        """Opens the text of `config.data`."""
        return open_text(self.config, self.window, tokenizer)

    def train_batch(self, tokens_BT: jax.Array, key: jax.Array, step) -> Batch:
        """Draws each row's order as `config.sigma.order` says."""
        B, T = tokens_BT.shape
        c = self.config.sigma
        progress = step / self.config.steps
        order_BT = orders.training(
            key,
            B,
            T,
            c.order,
            c.order_start,
            progress,
            straight=c.left_to_right_share,
            infill=0 if c.max_gap else c.infill_share,
        )
        if not c.max_gap:
            return {"tokens": tokens_BT, "order": order_BT}
        return open_gaps.training_batch(
            jax.random.fold_in(key, 2),
            tokens_BT,
            order_BT,
            c.infill_share,
            c.max_gap,
            self.end_of_gap,
        )

    def eval_batches(self, tokens_BT: jax.Array, key: jax.Array) -> dict[str, Batch]:
        """Returns batches in the order trained for, and left to right."""
        B, T = tokens_BT.shape
        kind = self.config.sigma.order
        # Of a curriculum its end, so that the losses of different steps compare.
        main = orders.training(key, B, T, kind, 1.0, jnp.float32(1))
        straight = orders.left_to_right(B, T)
        return {
            "": {"tokens": tokens_BT, "order": main},
            "_left_to_right": {"tokens": tokens_BT, "order": straight},
        }

    def nll(
        self, params: dict, batch: Batch, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Returns what training minimizes the mean of: `token_nll`, weighted."""
        nll_BT = self.token_nll(params, batch, dropout_key)
        if "weight" not in batch:
            return nll_BT
        return nll_BT * batch["weight"][:, -nll_BT.shape[1] :]

    def token_nll(
        self, params: dict, batch: Batch, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Returns [B, T - 1] in nats, in prediction order.

        [B, T] with a beginning token, which the first token is predicted from.
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
            c, first = self.model_config, ((0, 0), (1, 0))
            read_BT = jnp.pad(read_BT, first, constant_values=c.vocab_size)
            order_BT = jnp.pad(order_BT, first, constant_values=c.block_size)
        return read_BT, (order_BT[:, :-1], order_BT[:, 1:])

    def score(
        self, params: dict, tokens_BT: jax.Array, order_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns logits [B, T - 1, V], row t for position order[t + 1], and nll.

        Which is [B, T - 1]; with a beginning token [B, T].
        """
        read, positions = self.read(tokens_BT, order_BT)
        logits_BTV, _ = self.model(params)(read[:, :-1], positions)
        nll_BT = layers.cross_entropy(logits_BTV, read[:, 1:])
        first = int(self.model_config.begin_token)
        return logits_BTV[:, first:], nll_BT

    def fill(self, params: dict, request: SampleRequest) -> SamplerOutput:
        """Fills what is missing; in a text longer than the block, see `windows`.

        Raises:
          UserError: as `check_given`.
        """
        tokens_BT, block = request.tokens_BT, self.model_config.block_size
        self.check_given(tokens_BT, request.prompt_mask_BT, request.sampling)
        fill = functools.partial(super().fill, params)
        fits = tokens_BT.shape[1] <= block
        return fill(request) if fits else windows.fill(fill, block, request)

    def sampler(self, sampling: SamplingParams) -> Callable[..., DecodeState]:
        """Returns `advance` of `SAMPLERS[sampling.sampler]`; exact bursts by default.

        Raises:
          UserError: for an unknown sampler, or options that contradict it.
        """
        options.check_sampling(sampling)
        name = sampling.sampler or "exact-burst"
        rule = f"a sampler by name: {options.AUTO} is settled for rows, by `settle`"
        require(name != options.AUTO, "--sampler", rule, name)
        make_sampler = pkgutil.resolve_name(SAMPLERS[name])
        return make_sampler(sampling, self.max_draft_length)

    def inexact(self, sampling: SamplingParams) -> str:
        """See `System.inexact`."""
        reason = INEXACT.get(sampling.sampler)
        return f"--sampler={sampling.sampler} is not exact: {reason}" if reason else ""

    def settle(
        self, params: dict, rows: Sequence[Row], sampling: SamplingParams
    ) -> SamplingParams:
        """Names the faster of the exact samplers in place of `AUTO`."""
        if sampling.sampler != options.AUTO:
            return sampling
        options.check_sampling(sampling)
        return fastest.settle(self, params, rows, sampling)

    def lookahead(self, sampling: SamplingParams) -> int:
        """Returns 1 for one by one, the longest draft for exact bursts, or a window."""
        if sampling.sampler in ("", "exact-burst"):
            return self.max_draft_length
        fixed = sampling.sampler == "ar" and sampling.order != LOW_ENTROPY_FIRST
        return 1 if fixed else self.window

    @property
    def max_draft_length(self) -> int:
        """The most tokens that an exact burst drafts in a round."""
        on_cpu = self.model_config.kernels == "cpu"
        return CPU_MAX_DRAFT_LENGTH if on_cpu else self.window

    @classmethod
    def check_order(cls, order: str) -> None:
        """See `System.check_order`."""
        known = ("", *orders.GENERATION, LOW_ENTROPY_FIRST)
        fits = order in known or options.read_positions(order) is not None
        require(fits, "--order", f"one of {', '.join(known[1:])}", order)

    def decode_order(
        self,
        prompt_mask_BT: np.ndarray,
        length_B: np.ndarray,
        sampling: SamplingParams,
        draws: Draws,
    ) -> np.ndarray:
        """Reads the prompt first, left to right, then the rest in order: int32 [B, T].

        Raises:
          UserError: for an unknown order, or one that does not fit the prompt.
        """
        self.check_order(sampling.order)
        positions = options.read_positions(sampling.order)
        kind = sampling.order or "random"
        if kind == LOW_ENTROPY_FIRST or positions is not None:
            kind = "left-to-right"  # Where it starts; its sampler reorders the rest.
        length = sampling.block_length or orders.BLOCK_LENGTH
        rows, T = [], prompt_mask_BT.shape[1]
        for mask_T, noise_T in zip(
            prompt_mask_BT, draws.uniforms(length_B), strict=True
        ):
            prompt_mask_T = mask_T[: len(noise_T)]
            missing = orders.GENERATION[kind](prompt_mask_T, noise_T, length)
            if positions is not None:
                options.match_positions(positions, missing.tolist(), sampling.order)
                missing = np.array(positions)
            past = np.arange(len(noise_T), T)
            rows.append(np.concatenate([np.flatnonzero(prompt_mask_T), missing, past]))
        return np.array(rows, np.int32)
