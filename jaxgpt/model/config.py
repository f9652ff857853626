"""What a model is: its shape and its options."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxgpt.errors import UserError
from jaxgpt.model import cpu


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a model is; the fields of `config.model` plus those a system adds.

    `positions` is one of `config.model`'s, or "double" or "double-sinusoidal" (own and
    target position, of a learned table or of sinusoids).
    `begin_token` adds the token `vocab_size`, which stands at position `block_size`,
    is read first and never predicted. `adaptive_norm` makes the norms of each block
    depend on the target position.
    `kernels` is "cpu" (model/cpu.py), "tpu" (model/tpu.py) or "xla" (plain JAX);
    results agree to rounding.
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
