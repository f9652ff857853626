"""Masked diffusion: texts are written by unmasking their tokens.

A text with some tokens masked is read in both directions, and each masked token is
predicted from those that are left: MDLM (Sahoo et al. 2024, arXiv 2406.07524). With
blocks (BD3-LM, Arriola et al. 2025, arXiv 2503.09573) this holds inside a block, which
also sees all blocks before it. As for σ-GPT, p depends on what is masked alone: the
model is not told the time.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxgpt.data.dataset import Dataset
from jaxgpt.data.text import open_text
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import UserError, log
from jaxgpt.model import gpu, layers
from jaxgpt.model.positions import in_order
from jaxgpt.parallel import sharding
from jaxgpt.parallel.sharding import BATCH, TENSOR
from jaxgpt.sampling.decoding import SampleRequest
from jaxgpt.sampling.state import SamplerOutput, SamplingParams
from jaxgpt.systems.base import Batch, Evaluation, System
from jaxgpt.systems.diffusion import config, decoding, masks


class MaskedDiffusion(System):
    """Predicts masked tokens from all others, or from those of their block and before.

    The mask is a token `vocab_size`, which is read and never predicted.
    """

    reads_text = True
    predicts_first = True

    def architecture(self) -> dict[str, Any]:
        """Attention in both directions, and a token for the mask."""
        return {"mask_token": True, "bidirectional": True}

    @classmethod
    def check_overrides(cls, trained: str, config: ConfigDict) -> None:
        """See `System.check_overrides`: how its loss is estimated may change."""
        if trained != "masked-diffusion" or config.system != trained:
            super().check_overrides(trained, config)

    @property
    def block_length(self) -> int:
        """Tokens of a block."""
        return self.config.diffusion.block_length or self.model_config.block_size

    @property
    def in_blocks(self) -> bool:
        """Whether a text has more than one block."""
        return self.block_length < self.model_config.block_size

    def flops_per_token(self, parameters: int) -> float:
        """See `System.flops_per_token`; blocks are read twice, and predicted once."""
        total, c = super().flops_per_token(parameters), self.model_config
        return 2 * total - 6 * c.vocab_size * c.n_embd if self.in_blocks else total

    def open_data(self, tokenizer: Tokenizer | None = None) -> Dataset:
        """Opens the text of `config.data`."""
        return open_text(self.config, self.window, tokenizer)

    def train_batch(self, tokens_BT: jax.Array, key: jax.Array, step) -> Batch:
        """Draws what is masked."""
        del step
        B, T = tokens_BT.shape
        masked_BT, weight_BT = masks.draw(key, B, T, self.block_length)
        return {"tokens": tokens_BT, "masked": masked_BT, "weight": weight_BT}

    def eval_batches(self, tokens_BT: jax.Array, key: jax.Array) -> dict[str, Batch]:
        """Returns a batch for each draw of masks; `eval_nll` takes their mean."""
        draws = range(self.config.diffusion.eval_masks)
        of = lambda draw: self.train_batch(tokens_BT, jax.random.fold_in(key, draw), 0)
        return {str(draw): of(draw) for draw in draws}

    def eval_nll(
        self, params: dict, windows: Any, rows: int, seed: int, layout: Any = None
    ) -> dict[str, np.ndarray]:
        """See `System.eval_nll`: the mean over draws of masks."""
        found = super().eval_nll(params, windows, rows, seed, layout)
        return {"": np.mean(list(found.values()), 0)}

    def nll(
        self, params: dict, batch: Batch, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Returns [B, T] in nats, of which the mean is the bound per token.

        Those of masked tokens count for all of their block, the others 0.
        """
        logits_BTV = self.logits(params, batch["tokens"], batch["masked"], dropout_key)
        logits_BTV = sharding.constrain(logits_BTV, BATCH, None, TENSOR)
        nll_BT = layers.cross_entropy(logits_BTV, batch["tokens"], self.model_config)
        return batch["weight"] * nll_BT

    def logits(
        self,
        params: dict,
        tokens_BT: jax.Array,
        masked_BT: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns [B, T, V], for each token given what of its block is not masked.

        And given all blocks before it, of which nothing is.
        """
        model, T = self.model(params), tokens_BT.shape[1]
        noisy_BT = jnp.where(masked_BT, self.model_config.vocab_size, tokens_BT)
        if not self.in_blocks:
            return model(noisy_BT, dropout_key=dropout_key)[0]
        (own_T,) = in_order(T, self.model_config)
        x_BTD, _ = model.hidden_states(
            jnp.concatenate([noisy_BT, tokens_BT], 1),
            (jnp.tile(own_T, 2),),
            dropout_key=dropout_key,
            mask_TT=jnp.asarray(masks.two_copies(T, self.block_length)),
        )
        return model.head(x_BTD[:, :T])

    def check_scores(self) -> None:
        """Raises UserError: there is a bound for a text, and nothing for its tokens."""
        raise UserError(
            "a masked diffusion model has a bound of the likelihood, which evaluate "
            "--split reports, and no likelihood of each token"
        )

    def extra_metrics(self, params: dict, evaluation: Evaluation) -> dict[str, Any]:
        """Returns the standard error of the loss over windows, and over their masks."""
        nll_N = evaluation.nll_NT.mean(1)
        if evaluation.thorough and self.block_length > 1:
            draws = self.config.diffusion.eval_masks
            log(
                "note: the loss is an upper bound of the negative log-likelihood, "
                f"estimated with {draws} masks a text (--config.diffusion.eval_masks)"
            )
        if len(nll_N) < 2:
            return {}
        return {"loss_error": float(nll_N.std(ddof=1) / np.sqrt(len(nll_N)))}

    @classmethod
    def check_order(cls, order: str) -> None:
        """See `System.check_order`."""
        config.check_order(order)

    def lookahead(self, sampling: SamplingParams) -> int:
        """Returns the length of a block: all of it is predicted in every pass."""
        del sampling
        return self.block_length

    def inexact(self, sampling: SamplingParams) -> str:
        """See `System.inexact`."""
        if sampling.sampler not in ("", "ancestral"):
            return (
                f"--sampler={sampling.sampler} is not exact: it unmasks where the "
                "model is surest, and tokens of one pass do not see each other"
            )
        if sampling.num_steps:
            return (
                f"--num_steps={sampling.num_steps} is not exact: tokens of one step do "
                "not see each other"
            )
        return ""

    def fill(self, params: dict, request: SampleRequest) -> SamplerOutput:
        """See `System.fill`; what a text has less than a block remains masked.

        Raises:
          UserError: if options contradict each other, or the model writes blocks and
            something is given after the first one with a gap.
        """
        tokens_BT, sampling, end_B = (
            request.tokens_BT,
            request.sampling,
            request.length_B,
        )
        config.check_sampling(sampling)
        B, T = tokens_BT.shape
        c = self.model_config
        params = gpu.for_sampling(params, c)
        beyond_BT = np.arange(T) >= end_B[:, None]
        known_BT = request.prompt_mask_BT & ~beyond_BT
        self._check_blocks(known_BT, beyond_BT)
        tokens_BS = np.full((B, c.block_size), c.vocab_size, np.int32)
        tokens_BS[:, :T] = np.where(known_BT, tokens_BT, c.vocab_size)
        decode_params = sampling.decode_params(end_B, request.draws)
        state = decoding.start(
            self.graphdef, params, jnp.asarray(tokens_BS), decode_params,
            length=self.block_length, num_steps=sampling.num_steps,
        )  # fmt: skip
        rule = decoding.rule(sampling)
        while True:
            state = decoding.advance(
                self.graphdef, params, state, decode_params, request.passes,
                rule.bound, length=self.block_length, rank=rule.rank, most=rule.most,
            )  # fmt: skip
            filled = decoding.output(state, c.vocab_size, tokens_BT, beyond_BT)
            full = (filled.decoded_BT | beyond_BT).all()
            if not request.callback or not request.callback(filled) or full:
                return filled

    def _check_blocks(self, known_BT: np.ndarray, beyond_BT: np.ndarray) -> None:
        """Raises UserError if something is given after the first block with a gap."""
        block_T = np.arange(known_BT.shape[1]) // self.block_length
        missing_BT = ~known_BT & ~beyond_BT
        first_B = np.where(missing_BT, block_T, len(block_T)).min(1)
        if (known_BT & (block_T > first_B[:, None])).any():
            raise UserError(
                f"this model writes blocks of {self.block_length} tokens left to "
                "right: nothing can be given after the first block with a gap"
            )
