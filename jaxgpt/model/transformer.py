"""The transformer: vectors in, vectors out; and the language model around it.

Dimension key, used as suffix of array names everywhere:

  B batch     T query time   S key time    D n_embd       H heads    K head width
  F feed-forward width       V vocabulary  N orders or rows           C fused width
  P positions of a table
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.model import attention, layers, positions
from jaxgpt.model.config import ModelConfig
from jaxgpt.parallel import sharding
from jaxgpt.parallel.sharding import BATCH, TENSOR

Norm = Callable[[jax.Array], jax.Array]

# What `remat` keeps of a block for the backward pass.
POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


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
        hook: attention.Hook | None = None,
    ) -> tuple[jax.Array, Any]:
        """Maps [B, T, D] to ([B, T, D], what the hook of attention hands back).

        Seeds [3, 2] turn dropout on.
        """
        attn, first, second = (None,) * 3 if seeds_32 is None else seeds_32
        norm_1, norm_2 = self.norms(target)
        rate = self.config.dropout
        with jax.named_scope("attention"):
            h_BTD, aux = self.attn(norm_1(x_BTD), attn, hook)
            x_BTD = x_BTD + layers.dropout(h_BTD, rate, first)
        with jax.named_scope("feed_forward"):
            h_BTD = self.mlp(norm_2(x_BTD))
            x_BTD = x_BTD + layers.dropout(h_BTD, rate, second)
            return sharding.constrain(x_BTD, BATCH, None, None), aux

    def extend(
        self,
        x_BTD: jax.Array,
        layer: attention.LayerCache,
        start: jax.Array,
        target: positions.Target | None = None,
        new_token_mask_TT: jax.Array | None = None,
        hook: attention.Hook | None = None,
    ) -> tuple[jax.Array, attention.LayerCache, Any]:
        """Runs T new tokens against the cache (see `Attention.extend`)."""
        norm_1, norm_2 = self.norms(target)
        h_BTD, layer, aux = self.attn.extend(
            norm_1(x_BTD), layer, start, new_token_mask_TT, hook
        )
        x_BTD = x_BTD + h_BTD
        return x_BTD + self.mlp(norm_2(x_BTD)), layer, aux


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
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D].

        Args:
          x_BTD: vectors.
          target: what `Modulation` reads.
          dropout_key: turns dropout on.
        """
        c = self.config
        x_BTD, seeds = self.input_dropout(x_BTD, dropout_key)
        if c.remat != "none" or c.scan_layers:
            return self.norm_f(self.apply_blocks(x_BTD, target, seeds))
        for i, (block, seeds_32) in enumerate(zip(self.blocks, seeds, strict=True)):
            with jax.named_scope(f"block_{i}"):
                x_BTD, _ = block(x_BTD, target, seeds_32)
        return self.norm_f(x_BTD)

    def input_dropout(
        self, x_BTD: jax.Array, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, list[jax.Array | None]]:
        """Returns the input with dropout, and the seeds [3, 2] of each block's."""
        c = self.config
        if dropout_key is None or not c.dropout:
            return x_BTD, [None] * c.n_layer
        bits = jax.random.bits(dropout_key, (c.n_layer + 1, 3, 2), jnp.uint32)
        return layers.dropout(x_BTD, c.dropout, bits[-1, 0]), list(bits[:-1])

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
            return nnx.merge(graph, params)(x_BTD, target, seeds_32)[0], None

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
        layers_kv: attention.KVCache,
        start: jax.Array,
        target: positions.Target | None = None,
        new_token_mask_TT: jax.Array | None = None,
    ) -> tuple[jax.Array, attention.KVCache]:
        """Runs T new tokens against the cache (see `Attention.extend`)."""
        written = []
        for block, layer in zip(self.blocks, layers_kv, strict=True):
            x_BTD, layer, _ = block.extend(
                x_BTD, layer, start, target, new_token_mask_TT
            )
            written.append(layer)
        return self.norm_f(x_BTD), tuple(written)


class LanguageModel(nnx.Module):
    """Tokens in, logits out; a tied head is the token table, transposed."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        shape = (config.vocab_size + config.begin_token, config.n_embd)
        width = config.n_embd
        self.table = nnx.Param(
            layers.init_matrix(rngs.params(), shape, config, fan_in=width)
        )
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
        layers_kv: attention.KVCache,
        start: jax.Array,
        new_token_mask_TT: jax.Array | None = None,
    ) -> tuple[jax.Array, attention.KVCache]:
        """Returns the hidden states [B, T, D] of new tokens, and the cache with them.

        `head` makes logits of them; the rest is as `Attention.extend`.
        """
        x_BTD = self.embed(tokens_BT, where)
        target = self.target(where)
        return self.transformer.extend(
            x_BTD, layers_kv, start, target, new_token_mask_TT
        )

    def embed(self, tokens_BT: jax.Array, where: positions.Positions) -> jax.Array:
        """Returns token plus position embeddings [B, T, D]."""
        x_BTD = sharding.constrain(self.table[...], TENSOR, None)[tokens_BT]
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(where)
        return sharding.constrain(x_BTD, BATCH, None, None)

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
        logits_BTV = sharding.constrain(logits_BTV, BATCH, None, TENSOR)
        return layers.cross_entropy(logits_BTV, targets_BT)
