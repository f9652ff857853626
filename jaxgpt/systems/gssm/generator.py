"""Sequences of a graph, drawn on the device: a scan over time, the batch in parallel.

A new state is the first whose cumulative probability exceeds a uniform number, found
by binary search: as many lookups per state as it has bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.model import rng
from jaxgpt.systems.gssm.graph import Graph

Cumulative = dict[str, jax.Array]


def cumulative(table: jax.Array | np.ndarray, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Returns thresholds [rows, W] of a table [inputs ..., states] for `_search`.

    The last sum is left out, which is 1 but for rounding; rows are filled up with 2,
    never reached, to the next power of two.
    """
    xp = np if isinstance(table, np.ndarray) else jnp
    states = table.shape[-1]
    sums = xp.cumsum(table, -1).reshape(-1, states)[:, :-1]
    width = 1 << (states - 1).bit_length()
    filled = xp.pad(sums, ((0, 0), (0, width - states + 1)), constant_values=2)
    return jnp.asarray(filled, dtype)


def _search(thresholds_NW: jax.Array, row_B: jax.Array, u_B: jax.Array) -> jax.Array:
    """Returns how many thresholds of each row do not exceed u: the new state [B]."""
    width = thresholds_NW.shape[1]
    flat, first_B = thresholds_NW.reshape(-1), row_B * width
    state_B = jnp.zeros_like(row_B)
    step = width // 2
    while step:
        below = flat[first_B + state_B + (step - 1)] <= u_B
        state_B = jnp.where(below, state_B + step, state_B)
        step //= 2
    return state_B


def step_states(
    graph: Graph,
    thresholds: Cumulative,
    states: tuple[jax.Array, ...],
    uniforms: Sequence[jax.Array] | jax.Array,
) -> tuple[jax.Array, ...]:
    """Advances all nodes by one step.

    States are a tuple: stacked into one array, XLA:CPU is several times slower.

    Args:
      graph: of N nodes that evolve.
      thresholds: of each node, from `cumulative`.
      states: N int32 arrays [B], the old states, nodes as in `graph.order`.
      uniforms: N arrays [B], a uniform number for each new state.

    Returns:
      The new states.
    """
    index = {node.name: i for i, node in enumerate(graph.order)}
    new: dict[str, jax.Array] = {}
    for i, node in enumerate(graph.order):
        row_B = jnp.zeros_like(states[i])
        for name in graph.inputs(node):
            # Only a latent's own state and X's are read before they move.
            value_B = new[name] if name in new else states[index[name]]
            row_B = row_B * graph.by_name[name].state_dim + value_B
        new[node.name] = _search(thresholds[node.name], row_B, uniforms[i])
    return tuple(new[node.name] for node in graph.order)


def initial_states(graph: Graph, rows: int) -> tuple[jax.Array, ...]:
    """Returns the states at time 0, all 0."""
    return tuple(jnp.zeros(rows, jnp.int32) for _ in graph.order)


@functools.partial(jax.jit, static_argnums=0)
def replay(graph: Graph, thresholds: Cumulative, uniforms_TNB: jax.Array) -> jax.Array:
    """Returns the states [T, N, B] after each step from rest, for given numbers."""

    def step(states, uniforms_NB):
        states = step_states(graph, thresholds, states, uniforms_NB)
        return states, jnp.stack(states)

    return jax.lax.scan(
        step, initial_states(graph, uniforms_TNB.shape[2]), uniforms_TNB
    )[1]


def trajectories(
    graph: Graph, thresholds: Cumulative, key: jax.Array, rows: int, steps: int
) -> tuple[jax.Array, ...]:
    """Draws int32 states [steps, rows] of each node, from rest, which is left out.

    A pure function of key; to be jitted. Uniform numbers are hashed inside the step:
    drawn by Threefry before it, they took longer than all else.

    Args:
      graph: what evolves.
      thresholds: float32, of each node, from `cumulative`.
      key: of the draws.
      rows: sequences.
      steps: of time.
    """
    N = len(graph.order)
    seed_2 = jax.random.bits(key, (2,), jnp.uint32)
    row_B = jnp.arange(rows, dtype=jnp.uint32)

    def step(states, t):
        first = jnp.uint32(N) * t
        uniforms = [
            rng.uniform((first + i) * jnp.uint32(rows) + row_B, seed_2)
            for i in range(N)
        ]
        states = step_states(graph, thresholds, states, uniforms)
        return states, states

    times = jnp.arange(steps, dtype=jnp.uint32)
    return jax.lax.scan(step, initial_states(graph, rows), times)[1]


def sequences(
    graph: Graph,
    thresholds: Cumulative,
    key: jax.Array,
    rows: int,
    length: int,
    first_token: str,
) -> jax.Array:
    """Draws int32 tokens [rows, length] of the observed node (see `trajectories`).

    Args:
      graph, thresholds, key, rows: as there.
      length: tokens of each sequence.
      first_token: "start" begins with the state 0 that all nodes are in at time 0;
        "drawn" with the first state drawn.
    """
    steps = length - (first_token == "start")
    tokens_TB = trajectories(graph, thresholds, key, rows, steps)[-1]
    return jnp.pad(tokens_TB, ((length - steps, 0), (0, 0))).T
