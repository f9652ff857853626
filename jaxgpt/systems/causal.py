"""A plain causal language model: GPT-2 and nanoGPT, read left to right."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.data.dataset import Dataset
from jaxgpt.data.text import open_text
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import UserError
from jaxgpt.model import layers
from jaxgpt.sampling.autoregressive import decode_sliding_window
from jaxgpt.sampling.decoding import SampleRequest
from jaxgpt.sampling.state import Draws, SamplerOutput, SamplingParams
from jaxgpt.systems.base import Batch, System


class CausalLM(System):
    """Predicts token t + 1 from tokens 0 .. t."""

    extra_tokens = 1
    goes_past_block = True
    reads_text = True

    def open_data(self, tokenizer: Tokenizer | None = None) -> Dataset:
        """Opens the text of `config.data`."""
        return open_text(self.config, self.window, tokenizer)

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
        logits_BTV, _ = self.model(params)(tokens_BT)
        nll_BT = layers.cross_entropy(logits_BTV[:, :-1], tokens_BT[:, 1:])
        return logits_BTV, nll_BT

    def cache_length(self, T: int) -> int:
        """Returns whole blocks for T tokens, if the encoding reads past the block.

        The others do not extrapolate: a longer text moves through one block.
        """
        block = self.model_config.block_size
        return block * max(1, math.ceil(T / block)) if self.extrapolates else block

    @property
    def extrapolates(self) -> bool:
        """Whether texts longer than the block are read from their beginning."""
        return self.model_config.encoding.extrapolates

    def fill(self, params: dict, request: SampleRequest) -> SamplerOutput:
        """Fills what is missing; past the cache, from the last block of tokens."""
        B, T = request.tokens_BT.shape
        block = self.cache_length(T)
        if block >= T:
            return super().fill(params, request)
        within = request.replace(
            tokens_BT=request.tokens_BT[:, :block],
            prompt_mask_BT=request.prompt_mask_BT[:, :block],
            open_BT=request.open_BT[:, :block],
            length_B=np.full(B, block),
        )
        head = super().fill(params, within)
        missing = ((0, 0), (0, T - block))
        known_BT = request.prompt_mask_BT
        first_B = np.maximum(known_BT.sum(1), block)
        tokens_BT = np.concatenate([head.tokens_BT, request.tokens_BT[:, block:]], 1)
        tokens, log_p = decode_sliding_window(
            self.graphdef,
            params,
            jnp.asarray(tokens_BT),
            jnp.asarray(known_BT),
            jnp.int32(first_B.min()),
            request.sampling.decode_params(T, request.draws.fold_in(1)),
        )
        calls_B = head.num_forward_passes_B
        after_BN = np.arange(block, T) - first_B[:, None] + 1
        calls_BN = np.where(known_BT[:, block:], 0, calls_B[:, None] + after_BN)
        return SamplerOutput(
            tokens_BT=np.asarray(tokens),
            decoded_BT=np.pad(head.decoded_BT, missing, constant_values=True),
            log_p_BT=np.asarray(log_p) + np.pad(head.log_p_BT, missing),
            decode_step_BT=np.concatenate([head.decode_step_BT, calls_BN], 1),
            rank_BT=np.tile(np.arange(T, dtype=np.int32), (B, 1)),
            num_forward_passes_B=calls_B + T - first_B,
            tokens_processed_B=head.tokens_processed_B + (T - first_B) * block,
        )

    def mixes_lengths(self, T: int) -> bool:
        """See `System.mixes_lengths`: past the block all rows have one length."""
        return self.cache_length(T) >= T

    def decode_order(
        self,
        prompt_mask_BT: np.ndarray,
        length_B: np.ndarray,
        sampling: SamplingParams,
        draws: Draws,
    ) -> np.ndarray:
        """Reads left to right; what is given must come first."""
        del length_B, draws
        self.check_order(sampling.order)
        if (np.diff(prompt_mask_BT.astype(np.int8), axis=1) > 0).any():
            raise UserError(
                "this model reads left to right: a template's gap must be at its end"
            )
        return np.broadcast_to(np.arange(prompt_mask_BT.shape[1]), prompt_mask_BT.shape)
