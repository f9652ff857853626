"""How a token knows where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.config import UserError
from jaxgpt.core import init, layers

if TYPE_CHECKING:
    from jaxgpt.core.transformer import ModelConfig

Positions = tuple[jax.typing.ArrayLike, ...]
Target = tuple[jax.Array, jax.Array]


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
        rows = config.block_size + config.begin_token
        shape = (rows, config.n_embd // lookups)
        self.table = nnx.Param(init.normal(rngs.params(), shape, config.param_dtype))
        self.config = config

    def __call__(self, positions: Positions) -> jax.Array:
        """Maps index arrays [B, T] (or [T]) to embeddings [B, T, D] (or [T, D])."""
        table = self.table[...]
        return jnp.concatenate([table[jnp.asarray(index)] for index in positions], -1)

    def target(self, positions: Positions) -> Target | None:
        """Returns what `Modulation` reads, where the model has it."""
        if not self.config.adaptive_norm:
            return None
        return self.table[...], jnp.asarray(positions[-1])


class Modulation(nnx.Module):
    """Scales and shifts of a block's two norms, a linear map of the target position.

    The adaptive norm of AO-GPT (arXiv 2506.19935), without its gates. Zero at first,
    so that a fresh block is the plain one. The map is applied to the table of
    positions, of which there are far fewer than tokens.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width = config.n_embd // 2
        self.linear = layers.Linear(width, 4 * config.n_embd, config, std=0, rngs=rngs)

    def __call__(self, target: Target) -> list[jax.Array]:
        """Returns four arrays [B, T, D] for the target positions [B, T]."""
        table_PC, index_BT = target
        return jnp.split(pick_rows(self.linear(table_PC), index_BT), 4, -1)


@jax.custom_vjp
def pick_rows(table_PC: jax.Array, index_BT: jax.Array) -> jax.Array:
    """Returns table[index], [B, T, C]; its gradient is a product, not a scatter.

    XLA:CPU scatters one number at a time; the product costs P times the additions
    and is still faster for the short tables this is used for.
    """
    return table_PC[index_BT]


def _pick_rows_fwd(table_PC, index_BT):
    return table_PC[index_BT], (table_PC[:, :0], index_BT)


def _pick_rows_bwd(saved, g_BTC):
    like, index_BT = saved
    one_hot = jax.nn.one_hot(index_BT.reshape(-1), like.shape[0], axis=0)
    return (one_hot.astype(g_BTC.dtype) @ g_BTC.reshape(-1, g_BTC.shape[-1]), None)


pick_rows.defvjp(_pick_rows_fwd, _pick_rows_bwd)


def in_order(T: int, config: ModelConfig) -> Positions:
    """Returns the positions [T] of a text read left to right.

    The last token of a full block has nowhere to point: it points at itself.
    """
    own_T = jnp.arange(T)
    if config.positions == "double":
        return own_T, jnp.minimum(own_T + 1, config.block_size - 1)
    return (own_T,)
