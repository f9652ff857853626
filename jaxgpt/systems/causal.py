"""A plain causal language model: GPT-2 and nanoGPT, read left to right."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.core import generate, layers
from jaxgpt.data.text import TextData, open_text
from jaxgpt.errors import UserError
from jaxgpt.systems import PLAIN, Batch, Filled, Sampling, System, Watch, check_order


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

    def capacity(self, T: int) -> int:
        """Returns whole blocks for T tokens with ALiBi, which reads on past its block.

        Other encodings are lost there: the text moves through one block instead.
        """
        block = self.model_config.block_size
        return block * max(1, math.ceil(T / block)) if self.extrapolates else block

    @property
    def extrapolates(self) -> bool:
        """Whether texts longer than the block are read from their beginning."""
        return self.model_config.positions == "alibi"

    def sample(
        self,
        params: dict,
        tokens_BT: np.ndarray,
        known_BT: np.ndarray,
        key: jax.Array,
        how: Sampling = PLAIN,
        watch: Watch | None = None,
        every: int = 1,
    ) -> Filled:
        """Fills what is missing; past the cache, from the last block of tokens."""
        T = tokens_BT.shape[1]
        block = self.capacity(T)
        within = slice(0, min(T, block))
        head = super().sample(
            params, tokens_BT[:, within], known_BT[:, within], key, how, watch, every
        )
        if block >= T:
            return head
        missing = ((0, 0), (0, T - block))
        tokens, log_p = generate.slide(
            self.graphdef,
            params,
            jnp.asarray(np.pad(head.tokens_BT, missing)),
            jnp.int32(block),
            how.task(T, jax.random.fold_in(key, 1)),
        )
        calls_BN = head.calls_B[:, None] + np.arange(1, T - block + 1)
        return Filled(
            tokens_BT=np.asarray(tokens),
            settled_BT=np.pad(head.settled_BT, missing, constant_values=True),
            log_p_BT=np.asarray(log_p) + np.pad(head.log_p_BT, missing),
            call_BT=np.concatenate([head.call_BT, calls_BN], 1),
            calls_B=head.calls_B + T - block,
            evaluations_B=head.evaluations_B + (T - block) * block,
        )

    def reading(
        self, known_BT: np.ndarray, how: Sampling, key: jax.Array
    ) -> np.ndarray:
        """Reads left to right; what is given must come first."""
        check_order(how.order or "left-to-right", ("left-to-right",))
        if (np.diff(known_BT.astype(np.int8), axis=1) > 0).any():
            raise UserError(
                "this model reads left to right: a template's gap must be at its end"
            )
        return np.broadcast_to(np.arange(known_BT.shape[1]), known_BT.shape)
