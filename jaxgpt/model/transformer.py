"""The transformer: vectors in, vectors out; and the language model around it.

Dimension key, used as suffix of array names everywhere:

    B batch     T query time   S key time    D n_embd       H heads    K head width
    F feed-forward width       V vocabulary  N orders or rows           C fused width
    P positions of a table
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.model import gpu_norm, layers
from jaxgpt.model.attention import AttentionHook, KVCache, LayerCache
from jaxgpt.model.config import ModelConfig
from jaxgpt.model.positions import Modulation, Positions, Target, in_order
from jaxgpt.parallel import sharding
from jaxgpt.parallel.sharding import BATCH, TENSOR

Norm = Callable[[jax.Array], jax.Array]

# What `remat` keeps of a block for the backward pass.
POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Block(nnx.Module):
    """Pre-norm residual block: attention or another mixer, then feed-forward."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.norm_1 = layers.Norm(config, config.norm)
        mixer = config.token_mixer(config, rngs=rngs)
        # Parameter paths: attention keeps the name it had before there were others.
        if config.mixer == "attention":
            self.attn = mixer
        else:
            self.mixer = mixer
        self.norm_2 = layers.Norm(config, config.norm)
        self.mlp = layers.FeedForward(config, rngs=rngs)
        if config.adaptive_norm:
            self.modulation = Modulation(config, rngs=rngs)
        self.config = config

    @property
    def mix(self) -> Callable[..., tuple[jax.Array, Any, Any]]:
        """What mixes the tokens, called as `Attention`."""
        return self.attn if self.config.mixer == "attention" else self.mixer

    def norms(self, target: Target | None) -> tuple[Norm, Norm]:
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
        target: Target | None = None,
        seeds_32: jax.Array | None = None,
        layer: LayerCache | None = None,
        start: jax.typing.ArrayLike = 0,
        mask_TT: jax.Array | None = None,
        hook: AttentionHook | None = None,
        positions: Positions | None = None,
    ) -> tuple[jax.Array, LayerCache | None, Any]:
        """Maps [B, T, D] to [B, T, D]; seeds [3, 2] turn dropout on.

        The other arguments and the other results are `Attention.__call__`'s.
        """
        seed_attn, seed_1, seed_2 = (None,) * 3 if seeds_32 is None else seeds_32
        norm_1, norm_2 = self.norms(target)
        rate = self.config.dropout
        with jax.named_scope(self.config.mixer):
            h_BTD, layer, extra = self.mix(
                norm_1(x_BTD), seed_attn, layer, start, mask_TT, hook, positions
            )
            x_BTD = x_BTD + layers.dropout(h_BTD, rate, seed_1)
        with jax.named_scope("feed_forward"):
            h_BTD = self.mlp(norm_2(x_BTD))
            x_BTD = x_BTD + layers.dropout(h_BTD, rate, seed_2)
            return sharding.constrain(x_BTD, BATCH, None, None), layer, extra


@dataclasses.dataclass(frozen=True)
class BlockOutputs:
    """What the blocks return in addition to the last hidden states.

    Attributes:
      cache: keys and values, or states, including those of the new tokens; None
        without a cache.
      hidden: [B, T, D], the input of the first block and the output of each; empty
        without `keep_hidden`.
      hooked: {block: what its hook returned}.
    """

    cache: KVCache | None
    hidden: list[jax.Array]
    hooked: dict[int, Any]


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
        target: Target | None = None,
        *,
        dropout_key: jax.Array | None = None,
        cache: KVCache | None = None,
        start: jax.typing.ArrayLike = 0,
        mask_TT: jax.Array | None = None,
        hooks: Mapping[int, AttentionHook] | None = None,
        keep_hidden: bool = False,
        positions: Positions | None = None,
    ) -> tuple[jax.Array, BlockOutputs]:
        """Maps [B, T, D] to [B, T, D].

        Args:
          target: what `Modulation` reads.
          dropout_key: turns dropout on.
          cache, start, mask_TT: see `Attention.__call__`.
          hooks: {block: hook of its attention}.
          keep_hidden: whether to return `BlockOutputs.hidden`.
          positions: as of `Attention.__call__`.
        """
        c = self.config
        hooks = hooks or {}
        seeds: list[jax.Array | None] = [None] * c.n_layer
        if dropout_key is not None and c.dropout:
            bits = jax.random.bits(dropout_key, (c.n_layer + 1, 3, 2), jnp.uint32)
            x_BTD = layers.dropout(x_BTD, c.dropout, bits[-1, 0])
            seeds = list(bits[:-1])
        plain = c.remat == "none" and not c.scan_layers and mask_TT is None
        bare = not (c.dropout or cache or hooks or keep_hidden)
        if plain and bare and gpu_norm.fuses_norms(c, x_BTD):
            return self.fused(x_BTD, positions), BlockOutputs(None, [], {})
        # Decoding runs the blocks one by one: a scan would stack, so copy, all
        # parameters and caches for every token.
        scans = c.scan_layers and cache is None
        hidden, written, hooked = [x_BTD], [], {}
        i = 0
        while i < c.n_layer:
            # As many blocks as can be one scan: a block with a hook cannot.
            end = i + 1
            while scans and i not in hooks and end < c.n_layer and end not in hooks:
                end += 1
            if end > i + 1:
                x_BTD, inner = self.scan(
                    x_BTD, target, seeds, i, end, mask_TT, keep_hidden, positions
                )
                hidden += inner
            else:
                with jax.named_scope(f"block_{i}"):
                    x_BTD, layer, extra = self.block_function(i)(
                        x_BTD,
                        target,
                        seeds[i],
                        cache[i] if cache else None,
                        start,
                        mask_TT,
                        hooks.get(i),
                        positions,
                    )
                hidden.append(x_BTD)
                written.append(layer)
                if i in hooks:
                    hooked[i] = extra
            i = end
        outputs = BlockOutputs(
            tuple(written) if cache else None, hidden if keep_hidden else [], hooked
        )
        return self.norm_f(x_BTD), outputs

    def block_function(self, index: int) -> Callable[..., Any]:
        """Returns a block, recomputed in the backward pass as `remat` says."""
        c, block = self.config, self.blocks[index]
        if c.remat == "none":
            return block

        def apply(x_BTD, *others):
            # The others include hooks, which are no arrays: they are closed over.
            run = jax.checkpoint(lambda x: block(x, *others), policy=POLICIES[c.remat])
            return run(x_BTD)

        return apply

    def fused(self, x_BTD: jax.Array, positions: Positions | None) -> jax.Array:
        """Maps [B, T, D] as plain blocks do, each sum and its norm in one kernel."""
        more_BTD = None
        for i, block in enumerate(self.blocks):
            with jax.named_scope(f"block_{i}"):
                with jax.named_scope(self.config.mixer):
                    x_BTD, normed_BTD = block.norm_1.after(x_BTD, more_BTD)
                    more_BTD = block.mix(normed_BTD, positions=positions)[0]
                with jax.named_scope("feed_forward"):
                    x_BTD, normed_BTD = block.norm_2.after(x_BTD, more_BTD)
                    more_BTD = block.mlp(normed_BTD)
        return self.norm_f.after(x_BTD, more_BTD)[1]

    def scan(
        self,
        x_BTD: jax.Array,
        target: Target | None,
        seeds: Sequence[jax.Array | None],
        first: int,
        end: int,
        mask_TT: jax.Array | None,
        keep_hidden: bool,
        positions: Positions | None,
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Runs blocks first .. end - 1 as one loop, compiled once.

        Their parameters are stacked here, at the cost of a copy of them in memory, and
        not in the module: so a run is the same on disk however it is compiled.
        """
        c = self.config
        graph = nnx.split(self.blocks[first])[0]

        def apply(x_BTD, layer):
            params, seeds_32 = layer
            block = nnx.merge(graph, params)
            y_BTD = block(
                x_BTD, target, seeds_32, mask_TT=mask_TT, positions=positions
            )[0]
            return y_BTD, y_BTD if keep_hidden else None

        if c.remat != "none":
            apply = jax.checkpoint(apply, policy=POLICIES[c.remat])
        stacked = jax.tree.map(
            lambda *leaves: jnp.stack(leaves),
            *(
                (nnx.to_pure_dict(nnx.split(self.blocks[i])[1]), seeds[i])
                for i in range(first, end)
            ),
        )
        x_BTD, hidden_LBTD = jax.lax.scan(apply, x_BTD, stacked)
        return x_BTD, list(hidden_LBTD) if keep_hidden else []


class LanguageModel(nnx.Module):
    """Tokens in, logits out; a tied head is the transposed token table."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        read_only = config.begin_token + config.mask_token
        shape = (config.vocab_size + read_only, config.n_embd)
        width = config.n_embd
        self.table = nnx.Param(
            layers.init_matrix(rngs.params(), shape, config, fan_in=width)
        )
        embed = config.encoding.embed
        self.positions = embed(config, rngs=rngs) if embed else None
        self.transformer = Transformer(config, rngs=rngs)
        self.config = config
        if not config.tied_head:
            D, V = config.n_embd, config.vocab_size
            bias = config.bias and config.head_bias
            self.unembed = layers.Linear(D, V, config, bias=bias, rngs=rngs)

    def __call__(
        self, tokens_BT: jax.Array, positions: Positions | None = None, **options: Any
    ) -> tuple[jax.Array, KVCache | None]:
        """Returns logits [B, T, V], float32 or wider, and the cache with the tokens.

        The one forward pass, for training, scoring and decoding; arguments as of
        `hidden_states`.
        """
        x_BTD, cache = self.hidden_states(tokens_BT, positions, **options)
        return self.head(x_BTD), cache

    def hidden_states(
        self,
        tokens_BT: jax.Array,
        positions: Positions | None = None,
        *,
        dropout_key: jax.Array | None = None,
        cache: KVCache | None = None,
        start: jax.typing.ArrayLike = 0,
        mask_TT: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Returns the last hidden states [B, T, D], and the cache with the tokens.

        Args:
          tokens_BT: int32 token ids, in the order they are read.
          positions: indices [B, T] of each token, as `positions.Positions`; None reads
            left to right.
          dropout_key: turns dropout on.
          cache: keys and values of what was read before; None without decoding.
          start: the cache slot of the first token, a scalar or one for each row [B].
          mask_TT: as of `Attention.__call__`.
        """
        if positions is None:
            positions = in_order(tokens_BT.shape[1], self.config)
        x_BTD, outputs = self.transformer(
            self.embed(tokens_BT, positions),
            self.target(positions),
            dropout_key=dropout_key,
            cache=cache,
            start=start,
            mask_TT=mask_TT,
            positions=positions,
        )
        return x_BTD, outputs.cache

    def embed(self, tokens_BT: jax.Array, positions: Positions) -> jax.Array:
        """Returns token plus position embeddings [B, T, D]."""
        x_BTD = sharding.constrain(self.table[...], TENSOR, None)[tokens_BT]
        x_BTD = x_BTD.astype(self.config.param_dtype)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(positions)
        return sharding.constrain(x_BTD, BATCH, None, None)

    def target(self, positions: Positions) -> Target | None:
        """Returns what `Modulation` reads; None for a model without it."""
        if self.positions is None or not self.config.adaptive_norm:
            return None
        return self.positions.target(positions)

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
        positions: Positions | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns each target's negative log-likelihood [B, T], in nats.

        With `loss_chunk` the logits of only that many tokens of a row exist at a time:
        with a large vocabulary they are the largest array of a step.
        """
        x_BTD, _ = self.hidden_states(tokens_BT, positions, dropout_key=dropout_key)
        (B, T), chunk = targets_BT.shape, self.config.loss_chunk
        if not chunk or chunk >= T:
            return self._nll(x_BTD, targets_BT)
        count, left = divmod(T, chunk)
        # Without it the loop would keep every chunk's logits for the backward pass.
        one = jax.checkpoint(self._nll)

        def in_chunks(array: jax.Array) -> jax.Array:
            chunks = array[:, : T - left].reshape(B, count, chunk, *array.shape[2:])
            return chunks.swapaxes(0, 1)

        arrays = in_chunks(x_BTD), in_chunks(targets_BT)
        nll_NBC = jax.lax.map(lambda of_chunk: one(*of_chunk), arrays)
        nll_BT = nll_NBC.swapaxes(0, 1).reshape(B, T - left)
        last_BC = one(x_BTD[:, T - left :], targets_BT[:, T - left :])
        return jnp.concatenate([nll_BT, last_BC], 1) if left else nll_BT

    def _nll(self, x_BTD: jax.Array, targets_BT: jax.Array) -> jax.Array:
        """Returns the negative log-likelihoods [B, T], given the last hidden states."""
        logits_BTV = sharding.constrain(self.head(x_BTD), BATCH, None, TENSOR)
        return layers.cross_entropy(logits_BTV, targets_BT, self.config)
