"""Position encodings: tables, sinusoids, rotations and biases of scores."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgpt.errors import UserError
from jaxgpt.model import layers
from jaxgpt.model.config import ModelConfig
from jaxgpt.parallel import sharding

SINUSOIDS = 16  # Of "learned-sinusoidal", as in teenyGPT.
THETA = 1e4
# The original σ-GPT takes the frequencies of twice as many channels as a half has, for
# theta 1e5, and uses the first half of them.
DOUBLE_THETA = math.sqrt(1e5)
Positions = tuple[jax.typing.ArrayLike, ...]
Target = tuple[jax.Array, jax.Array]


class LearnedPositions(nnx.Module):
    """A learned table, looked up once for each kind of position and concatenated.

    GPT-2 looks up a token's own position in a table of width D. σ-GPT (section 2 of
    arXiv 2404.09562) looks up two in one table of width D / 2: the token's own
    position and that of the token to predict. With `separate_tables` each has its own
    table of width D and the two are added: where the target's is zero, this is GPT-2.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        separate = config.separate_tables
        lookups = 2 if config.any_order and not separate else 1
        if config.n_embd % lookups:
            raise UserError(
                f"model.n_embd {config.n_embd} is odd: double positions need two halves"
            )
        rows = config.block_size + config.begin_token
        shape = (rows, config.n_embd // lookups)
        draw = lambda: nnx.Param(
            layers.init_normal(rngs.params(), shape, config.param_dtype)
        )
        self.table = draw()
        self.target_table = draw() if separate else None
        self.config = config

    def __call__(self, positions: Positions) -> jax.Array:
        """Maps index arrays [B, T] (or [T]) to embeddings [B, T, D] (or [T, D])."""
        table = sharding.constrain(self.table[...], None, None)
        if self.target_table is not None:
            targets, index = self.target(positions)
            return table[jnp.asarray(positions[0])] + targets[index]
        return jnp.concatenate([table[jnp.asarray(index)] for index in positions], -1)

    def target(self, positions: Positions) -> Target:
        """Returns what `Modulation` reads."""
        own = self.target_table
        table = self.table if own is None else own
        return sharding.constrain(table[...], None, None), jnp.asarray(positions[-1])


class SinusoidalPositions(nnx.Module):
    """Sines and cosines of the position (arXiv 1706.03762, section 3.5).

    "learned-sinusoidal" makes few of them and maps them by a learned linear layer;
    "double-sinusoidal" concatenates half as many of each of two positions, where the
    beginning token stands at -1.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.linear = (
            layers.Linear(SINUSOIDS, config.n_embd, config, bias=True, rngs=rngs)
            if config.positions == "learned-sinusoidal"
            else None
        )

    def __call__(self, positions: Positions) -> jax.Array:
        """Maps an index array [B, T] (or [T]) to embeddings [B, T, D] (or [T, D])."""
        c = self.config
        if self.linear:
            return self.linear(self.encode(positions[0], SINUSOIDS, THETA))
        if c.positions == "sinusoidal":
            return c.sinusoid_scale * self.encode(positions[0], c.n_embd, THETA)
        halves = [self.half(index) for index in positions]
        return jnp.concatenate(halves, -1)

    def encode(
        self, index: jax.typing.ArrayLike, width: int, theta: float
    ) -> jax.Array:
        """Maps an index array to alternating sines and cosines, [..., width]."""
        angles = jnp.asarray(index)[..., None] * frequencies(width, theta)
        angles = angles.astype(self.config.param_dtype)
        pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1)
        return pairs.reshape(*angles.shape[:-1], width)

    def half(self, index: jax.typing.ArrayLike) -> jax.Array:
        """Maps an index array to one half of double positions, [..., D / 2]."""
        c, index = self.config, jnp.asarray(index)
        index = jnp.where(index == c.block_size, -1, index)
        x = self.encode(index, c.n_embd // 2, DOUBLE_THETA)
        return c.sinusoid_scale * x

    def target(self, positions: Positions) -> Target:
        """Returns what `Modulation` reads."""
        table = self.half(jnp.arange(self.config.block_size))
        return table, jnp.asarray(positions[-1])


def frequencies(width: int, theta: float) -> np.ndarray:
    """Returns theta ^ (-2 k / width) for each pair k of channels, float64."""
    return theta ** (-np.arange(0, width, 2) / width)


def rope_angles(length: int, width: int, config: ModelConfig) -> np.ndarray:
    """Returns the angle of each position and pair of channels, [length, width / 2].

    In float64: float32 is off by up to 8e-4 radians at position 2,048. With
    `rope_angles` of float32 they are nanollama's to the bit, rounded in every step as
    there.
    """
    theta, dtype = config.rope_theta, np.dtype(config.rope_angles)
    if dtype == np.float64:
        fast = config.rope_frequency * frequencies(width, theta)
        return np.arange(length)[:, None] * fast
    exponents = np.arange(0, width, 2, dtype=dtype) / dtype.type(width)
    slow = dtype.type(1) / (theta ** exponents.astype(np.float64)).astype(dtype)
    turned = np.arange(length, dtype=dtype) * dtype.type(config.rope_frequency)
    return turned[:, None] * slow


def rotate(
    qkv_BTC: jax.Array,
    positions: Positions | None,
    start: jax.typing.ArrayLike,
    length: int,
    config: ModelConfig,
) -> jax.Array:
    """Turns queries and keys by their position: RoPE (arXiv 2104.09864).

    Args:
      qkv_BTC: fused projections [B, T, 3 H K] at positions start .. start + T; also of
        shape [B, T, 3, H K].
      positions: of each token, [B, T] or [T], if the model is bidirectional, as it may
        read a text twice in one pass; otherwise unused.
      start: a scalar or one for each row [B].
      length: above any of these positions.
      config: rope_theta, rope_frequency, rope_angles, rope_pairs.
    """
    if config.bidirectional:
        assert positions is not None
        index = jnp.atleast_2d(positions[0])
    else:
        index = jnp.reshape(jnp.asarray(start), (-1, 1)) + jnp.arange(qkv_BTC.shape[1])
    return turn(qkv_BTC, index, index, length, config)


def rotate_double(
    qkv_BTC: jax.Array,
    positions: Positions,
    start: jax.typing.ArrayLike,
    length: int,
    config: ModelConfig,
) -> jax.Array:
    """Turns keys by their own position and queries by the one they must predict.

    A score then depends on how far a key is from the target, whatever the order, and
    σ-GPT need not learn distances from pairs of absolute positions.

    Args:
      qkv_BTC, config: as for `rotate`.
      positions: of each token and of its target, [B, T] or [T] each.
      start, length: unused.
    """
    del start, length
    own, target = map(jnp.atleast_2d, positions)
    # The begin token, at position block_size in a table, comes before the text.
    after_begin = lambda index: jnp.where(index == config.block_size, 0, index + 1)
    rows = config.block_size + 1
    return turn(qkv_BTC, after_begin(target), after_begin(own), rows, config)


def turn(
    qkv_BTC: jax.Array,
    query_BT: jax.Array,
    key_BT: jax.Array,
    length: int,
    config: ModelConfig,
) -> jax.Array:
    """Returns fused projections with queries and keys turned by angles of positions.

    Args:
      qkv_BTC: [B, T, 3 H K] or [B, T, 3, H K].
      query_BT, key_BT: positions below length, [B, T] or [1, T].
      length: rows of the table of angles.
      config: as for `rotate`.
    """
    B, T = qkv_BTC.shape[:2]
    H = config.n_head
    K = qkv_BTC.size // (B * T * 3 * H)
    # NumPy's sines, in float64, become constants that are looked up. Sines computed
    # on the device would be so in every layer, of angles rounded to float32.
    angles = rope_angles(length, K, config)
    index_BT2 = jnp.stack([query_BT, key_BT], -1)
    table = lambda values: jnp.asarray(values, qkv_BTC.dtype)[index_BT2]
    cos, sin = table(np.cos(angles)), table(np.sin(angles))
    halves = config.rope_pairs == "halves"
    pair = -2 if halves else -1
    shape = (B, T, 3, H, 2, K // 2) if halves else (B, T, 3, H, K // 2, 2)
    x = qkv_BTC.reshape(shape)
    expand = lambda a: jnp.expand_dims(a[:, :, :, None], pair)
    a, b = jnp.split(x[:, :, :2], 2, pair)
    cos, sin = expand(cos), expand(sin)
    turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], pair)
    return jnp.concatenate([turned, x[:, :, 2:]], 2).reshape(qkv_BTC.shape)


def alibi_slopes(n_head: int) -> tuple[float, ...]:
    """Returns what a head subtracts from a score per token of distance.

    ALiBi (arXiv 2108.12409): 2 ^ (-8 h / H) for h = 1 .. H.
    """
    return tuple(2.0 ** (-8 * (h + 1) / n_head) for h in range(n_head))


def alibi_bias(
    query_BT: jax.Array, key_BS: jax.Array, config: ModelConfig
) -> jax.Array:
    """Returns what is added to the scores, [B, H, T, S], or [H, T, S] without B.

    XLA computes this arithmetic on indices where it is added: no array is stored.
    """
    slopes = jnp.asarray(alibi_slopes(config.n_head), config.param_dtype)
    distance = key_BS[..., None, None, :] - query_BT[..., None, :, None]
    return slopes[:, None, None] * distance


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How a model knows positions: what an encoding changes, and how far it reaches.

    A new one is an instance of this, and a line in `config.POSITIONS`.

    Attributes:
      embed: (config, rngs=) -> module added to the token embeddings: it maps
        `Positions` to [B, T, D].
      rotate: (qkv_BTC, positions, start, length, config) -> queries and keys changed
        by their positions, as `rotate`.
      bias: (query_BT, key_BS, config) -> what is added to the scores, as `alibi_bias`.
      slopes: (n_head) -> one for each head, of a bias that is a slope times the
        distance, which is what fused kernels take.
      bounded: whether there are no positions past the block.
      extrapolates: whether texts longer than the block are still read from their
        beginning.
    """

    embed: Callable[..., Any] | None = None
    rotate: Callable[..., jax.Array] | None = None
    bias: Callable[..., jax.Array] | None = None
    slopes: Callable[[int], tuple[float, ...]] | None = None
    bounded: bool = False
    extrapolates: bool = False


LEARNED = Encoding(embed=LearnedPositions, bounded=True)
SINUSOIDAL = Encoding(embed=SinusoidalPositions)
# Sinusoids know no bound, but position block_size is the begin token's.
DOUBLE_SINUSOIDAL = Encoding(embed=SinusoidalPositions, bounded=True)
# The table gives absolute positions, the rotation distances.
DOUBLE_ROPE = Encoding(embed=LearnedPositions, rotate=rotate_double, bounded=True)
ALIBI = Encoding(bias=alibi_bias, slopes=alibi_slopes, extrapolates=True)
ROPE = Encoding(rotate=rotate)
NONE = Encoding()


class Modulation(nnx.Module):
    """Scales and shifts of a block's two norms, a linear map of the target position.

    The adaptive norm of AO-GPT (arXiv 2506.19935), without its gates. It begins at
    zero, where a block is the plain one. It maps the table of positions, which has far
    fewer rows than a batch has tokens, and looks up the results.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, width, bias = config.n_embd, config.target_width, config.bias
        self.linear = layers.Linear(width, 4 * D, config, std=0, bias=bias, rngs=rngs)

    def __call__(self, target: Target) -> list[jax.Array]:
        """Returns four arrays [B, T, D] for the target positions [B, T]."""
        table_PC, index_BT = target
        return jnp.split(pick_rows(self.linear(table_PC), index_BT), 4, -1)


@jax.custom_vjp
def pick_rows(table_PC: jax.Array, index_BT: jax.Array) -> jax.Array:
    """Returns table[index], [B, T, C]; its gradient is a product, not a scatter.

    XLA:CPU scatters one number at a time; a product with one-hot rows has P times the
    additions and is still faster for tables as short as these.
    """
    return table_PC[index_BT]


def _pick_rows_fwd(table_PC, index_BT):
    return table_PC[index_BT], (table_PC[:, :0], index_BT)  # For its number of rows.


def _pick_rows_bwd(saved, g_BTC):
    like, index_BT = saved
    one_hot = jax.nn.one_hot(index_BT.reshape(-1), like.shape[0], axis=0)
    return (one_hot.astype(g_BTC.dtype) @ g_BTC.reshape(-1, g_BTC.shape[-1]), None)


pick_rows.defvjp(_pick_rows_fwd, _pick_rows_bwd)


def in_order(T: int, config: ModelConfig) -> Positions:
    """Returns the positions [T] of a text read left to right.

    The last token of a full block has nowhere to point: it points at itself.

    Raises:
      UserError: where the text is longer than the table of positions.
    """
    if config.ends_with_block and config.block_size < T:
        raise UserError(
            f"a text of {T} tokens is longer than the table of {config.block_size} "
            f"positions that this model learned: only models without one "
            "(model.positions=alibi, rope, ...) read further"
        )
    own_T = jnp.arange(T)
    if config.any_order:
        return own_T, jnp.minimum(own_T + 1, config.block_size - 1)
    return (own_T,)
