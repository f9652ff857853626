"""The transformer: vectors in, vectors out; and the language model around it.

Dimension key, used as suffix of array names everywhere:

  B batch     T query time   S key time    D n_embd       H heads    K head width
  F feed-forward width       V vocabulary  N orders or rows           C fused width
  P positions of a table
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.core import attention, cache, cpu, init, layers, partition, positions
from jaxgpt.core.partition import BATCH, TENSOR
from jaxgpt.errors import UserError

Norm = Callable[[jax.Array], jax.Array]
# Adds to attention: (normalised x_BTD, the block's cache or None, first slot) -> BTD.
Beside = Callable[[jax.Array, cache.LayerCache | None, jax.Array], jax.Array]
# What `remat` keeps of a block for the backward pass.
POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a model is; the fields of `config.model` plus those a system adds.

    `positions` is one of `config.model`'s, or "double" or "double-sinusoidal" (own and
    target position, of a learned table or of sinusoids).
    `begin_token` adds the token `vocab_size`, which stands at position `block_size`,
    is read first and never predicted. `adaptive_norm` makes the norms of each block
    depend on the target position.
    `kernels` is "cpu" (core/cpu.py), "tpu" (core/tpu.py) or "xla" (plain JAX); results
    agree to rounding.
    """

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    dropout: float = 0.0
    bias: bool = False
    activation: str = "gelu"
    dtype: str = "float32"
    qk_norm: bool = False
    key_width: int = 0
    positions: str = "learned"
    sinusoid_scale: float = 0.03
    rope_theta: float = 1e4
    rope_frequency: float = 1.0
    rope_pairs: str = "halves"
    norm: str = "layer"
    norm_epsilon: float = 1e-5
    final_norm: bool = True
    attention_bias: bool = True
    feed_forward_width: int = 0
    tied_head: bool = True
    init: str = "gpt2"
    begin_token: bool = False
    adaptive_norm: bool = False
    remat: str = "none"
    scan_layers: bool = False
    kernels: str = "xla"

    def __post_init__(self) -> None:
        """Raises UserError where the widths do not divide or are odd."""
        if self.n_embd % self.n_head:
            raise UserError(
                f"model.n_embd {self.n_embd} does not divide into "
                f"model.n_head {self.n_head} heads"
            )
        if self.positions.endswith("sinusoidal") and self.n_embd % 2:
            raise UserError(
                f"model.n_embd {self.n_embd} is odd: sinusoids come in pairs of sine "
                "and cosine, take an even width"
            )
        if self.positions == "double-sinusoidal" and self.n_embd % 4:
            raise UserError(
                f"model.n_embd {self.n_embd} does not divide by 4: double sinusoids "
                "are two halves of pairs"
            )
        if self.key_width and (self.qk_norm or self.positions == "rope"):
            raise UserError(
                f"model.key_width={self.key_width} goes neither with model.qk_norm nor "
                "with model.positions=rope: leave it out"
            )
        width = self.n_embd // self.n_head
        if self.positions == "rope" and width % 2:
            raise UserError(
                f"model.n_embd {self.n_embd} over model.n_head {self.n_head} makes "
                f"heads {width} wide: RoPE turns pairs of channels, take an even width"
            )
        if self.vocab_size < 1:
            raise UserError("model.vocab_size is 0: the data or a tokenizer sets it")

    @property
    def param_dtype(self) -> jnp.dtype:
        """float32, or float64 where that is computed in."""
        return jnp.dtype(cpu.accumulator(self.dtype))

    @property
    def head_key_width(self) -> int:
        """Width of a head's queries and keys."""
        return self.key_width or self.n_embd // self.n_head

    @property
    def any_order(self) -> bool:
        """Whether each token is told the position it must predict."""
        return self.positions.startswith("double")

    @property
    def hidden_width(self) -> int:
        """Width of the feed-forward; SwiGLU has three matrices to GELU's two."""
        if self.feed_forward_width:
            return self.feed_forward_width
        if self.activation == "swiglu":
            return 8 * math.ceil(self.n_embd / 3)
        return 4 * self.n_embd

    @property
    def ends_with_block(self) -> bool:
        """Whether the block is all there is: a learned table has no more rows.

        Double sinusoids go on, but a sampler's place for the beginning token does not.
        """
        return self.positions == "learned" or self.any_order


class Block(nnx.Module):
    """Pre-norm residual block: attention, then feed-forward."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.norm_1 = layers.Norm(config, config.norm)
        self.attn = attention.Attention(config, rngs=rngs)
        self.norm_2 = layers.Norm(config, config.norm)
        self.mlp = layers.FeedForward(config, rngs=rngs)
        if config.adaptive_norm:
            self.modulation = positions.Modulation(config, rngs=rngs)
        self.config = config

    def norms(self, target: positions.Target | None) -> tuple[Norm, Norm]:
        """Returns the two norms, adapted to each token's target where configured."""
        if target is None or not self.config.adaptive_norm:
            return self.norm_1, self.norm_2
        scale_1, shift_1, scale_2, shift_2 = self.modulation(target)
        return (
            lambda x_BTD: self.norm_1(x_BTD) * (1 + scale_1) + shift_1,
            lambda x_BTD: self.norm_2(x_BTD) * (1 + scale_2) + shift_2,
        )

    def __call__(
        self,
        x_BTD: jax.Array,
        target: positions.Target | None = None,
        seeds_32: jax.Array | None = None,
        beside: Beside | None = None,
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; seeds [3, 2] turn dropout on."""
        attn, first, second = (None,) * 3 if seeds_32 is None else seeds_32
        norm_1, norm_2 = self.norms(target)
        rate = self.config.dropout
        with jax.named_scope("attention"):
            normed_BTD = norm_1(x_BTD)
            h_BTD = self.attn(normed_BTD, attn)
            if beside:
                h_BTD = h_BTD + beside(normed_BTD, None, jnp.int32(0))
            x_BTD = x_BTD + layers.dropout(h_BTD, rate, first)
        with jax.named_scope("feed_forward"):
            h_BTD = self.mlp(norm_2(x_BTD))
            x_BTD = x_BTD + layers.dropout(h_BTD, rate, second)
            return partition.constrain(x_BTD, BATCH, None, None)

    def extend(
        self,
        x_BTD: jax.Array,
        layer: cache.LayerCache,
        start: jax.Array,
        target: positions.Target | None = None,
        among_TT: jax.Array | None = None,
        beside: Beside | None = None,
    ) -> tuple[jax.Array, cache.LayerCache]:
        """Runs T new tokens against the cache (see `Attention.extend`)."""
        norm_1, norm_2 = self.norms(target)
        normed_BTD = norm_1(x_BTD)
        more = beside(normed_BTD, layer, start) if beside else 0
        h_BTD, layer = self.attn.extend(normed_BTD, layer, start, among_TT)
        x_BTD = x_BTD + h_BTD + more
        return x_BTD + self.mlp(norm_2(x_BTD)), layer


class Transformer(nnx.Module):
    """A stack of blocks and a last norm: vectors in, vectors out."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            [Block(config, rngs=rngs) for _ in range(config.n_layer)]
        )
        self.norm_f = layers.Norm(config, config.norm if config.final_norm else "none")
        self.config = config

    def __call__(
        self,
        x_BTD: jax.Array,
        target: positions.Target | None = None,
        dropout_key: jax.Array | None = None,
        beside: dict[int, Beside] | None = None,
        outputs: list[jax.Array] | None = None,
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D].

        Args:
          x_BTD: vectors.
          target: what `Modulation` reads.
          dropout_key: turns dropout on.
          beside: what to add to the attention of some blocks.
          outputs: a list that each block's output is appended to.
        """
        c = self.config
        seeds = [None] * c.n_layer
        if dropout_key is not None and c.dropout:
            bits = jax.random.bits(dropout_key, (c.n_layer + 1, 3, 2), jnp.uint32)
            x_BTD = layers.dropout(x_BTD, c.dropout, bits[-1, 0])
            seeds = list(bits[:-1])
        plain = c.remat == "none" and not c.scan_layers
        if not plain and not beside and outputs is None:
            return self.norm_f(self.apply_blocks(x_BTD, target, seeds))
        for i, (block, seeds_32) in enumerate(zip(self.blocks, seeds, strict=True)):
            with jax.named_scope(f"block_{i}"):
                x_BTD = block(x_BTD, target, seeds_32, (beside or {}).get(i))
            if outputs is not None:
                outputs.append(x_BTD)
        return self.norm_f(x_BTD)

    def apply_blocks(
        self,
        x_BTD: jax.Array,
        target: positions.Target | None,
        seeds: Sequence[jax.Array | None],
    ) -> jax.Array:
        """Runs the blocks as functions of their parameters: recomputed, scanned.

        The parameters of scanned blocks are stacked here, one copy of them in memory,
        so that a run is one on disk however it is compiled.
        """
        c = self.config
        graph = nnx.split(self.blocks[0])[0]
        split = [nnx.to_pure_dict(nnx.split(block)[1]) for block in self.blocks]

        def apply(x_BTD, layer):
            params, seeds_32 = layer
            return nnx.merge(graph, params)(x_BTD, target, seeds_32), None

        if c.remat != "none":
            apply = jax.checkpoint(apply, policy=POLICIES[c.remat])
        layers_ = list(zip(split, seeds, strict=True))
        if c.scan_layers:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers_)
            return jax.lax.scan(apply, x_BTD, stacked)[0]
        for layer in layers_:
            x_BTD, _ = apply(x_BTD, layer)
        return x_BTD

    def extend(
        self,
        x_BTD: jax.Array,
        layers_kv: cache.KVCache,
        start: jax.Array,
        target: positions.Target | None = None,
        among_TT: jax.Array | None = None,
        beside: dict[int, Beside] | None = None,
    ) -> tuple[jax.Array, cache.KVCache]:
        """Runs T new tokens against the cache (see `Attention.extend`)."""
        written = []
        for index, (block, layer) in enumerate(
            zip(self.blocks, layers_kv, strict=True)
        ):
            x_BTD, layer = block.extend(
                x_BTD, layer, start, target, among_TT, (beside or {}).get(index)
            )
            written.append(layer)
        return self.norm_f(x_BTD), tuple(written)


class LanguageModel(nnx.Module):
    """Tokens in, logits out; a tied head is the token table, transposed."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        shape = (config.vocab_size + config.begin_token, config.n_embd)
        width = config.n_embd
        self.table = nnx.Param(init.matrix(rngs.params(), shape, config, fan_in=width))
        self.positions = positions.embedding(config, rngs=rngs)
        self.transformer = Transformer(config, rngs=rngs)
        self.config = config
        if not config.tied_head:
            D, V = config.n_embd, config.vocab_size
            self.unembed = layers.Linear(D, V, config, rngs=rngs)

    def __call__(
        self,
        tokens_BT: jax.Array,
        where: positions.Positions | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns logits [B, T, V], float32 or wider.

        Args:
          tokens_BT: int32 token ids, in the order they are read.
          where: position indices [B, T] of each token, as `positions.Positions`;
            None reads left to right.
          dropout_key: turns dropout on.
        """
        if where is None:
            where = positions.in_order(tokens_BT.shape[1], self.config)
        x_BTD = self.embed(tokens_BT, where)
        target = self.target(where)
        return self.head(self.transformer(x_BTD, target, dropout_key))

    def extend(
        self,
        tokens_BT: jax.Array,
        where: positions.Positions,
        layers_kv: cache.KVCache,
        start: jax.Array,
        among_TT: jax.Array | None = None,
    ) -> tuple[jax.Array, cache.KVCache]:
        """Returns the hidden states [B, T, D] of new tokens, and the cache with them.

        `head` makes logits of them; the rest is as `Attention.extend`.
        """
        x_BTD = self.embed(tokens_BT, where)
        target = self.target(where)
        return self.transformer.extend(x_BTD, layers_kv, start, target, among_TT)

    def embed(self, tokens_BT: jax.Array, where: positions.Positions) -> jax.Array:
        """Returns token plus position embeddings [B, T, D]."""
        x_BTD = partition.constrain(self.table[...], TENSOR, None)[tokens_BT]
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(where)
        return partition.constrain(x_BTD, BATCH, None, None)

    def target(self, where: positions.Positions) -> positions.Target | None:
        """Returns what `Modulation` reads, where the model has it."""
        if self.positions is None or not self.config.adaptive_norm:
            return None
        return self.positions.target(where)

    def head(self, x_BTD: jax.Array) -> jax.Array:
        """Returns logits [B, T, V] of final hidden states."""
        if not self.config.tied_head:
            return self.unembed(x_BTD)
        table_VD = self.table[...][: self.config.vocab_size]
        return layers.matmul(x_BTD, table_VD.T, self.config)

    def nll(
        self,
        tokens_BT: jax.Array,
        targets_BT: jax.Array,
        where: positions.Positions | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns each target's negative log-likelihood [B, T], in nats."""
        logits_BTV = self(tokens_BT, where, dropout_key)
        logits_BTV = partition.constrain(logits_BTV, BATCH, None, TENSOR)
        return layers.cross_entropy(logits_BTV, targets_BT)


def count_parameters(params: dict) -> int:
    """Returns the number of parameters of a tree of arrays (or of their shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def flops_per_token(config: ModelConfig, parameters: int) -> float:
    """Returns the FLOPs of training on one token: 6 N + 12 L D T.

    N leaves out tables that are looked up, not multiplied. As nanoGPT (after the
    PaLM paper, appendix B), the causal half of the scores is not discounted.
    """
    D, T = config.n_embd, config.block_size
    widths = {"learned": D, "double": D // 2}
    tables = T * widths.get(config.positions, 0)
    if not config.tied_head:
        tables += config.vocab_size * D
    return 6 * (parameters - tables) + 12 * config.n_layer * D * T
