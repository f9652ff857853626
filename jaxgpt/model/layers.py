"""Linear layers, norms, feed-forwards, dropout, and the loss."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.model import cpu, gpu, gpu_norm, rng
from jaxgpt.model.config import ModelConfig
from jaxgpt.parallel import sharding
from jaxgpt.parallel.sharding import BATCH, TENSOR

INIT_STD = 0.02


def init_matrix(
    key: jax.Array,
    shape: tuple[int, ...],
    config: ModelConfig,
    *,
    std: float = INIT_STD,
    fan_in: int,
) -> jax.Array:
    """Returns an initial matrix as config.init says; with std 0, zeros either way.

    Args:
      config: init, and the dtype of parameters.
      std: deviation of "gpt2".
      fan_in: "fan_in" has deviation fan_in ^ -0.5.
    """
    dtype = config.param_dtype
    if config.init == "fan_in" and std:
        unit = jax.random.truncated_normal(key, -3, 3, shape, dtype)
        return unit / math.sqrt(fan_in)
    return init_normal(key, shape, dtype, std)


def init_normal(
    key: jax.Array, shape: tuple[int, ...], dtype: str, std: float = INIT_STD
) -> jax.Array:
    """Returns a Gaussian array of mean 0 and deviation std."""
    return std * jax.random.normal(key, shape, dtype)


def residual_std(n_layer: int) -> float:
    """Returns the deviation of projections into the residual stream.

    A block adds to the stream twice: this keeps the stream's initial variance from
    growing with depth (GPT-2, section 2.3).
    """
    return INIT_STD / math.sqrt(2 * n_layer)


class Linear(nnx.Module):
    """y = x @ kernel + bias, operands in config.dtype, result float32 or wider."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        config: ModelConfig,
        *,
        std: float = INIT_STD,
        bias: bool,
        rngs: nnx.Rngs,
    ):
        shape, dtype = (width_in, width_out), config.param_dtype
        key = rngs.params()
        self.kernel = nnx.Param(
            init_matrix(key, shape, config, std=std, fan_in=width_in)
        )
        self.bias = nnx.Param(jnp.zeros(width_out, dtype)) if bias else None
        self.config = config

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., width_in] to [..., width_out]."""
        y = matmul(x, self.kernel[...], self.config)
        return y if self.bias is None else y + self.bias[...]


def matmul(x: jax.Array, w_DF: jax.Array, config: ModelConfig) -> jax.Array:
    """Returns x @ w for x [..., D], operands in config.dtype, summed in float32."""
    x_ND = x.reshape(-1, x.shape[-1])
    if config.kernels == "cpu":
        y_NF = cpu.linear(x_ND, w_DF, config.dtype)
    elif gpu.in_half(config):
        y_NF = gpu.linear(x_ND, w_DF, config.dtype)
    else:
        y_NF = jnp.dot(
            x_ND.astype(config.dtype),
            w_DF.astype(config.dtype),
            preferred_element_type=cpu.accumulator(config.dtype),
        )
    return y_NF.reshape(*x.shape[:-1], w_DF.shape[1])


class Norm(nnx.Module):
    """Normalises the last axis: LayerNorm, RMSNorm (arXiv 1910.07467), or not at all.

    LayerNorm has a bias as config.bias says; RMSNorm has none and subtracts no mean.
    """

    def __init__(self, config: ModelConfig, kind: str):
        ones = jnp.ones(config.n_embd, config.param_dtype)
        biased = kind == "layer" and config.bias
        self.scale = None if kind == "none" else nnx.Param(ones)
        self.bias = nnx.Param(jnp.zeros_like(ones)) if biased else None
        self.kind, self.config = kind, config

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D]."""
        if self.scale is None:
            return x
        epsilon = self.config.norm_epsilon
        if self.kind == "layer" and gpu.in_half(self.config):
            y = gpu.layer_norm(x, self.scale[...], epsilon, self.config.dtype)
        elif self.kind == "layer" and self.config.kernels in ("cpu", "gpu"):
            y = cpu.layer_norm(x, self.scale[...], epsilon)
        else:
            centred = x - x.mean(-1, keepdims=True) if self.kind == "layer" else x
            square = (centred * centred).mean(-1, keepdims=True)
            y = centred * jax.lax.rsqrt(square + epsilon) * self.scale[...]
        return y if self.bias is None else y + self.bias[...]

    def after(
        self, x: jax.Array, more: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns x + more and its norm, for models that `gpu_norm.fuses_norms`."""
        if more is None:
            return x, self(x)
        if self.scale is None:
            return x + more, x + more
        c = self.config
        return gpu_norm.add_and_norm(x, more, self.scale[...], c.norm_epsilon, c.dtype)


class FeedForward(nnx.Module):
    """Two layers with an activation between them, or SwiGLU (arXiv 2002.05202).

    SwiGLU's first layer holds gate and value side by side; it has no biases.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, F = config.n_embd, config.hidden_width
        gated = config.activation == "swiglu"
        bias = config.bias and not gated
        std = residual_std(config.n_layer)
        self.up = Linear(D, 2 * F if gated else F, config, bias=bias, rngs=rngs)
        self.down = Linear(F, D, config, std=std, bias=bias, rngs=rngs)
        self.config = config

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        h_BTF = self.activate(self.up(x_BTD))
        return self.down(sharding.constrain(h_BTF, BATCH, None, TENSOR))

    def activate(self, h_BTF: jax.Array) -> jax.Array:
        """Applies config.activation; SwiGLU's halves the last axis."""
        kind = self.config.activation
        if kind == "swiglu":
            gate_BTF, value_BTF = jnp.split(h_BTF, 2, -1)
            return jax.nn.silu(gate_BTF) * value_BTF
        if kind == "relu":
            return jax.nn.relu(h_BTF)
        if kind == "gelu" and self.config.kernels == "cpu":
            return cpu.gelu(h_BTF)
        if kind == "gelu" and gpu.in_half(self.config):
            return gpu.gelu(h_BTF, self.config.dtype)
        return jax.nn.gelu(h_BTF, approximate=kind == "gelu_tanh")


def normalise_heads(qkv_BTC: jax.Array, n_head: int) -> jax.Array:
    """Returns fused projections [B, T, 3 H K], queries and keys of unit mean square.

    Also of shape [B, T, 3, H K]. There is no learned gain: with its gradient a step
    takes 1.6 times as long under XLA:CPU.
    """
    heads = qkv_BTC.reshape(*qkv_BTC.shape[:2], 3, n_head, -1)
    inverse = jax.lax.rsqrt((heads * heads).mean(-1, keepdims=True) + 1e-6)
    # One multiplication with 1 for the values, instead of cutting them off and joining
    # them again: that would copy the array.
    values = jnp.arange(3).reshape(3, 1, 1) == 2
    return (heads * jnp.where(values, 1, inverse)).reshape(qkv_BTC.shape)


def dropout(x: jax.Array, rate: float, seed_2: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability rate, scales the rest; seed None keeps all."""
    if seed_2 is None or rate == 0:
        return x
    return x * rng.dropout_factor(x.shape, rate, seed_2, x.dtype)


def count_parameters(params: dict) -> int:
    """Returns the number of parameters of a tree of arrays (or of their shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def cross_entropy(
    logits_BTV: jax.Array, targets_BT: jax.Array, config: ModelConfig | None = None
) -> jax.Array:
    """Returns the negative log-likelihood [B, T] of each target token, in nats.

    With a config, by that model's fused GPU kernel if it has one.
    """
    if config and gpu.in_half(config):
        return gpu.cross_entropy(logits_BTV, targets_BT, config.dtype)
    # Not log_softmax: only the targets' entries are needed of an array this large.
    picked = jnp.take_along_axis(logits_BTV, targets_BT[..., None], -1)[..., 0]
    return jax.nn.logsumexp(logits_BTV, -1) - picked
