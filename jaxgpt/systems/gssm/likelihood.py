"""The exact likelihood of observed sequences: the forward algorithm.

The belief b(z_1 .. z_n) is the distribution of the latents given the tokens so far. A
step replaces each latent's axis in turn, in the order of evolution:

    b(.., z_i', ..) = sum over z_i of b(.., z_i, ..) p(z_i' | z_i, parents)

where the axes of the parents already hold new states and only z_i itself is read
before it moves. Then the new token's probability is the sum of b p(x' | parents), and
b is what that leaves, normalised. A step costs S sum d_i operations, not S^2, for
S = d_1 .. d_n joint states.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.errors import UserError
from jaxgpt.systems.gssm.graph import LatentGraph, Node

# One product with the whole [S, S] transition is as fast as the factors up to here.
DENSE_STATES = 256
# Elements of a belief, of all rows scored at a time.
LARGEST_BELIEF = 1 << 24
LARGEST_STATE = 1 << 28

Arrays = Mapping[str, jax.Array]


def joint_states(graph: LatentGraph) -> int:
    """Returns S, the number of joint states of the latents."""
    return math.prod(node.state_dim for node in graph.latents)


def score(
    graph: LatentGraph,
    tables: Mapping[str, np.ndarray],
    tokens_BT: np.ndarray,
    first_token: str = "start",
    dtype: str = "float32",
) -> np.ndarray:
    """Returns -log p(token t + 1 | tokens 0 .. t), float64 [B, T - 1], in nats.

    An impossible token costs infinity, and so does everything after it.

    Args:
      graph: of the nodes.
      tables: of each node, as in kernels.py.
      tokens_BT: integers.
      first_token: what column 0 holds, as in `sequences.sample_nodes`.
      dtype: computed in.

    Raises:
      UserError: if a token is not a state of the observed node, or the joint state
        of the latents is too large.
    """
    _check_tokens(graph, tokens_BT, first_token)
    states = joint_states(graph)
    if states > LARGEST_STATE:
        raise UserError(
            f"the latents have {states:.3g} joint states: the exact likelihood takes "
            f"at most {LARGEST_STATE}"
        )
    tokens_BT = np.asarray(tokens_BT, np.int32)
    largest = max([states, *(_gathered_size(graph, node) for node in graph.order)])
    rows = max(1, min(len(tokens_BT), LARGEST_BELIEF // largest))
    parts = []
    # Only here: float64 elsewhere would change what a caller's own arrays become.
    with jax.enable_x64(dtype == "float64"):
        arrays = {name: jnp.asarray(table, dtype) for name, table in tables.items()}
        for start in range(0, len(tokens_BT), rows):
            # A last short part is filled up rather than compiled for.
            index = np.arange(start, start + rows) % len(tokens_BT)
            part = nll(graph, arrays, tokens_BT[index], first_token)
            parts.append(np.asarray(part, np.float64)[: len(tokens_BT) - start])
    return np.concatenate(parts)


def _check_tokens(graph: LatentGraph, tokens_BT: np.ndarray, first_token: str) -> None:
    states = graph.observed.state_dim
    wrong = tokens_BT[(tokens_BT < 0) | (tokens_BT >= states)]
    if wrong.size:
        raise UserError(
            f"tokens must be states 0 .. {states - 1} of the graph's "
            f"{graph.observed.name}, got {wrong[0]}"
        )
    if first_token == "start" and tokens_BT[:, 0].any():
        raise UserError(
            "the tokens do not begin with the start state 0: are they of "
            "gssm.first_token=drawn?"
        )


def _gathered_size(graph: LatentGraph, node: Node) -> int:
    """Returns the size of a row's part of the table where X selects it, else 0."""
    if graph.observed.name not in graph.inputs(node):
        return 0
    return math.prod(graph.shape(node)) // graph.observed.state_dim


@functools.partial(jax.jit, static_argnums=(0, 3))
def nll(
    graph: LatentGraph, tables: Arrays, tokens_BT: jax.Array, first_token: str
) -> jax.Array:
    """Returns -log p(token t + 1 | tokens 0 .. t), [B, T - 1], as `score`."""
    tokens_TB = tokens_BT.T
    if first_token == "drawn":
        tokens_TB = jnp.pad(tokens_TB, ((1, 0), (0, 0)))
    B = tokens_BT.shape[0]
    dims = [node.state_dim for node in graph.latents]
    S, dtype = math.prod(dims), tables[graph.observed.name].dtype
    feedback = any(graph.observed.name in node.parents for node in graph.latents)
    predict = lambda b, x_B: _predict(graph, tables, b, x_B)
    if not feedback and S <= DENSE_STATES:
        every = jnp.eye(S, dtype=dtype).reshape(S, *dims)
        transition_ZZ = _predict(graph, tables, every, None).reshape(S, S)
        predict = lambda b, _: jnp.dot(
            b.reshape(B, S), transition_ZZ, precision="highest"
        ).reshape(b.shape)
    emission = _emission(graph, tables[graph.observed.name])

    def step(belief, tokens_2B):
        old_B, new_B = tokens_2B
        joint = predict(belief, old_B) * emission(old_B, new_B)
        p_B = joint.reshape(B, -1).sum(1)
        scale_B = jnp.where(p_B > 0, 1 / p_B, 0)
        return joint * scale_B.reshape(B, *[1] * len(dims)), -jnp.log(p_B)

    rest = jnp.zeros((B, S), dtype).at[:, 0].set(1).reshape(B, *dims)
    pairs_T2B = jnp.stack([tokens_TB[:-1], tokens_TB[1:]], 1)
    nll_TB = jax.lax.scan(step, rest, pairs_T2B)[1]
    return nll_TB.T if first_token == "start" else nll_TB[1:].T


def _predict(
    graph: LatentGraph, tables: Arrays, belief: jax.Array, x_B: jax.Array | None
) -> jax.Array:
    """Moves every latent: beliefs [B, d_1 .. d_n] to the same of the next time."""
    axes = {node.name: 1 + i for i, node in enumerate(graph.latents)}
    moved = 1 + len(axes)
    for node in graph.latents:
        table, inputs = tables[node.name], list(graph.inputs(node))
        places = [axes.get(name, 0) for name in inputs]
        if graph.observed.name in inputs:
            at = inputs.index(graph.observed.name)
            table = jnp.moveaxis(table, at, 0)[x_B]
            places = [0, *places[:at], *places[at + 1 :]]
        own = axes[node.name]
        every = list(range(moved))
        result = [moved if axis == own else axis for axis in every]
        belief = jnp.einsum(
            belief, every, table, [*places, moved], result, precision="highest"
        )
    return belief


def _emission(graph: LatentGraph, table: jax.Array):
    """Returns (old tokens, new tokens) -> p(new | ..) over the latents, [B, d_1 ..].

    Latents that X does not read have an axis of length 1.
    """
    X, inputs = graph.observed.name, graph.observed.parents
    names = [node.name for node in graph.latents if node.name in inputs]
    feedback = X in inputs
    first = [len(inputs), inputs.index(X)] if feedback else [len(inputs)]
    order = first + [inputs.index(name) for name in names]
    dims = [n.state_dim if n.name in names else 1 for n in graph.latents]
    states = graph.observed.state_dim
    rows = table.transpose(order).reshape(-1, *dims)
    if feedback:
        return lambda old_B, new_B: rows[new_B * states + old_B]
    return lambda _, new_B: rows[new_B]
