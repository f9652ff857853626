"""What the loop is handed: the System seam, and the table of systems."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxgpt.config import UserError
from jaxgpt.core import generate
from jaxgpt.core.positions import Positions
from jaxgpt.core.transformer import LanguageModel, ModelConfig

Batch = dict[str, jax.Array]


class System:
    """One way to train, score and generate with the core transformer.

    A system is made from a resolved config alone, so that a finished run can be
    sampled where its training data no longer is.
    """

    extra_tokens = 0
    goes_past_block = False

    def __init__(self, config: ConfigDict):
        kernels = "cpu" if jax.default_backend() == "cpu" else "xla"
        self.config = config
        self.model_config = ModelConfig(
            **config.model.to_dict(), **self.architecture(), kernels=kernels
        )
        abstract = nnx.eval_shape(self._build, jax.random.key(0))
        self.graphdef = nnx.split(abstract)[0]

    def architecture(self) -> dict[str, Any]:
        """Returns the fields of `ModelConfig` that this system sets itself."""
        return {}

    @property
    def window(self) -> int:
        """Tokens of one training sequence, targets included."""
        return self.model_config.block_size + self.extra_tokens

    def _build(self, key: jax.Array) -> LanguageModel:
        return LanguageModel(self.model_config, rngs=nnx.Rngs(params=key))

    def init(self, key: jax.Array) -> dict:
        """Returns fresh parameters, a plain nested dict."""
        return nnx.to_pure_dict(nnx.split(self._build(key))[1])

    def model(self, params: dict) -> LanguageModel:
        """Returns the module over these parameters."""
        return nnx.merge(self.graphdef, params)

    def open_data(self) -> Any:
        """Returns the data with `vocab_size`, `tokenizer`, `batch_at` and `fixed`."""
        raise NotImplementedError

    def train_batch(self, tokens_BT: jax.Array, key: jax.Array, step) -> Batch:
        """Adds to a batch of tokens what training draws for it (order, noise)."""
        del key, step
        return {"tokens": tokens_BT}

    def eval_batches(self, tokens_BT: jax.Array, key: jax.Array) -> dict[str, Batch]:
        """Returns {suffix: batch}: the losses that are reported, "" the main one."""
        del key
        return {"": {"tokens": tokens_BT}}

    def nll(
        self, params: dict, batch: Batch, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Returns the negative log-likelihood of each predicted token, in nats."""
        raise NotImplementedError

    def score(
        self, params: dict, tokens_BT: jax.Array, order_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (logits, nll [B, T - 1] in prediction order) of given tokens."""
        raise NotImplementedError

    def reading(
        self, known_BT: np.ndarray, order: str, key: jax.Array
    ) -> tuple[np.ndarray, Positions]:
        """Returns the order [B, S] in which slots are read, and their positions.

        Args:
          known_BT: true where the text is given.
          order: how the missing positions follow, as `sample --order`.
          key: for random orders.

        Raises:
          UserError: where this system cannot generate in that order.
        """
        raise NotImplementedError

    def sample(
        self,
        params: dict,
        tokens_BT: np.ndarray,
        known_BT: np.ndarray,
        key: jax.Array,
        *,
        order: str = "",
        temperature: float = 1.0,
        top_k: int = 0,
        cached: bool = True,
    ) -> np.ndarray:
        """Fills the unknown positions, token by token; returns int32 [B, T]."""
        B, T = tokens_BT.shape
        block = self.model_config.block_size
        order_key, draw_key = jax.random.split(key)
        read_BT, where = self.reading(known_BT, order, order_key)
        tokens_BS = np.zeros((B, block), np.int32)
        tokens_BS[:, :T] = np.take_along_axis(tokens_BT, read_BT, 1)
        filled_BS = generate.complete(
            self.graphdef,
            params,
            jnp.asarray(tokens_BS),
            jnp.asarray(known_BT.sum(1)),
            where,
            jnp.int32(T),
            draw_key,
            jnp.float32(temperature),
            top_k=top_k,
            cached=cached,
        )
        result_BT = np.zeros_like(tokens_BT)
        np.put_along_axis(result_BT, read_BT, np.asarray(filled_BS)[:, :T], 1)
        return result_BT


SYSTEMS = {
    "sigma": "jaxgpt.systems.sigma:SigmaGPT",
    "causal": "jaxgpt.systems.causal:CausalLM",
}


def make(config: ConfigDict) -> System:
    """Returns the system that `config.system` names."""
    module, name = SYSTEMS[config.system].split(":")
    return getattr(importlib.import_module(module), name)(config)


def check_order(order: str, known: tuple[str, ...]) -> None:
    """Raises UserError for an order that is not among the known ones."""
    if order not in known:
        raise UserError(f"--order is one of {', '.join(known)}: not '{order}'")
