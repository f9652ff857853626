"""Sampling sequences of a graph on the device: a scan over time, rows in parallel."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.model import rng
from jaxgpt.systems.gssm.graph import LatentGraph

Thresholds = dict[str, jax.Array]


def cumulative(table: jax.Array | np.ndarray, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Returns the cumulative sums of a kernel [inputs ..., states] for binary search.

    They are [N, W]: N combinations of inputs, and W the smallest power of two that is
    at least the number of states.
    """
    xp = np if isinstance(table, np.ndarray) else jnp
    states = table.shape[-1]
    sums = xp.cumsum(table, -1).reshape(-1, states)[:, :-1]
    # The last sum is 1 only up to rounding, or to 1e-6 in a kernel that is given: the
    # last possible state takes the rest. No uniform number reaches the padding, 2.
    last = states - 1 - (table > 0)[..., ::-1].argmax(-1).reshape(-1, 1)
    sums = xp.where(xp.arange(states - 1) < last, sums, 2)
    width = 1 << (states - 1).bit_length()
    padded = xp.pad(sums, ((0, 0), (0, width - states + 1)), constant_values=2)
    return jnp.asarray(padded, dtype)


def _search(thresholds: jax.Array, row_B: jax.Array, u_B: jax.Array) -> jax.Array:
    """Returns how many thresholds of each row are <= u: the new state [B]."""
    width = thresholds.shape[-1]
    flat, first_B = thresholds.reshape(-1), row_B * width
    state_B = jnp.zeros_like(row_B)
    step = width // 2
    # As many lookups as a state has bits, not as many as there are states.
    while step:
        below = flat[first_B + state_B + (step - 1)] <= u_B
        state_B = jnp.where(below, state_B + step, state_B)
        step //= 2
    return state_B


def step_states(
    graph: LatentGraph,
    thresholds: Thresholds,
    states: tuple[jax.Array, ...],
    uniforms: Sequence[jax.Array] | jax.Array,
) -> tuple[jax.Array, ...]:
    """Advances all nodes, in the order of `graph.order`, by one time step.

    Args:
      graph: of the nodes.
      thresholds: of each node, from `cumulative`, [N, W]; or [B, N, W] where each
        sequence has its own.
      states: of each node int32 [B]. A tuple: stacked into one array, XLA:CPU is
        several times slower.
      uniforms: of each node [B], in [0, 1).

    Returns:
      The new states, as the old ones.
    """
    index = {node.name: i for i, node in enumerate(graph.order)}
    new: dict[str, jax.Array] = {}
    for i, node in enumerate(graph.order):
        table = thresholds[node.name]
        row_B = jnp.zeros_like(states[i])
        if table.ndim == 3:
            row_B = jnp.arange(len(table), dtype=row_B.dtype)
        for name in graph.inputs(node):
            # Only a latent's own state and X's are read before they move.
            value_B = new[name] if name in new else states[index[name]]
            row_B = row_B * graph.by_name[name].state_dim + value_B
        new[node.name] = _search(table, row_B, uniforms[i])
    return tuple(new[node.name] for node in graph.order)


def initial_states(graph: LatentGraph, rows: int) -> tuple[jax.Array, ...]:
    """Returns the states at time 0: int32 zeros [rows] of each node."""
    return tuple(jnp.zeros(rows, jnp.int32) for _ in graph.order)


def sample_states(
    graph: LatentGraph, thresholds: Thresholds, key: jax.Array, rows: int, steps: int
) -> tuple[jax.Array, ...]:
    """Samples int32 states [steps, rows] of each node; time 0 is left out.

    A pure function of the key, to be jitted. `thresholds` are float32.
    """
    N = len(graph.order)
    seed_2 = jax.random.bits(key, (2,), jnp.uint32)
    row_B = jnp.arange(rows, dtype=jnp.uint32)

    def step(states, t):
        first = jnp.uint32(N) * t
        # Hashed inside the step: drawn by Threefry before the scan, the uniform numbers
        # took longer than everything else.
        uniforms = [
            rng.uniform((first + i) * jnp.uint32(rows) + row_B, seed_2)
            for i in range(N)
        ]
        states = step_states(graph, thresholds, states, uniforms)
        return states, states

    times = jnp.arange(steps, dtype=jnp.uint32)
    return jax.lax.scan(step, initial_states(graph, rows), times)[1]


def sample_nodes(
    graph: LatentGraph,
    thresholds: Thresholds,
    key: jax.Array,
    rows: int,
    length: int,
    first_token: str,
) -> dict[str, jax.Array]:
    """Samples {node: int32 states [rows, length]}; the observed node's are tokens.

    `first_token` is "start", where column 0 is the state 0 of time 0, or "drawn", where
    it is the first sampled state. For the rest see `sample_states`.
    """
    steps = length - (first_token == "start")
    drawn = sample_states(graph, thresholds, key, rows, steps)
    return {
        node.name: jnp.pad(states_TB, ((length - steps, 0), (0, 0))).T
        for node, states_TB in zip(graph.order, drawn, strict=True)
    }
