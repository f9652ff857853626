"""Recurrent token mixers, in the place of attention: LSTM, GRU, state-space model.

Each reads its tokens one after another into a state of fixed size. Their cache has the
state after each slot, as that of attention has its keys and values: a sampler may fill
slots that it will overwrite, and rows may stand at different slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxgpt.model import cpu, layers
from jaxgpt.model.config import ModelConfig
from jaxgpt.parallel import sharding
from jaxgpt.parallel.sharding import BATCH

# A state, or the states after each token or slot, each array [B, D] or [B, T, D].
State = tuple[jax.Array, ...]

# Of the state-space model's |lambda| at first: its memory is up to a thousand tokens.
SMALLEST_RADIUS, LARGEST_RADIUS = 0.01, 0.999


class Recurrent(nnx.Module):
    """What the mixers share; a subclass says how states follow each other."""

    config: ModelConfig
    num_states: int  # Arrays [B, D] in a state.

    def run(self, x_BTD: jax.Array, state: State) -> tuple[jax.Array, State]:
        """Returns outputs [B, T, D] for tokens after a state, and the state of each."""
        raise NotImplementedError

    @staticmethod
    def state_dtype(config: ModelConfig) -> jnp.dtype:
        """Returns the dtype of a state, whatever the operands': float32 or wider."""
        return cpu.accumulator(config.dtype)

    @classmethod
    def empty_cache(
        cls, config: ModelConfig, batch: int, length: int
    ) -> tuple[State, ...]:
        """Returns zeros: a state's arrays, each [B, S, D] for S = length, per block.

        Before the first token a state is zero too.
        """
        zeros = jnp.zeros((batch, length, config.n_embd), cls.state_dtype(config))
        return ((zeros,) * cls.num_states,) * config.n_layer

    def __call__(
        self,
        x_BTD: jax.Array,
        seed_2: jax.Array | None = None,
        layer: State | None = None,
        start: jax.typing.ArrayLike = 0,
        mask_TT: jax.Array | None = None,
        hook: Any = None,
        positions: Any = None,
    ) -> tuple[jax.Array, State | None, None]:
        """Reads T tokens after those in the cache.

        Arguments and results are those of `Attention.__call__`; masks and hooks are of
        systems that need attention.
        """
        del seed_2, positions
        assert mask_TT is None and hook is None, "a state has read all tokens before"
        if layer is None:
            zeros_BD = jnp.zeros_like(x_BTD[:, 0], self.state_dtype(self.config))
            return self.run(x_BTD, (zeros_BD,) * self.num_states)[0], None, None
        y_BTD, states = self.run(x_BTD, state_before(layer, start))
        return y_BTD, write_states(layer, states, start), None


def state_before(layer: State, start: jax.typing.ArrayLike) -> State:
    """Returns the state before slot start, a scalar or one for each row [B]."""
    B = len(layer[0])
    slot_B = jnp.broadcast_to(jnp.asarray(start), B) - 1
    row_B = jnp.arange(B)
    return tuple(
        jnp.where(slot_B[:, None] < 0, 0, array[row_B, slot_B]) for array in layer
    )


def write_states(layer: State, states: State, start: jax.typing.ArrayLike) -> State:
    """Writes the states [B, T, D] at slots from start, but what runs past the end."""
    B, T, _ = states[0].shape
    slot_BT = jnp.reshape(start, (-1, 1)) + jnp.arange(T)
    row_B1 = jnp.arange(B)[:, None]
    return tuple(
        old.at[row_B1, slot_BT].set(new, mode="drop")
        for old, new in zip(layer, states, strict=True)
    )


def by_rows(run: Callable[..., Any], shared: Any, x_BTC: jax.Array, state: Any) -> Any:
    """Returns run(shared, x, state), arrays [B, ...], each device on rows of its own.

    What rows share is then gathered once, and its gradients are summed over devices
    once, not at every token.
    """
    rows = sharding.fit(x_BTC.shape[:1], (BATCH,))
    return sharding.by_device(run, (jax.P(), rows, rows), rows)(shared, x_BTC, state)


class Gated(Recurrent):
    """A cell of gates: linear maps of the token and of the last output, combined."""

    num_gates: int
    hidden_bias: bool

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, C = config.n_embd, self.num_gates * config.n_embd
        # Gates have biases whatever model.bias: they decide what a state is at first.
        self.input = layers.Linear(D, C, config, bias=True, rngs=rngs)
        self.hidden = layers.Linear(D, C, config, bias=self.hidden_bias, rngs=rngs)
        self.config = config

    def cell(self, input_BC: jax.Array, hidden_BC: jax.Array, state: State) -> State:
        """Returns the next state; its first array is the output."""
        raise NotImplementedError

    def run(self, x_BTD: jax.Array, state: State) -> tuple[jax.Array, State]:
        """See `Recurrent.run`: what depends on tokens alone is computed for all."""
        graph, params = nnx.split(self.hidden)

        def read(params, input_BTC, state):
            hidden = nnx.merge(graph, params)

            def step(state, input_BC):
                state = self.cell(input_BC, hidden(state[0]), state)
                return state, state

            _, states = lax.scan(step, state, input_BTC.swapaxes(0, 1))
            return tuple(array_TBD.swapaxes(0, 1) for array_TBD in states)

        states = by_rows(read, params, self.input(x_BTD), state)
        return states[0], states


class LSTM(Gated):
    """Long short-term memory (Hochreiter and Schmidhuber 1997), with a forget gate.

    The gates are torch.nn.LSTM's, in its order: input, forget, candidate, output.
    """

    num_states, num_gates, hidden_bias = 2, 4, False

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        forget = jnp.arange(4 * config.n_embd) // config.n_embd == 1
        self.input.bias = nnx.Param(forget.astype(config.param_dtype))  # It remembers.

    def cell(self, input_BC: jax.Array, hidden_BC: jax.Array, state: State) -> State:
        """Returns (h, c)."""
        i, f, g, o = jnp.split(input_BC + hidden_BC, 4, -1)
        c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c


class GRU(Gated):
    """Gated recurrent unit (arXiv 1406.1078), the reset gate after the product.

    The gates are torch.nn.GRU's, in its order: reset, update, candidate.
    """

    num_states, num_gates, hidden_bias = 1, 3, True

    def cell(self, input_BC: jax.Array, hidden_BC: jax.Array, state: State) -> State:
        """Returns (h,)."""
        reset_in, update_in, new_in = jnp.split(input_BC, 3, -1)
        reset, update, new = jnp.split(hidden_BC, 3, -1)
        update = jax.nn.sigmoid(update_in + update)
        new = jnp.tanh(new_in + jax.nn.sigmoid(reset_in + reset) * new)
        return (new + update * (state[0] - new),)


class SSM(Recurrent):
    """A diagonal linear state-space model: the LRU of arXiv 2303.06349.

    h_t = lambda h_{t-1} + sqrt(1 - |lambda|^2) B x_t and y_t = Re(C h_t), with complex
    h, B, C and lambda = exp(-exp(nu_log) + i exp(theta_log)), so that |lambda| < 1. The
    factor keeps the size of the state; the paper's D x_t is left to the residual
    stream. Nothing here is nonlinear but in the feed-forwards between two of them.
    """

    num_states = 1

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, dtype = config.n_embd, config.param_dtype
        std = layers.residual_std(config.n_layer)
        # Real and imaginary parts side by side.
        self.input = layers.Linear(D, 2 * D, config, bias=False, rngs=rngs)
        self.out = layers.Linear(2 * D, D, config, std=std, bias=False, rngs=rngs)
        # Uniform in a ring of the complex plane.
        least, most = SMALLEST_RADIUS**2, LARGEST_RADIUS**2
        square = jax.random.uniform(rngs.params(), (D,), dtype, least, most)
        angle = 2 * math.pi * (1 - jax.random.uniform(rngs.params(), (D,), dtype))
        self.nu_log = nnx.Param(jnp.log(-0.5 * jnp.log(square)))
        self.theta_log = nnx.Param(jnp.log(angle))
        self.config = config

    @staticmethod
    def state_dtype(config: ModelConfig) -> jnp.dtype:
        """Returns the complex dtype of a state."""
        return jnp.promote_types(cpu.accumulator(config.dtype), jnp.complex64)

    def run(self, x_BTD: jax.Array, state: State) -> tuple[jax.Array, State]:
        """See `Recurrent.run`."""
        rate_D = jnp.exp(self.nu_log[...])
        lambda_D = jnp.exp(lax.complex(-rate_D, jnp.exp(self.theta_log[...])))
        factor_D = jnp.sqrt(-jnp.expm1(-2 * rate_D))  # 1 - |lambda|^2, not cancelled.
        b_BTD = lax.complex(*jnp.split(self.input(x_BTD), 2, -1)) * factor_D
        add_up = in_turn if self.config.kernels == "cpu" else at_once
        h_BTD = by_rows(add_up, lambda_D, b_BTD, state[0])
        parts_BTC = jnp.concatenate([h_BTD.real, h_BTD.imag], -1)
        return self.out(parts_BTC), (h_BTD,)


def at_once(lambda_D: jax.Array, b_BTD: jax.Array, h_BD: jax.Array) -> jax.Array:
    """Returns h_t = lambda h_{t-1} + b_t after h_BD, [B, T, D], in log T steps."""

    def combine(first, second):
        (a, h), (b, k) = first, second
        return a * b, b * h + k

    b_BTD = b_BTD.at[:, 0].add(lambda_D * h_BD)
    lambda_1TD = jnp.broadcast_to(lambda_D, (1, *b_BTD.shape[1:]))
    return lax.associative_scan(combine, (lambda_1TD, b_BTD), axis=1)[1]


def in_turn(lambda_D: jax.Array, b_BTD: jax.Array, h_BD: jax.Array) -> jax.Array:
    """Returns what `at_once` does, in T steps: on a CPU in 0.2 of its time."""

    def step(h_BD, b_BD):
        h_BD = lambda_D * h_BD + b_BD
        return h_BD, h_BD

    return lax.scan(step, h_BD, b_BTD.swapaxes(0, 1))[1].swapaxes(0, 1)
