"""How a token knows where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.config import UserError
from jaxgpt.core import init

if TYPE_CHECKING:
    from jaxgpt.core.transformer import ModelConfig

Positions = tuple[jax.typing.ArrayLike, ...]


class LearnedPositions(nnx.Module):
    """A learned table, looked up once for each kind of position and concatenated.

    GPT-2 looks up a token's own position in a table of width D. σ-GPT (section 2 of
    arXiv 2404.09562) looks up two in one table of width D / 2: the token's own
    position and that of the token to predict.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        lookups = 2 if config.positions == "double" else 1
        if config.n_embd % lookups:
            raise UserError(
                f"model.n_embd {config.n_embd} is odd: double positions need two halves"
            )
        shape = (config.block_size, config.n_embd // lookups)
        self.table = nnx.Param(init.normal(rngs.params(), shape, config.param_dtype))

    def __call__(self, positions: Positions) -> jax.Array:
        """Maps index arrays [B, T] (or [T]) to embeddings [B, T, D] (or [T, D])."""
        table = self.table[...]
        return jnp.concatenate([table[jnp.asarray(index)] for index in positions], -1)


def in_order(T: int, config: ModelConfig) -> Positions:
    """Returns the positions [T] of a text read left to right.

    The last token of a full block has nowhere to point: it points at itself.
    """
    own_T = jnp.arange(T)
    if config.positions == "double":
        return own_T, jnp.minimum(own_T + 1, config.block_size - 1)
    return (own_T,)
