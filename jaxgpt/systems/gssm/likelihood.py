"""Exact likelihoods, predictions and beliefs of sequences: the forward algorithm.

The belief b(z_1 .. z_n) is the distribution of the latents given the tokens so far. A
step replaces each latent's axis in turn, in the order of evolution:

    b(.., z_i', ..) = sum over z_i of b(.., z_i, ..) p(z_i' | z_i, parents)

where the axes of the parents already hold new states and only z_i itself is read
before it moves. Then the new token's probability is the sum of b p(x' | parents), and
b is what that leaves, normalised. A step costs S sum d_i operations, not S^2, for
S = d_1 .. d_n joint states; the probabilities of all V next tokens cost S V more.
"""

from __future__ import annotations

import decimal
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.errors import UserError
from jaxgpt.systems.gssm.graph import LatentGraph, Node, check_memory, memory

# One product with the whole [S, S] transition is as fast as the factors up to here.
DENSE_STATES = 256
# Elements of a belief, or of what is returned, of all rows scored at a time.
LARGEST_BELIEF = 1 << 24
LARGEST_STATE = 1 << 28
# Of a float64 belief of one row: 5.2 were measured.
COPIES = 6

Arrays = Mapping[str, jax.Array]


def joint_states(graph: LatentGraph) -> int:
    """Returns S, the number of joint states of the latents."""
    return math.prod(node.state_dim for node in graph.latents)


def check_size(graph: LatentGraph) -> int:
    """Returns the joint states; UserError if there are too many for a likelihood."""
    states = joint_states(graph)
    most = min(LARGEST_STATE, memory() // (8 * COPIES))
    if states > most:
        # A float may overflow.
        raise UserError(
            f"the latents have {decimal.Decimal(states):.3g} joint states: the exact "
            f"likelihood takes at most {most} on this machine"
        )
    return states


def forward(
    graph: LatentGraph,
    tables: Mapping[str, np.ndarray],
    tokens_BT: np.ndarray,
    first_token: str = "start",
    dtype: str = "float32",
    wanted: str = "nll",
    own: Arrays | None = None,
) -> Any:
    """Returns the likelihood, predictions or beliefs of sequences, as float64.

    An impossible token costs infinity, and so does everything after it; beliefs from
    there on, and predictions from the next token on, are 0 throughout.

    Args:
      graph, tables: as in kernels.py.
      tokens_BT: integers.
      first_token: what column 0 holds, as in `sequences.sample_nodes`.
      dtype: of the computation.
      wanted: one of
        "nll": -log p(token t + 1 | tokens 0 .. t), [B, T - 1], in nats;
        "predictive": p(next token | tokens 0 .. t), [B, T - 1, V];
        "beliefs": {latent: p(its state at t | tokens 0 .. t), [B, T, states]};
        "joint": p(all latents' states at t | tokens 0 .. t), [B, T, d_1 .. d_n].
      own: tables [B, ...] that differ between sequences, in place of those above.

    Raises:
      UserError: if a token is not a state of the observed node, or the joint state
        of the latents, or the result, is too large.
    """
    size = {
        "nll": 1,
        "predictive": graph.observed.state_dim,
        "beliefs": sum(node.state_dim for node in graph.latents),
        "joint": joint_states(graph),
    }[wanted]
    function = functools.partial(compute, graph, wanted=wanted)
    work = 0
    if own:
        dense = joint_states(graph) ** 2 if joint_states(graph) <= DENSE_STATES else 0
        work = sum(math.prod(table.shape[1:]) for table in own.values()) + dense
    found = by_rows(
        graph, tables, tokens_BT, first_token, dtype, function, size, work, own
    )
    if wanted == "beliefs":  # JAX sorts keys.
        return {node.name: found[node.name] for node in graph.latents}
    return found


def by_rows(
    graph: LatentGraph,
    tables: Mapping[str, np.ndarray],
    tokens_BT: np.ndarray,
    first_token: str,
    dtype: str,
    function: Callable[..., Any],
    size: int,
    work: int = 0,
    own: Arrays | None = None,
) -> Any:
    """Returns function(tables, tokens), of as many rows at a time as fit; float64.

    Args:
      graph, tables, tokens_BT, first_token, dtype, own: as of `forward`.
      function: of tokens from time 0 on; returns a tree of arrays [B, steps, ...].
      size: how many numbers it returns for each token.
      work: how many it holds at a time for each row, if they are many.

    Raises:
      UserError: as `forward`.
    """
    B, T = tokens_BT.shape
    states = check_size(graph)
    check_result(tokens_BT, size)
    check_tokens(graph, tokens_BT, first_token)
    tokens_BT = from_time_0(np.asarray(tokens_BT, np.int32), first_token)
    unpredicted = tokens_BT.shape[1] - T
    largest = max(states, work, *(_gathered_size(graph, n) for n in graph.order))
    if size > 1:
        largest = max(largest, T * size)
    rows = max(1, min(B, LARGEST_BELIEF // largest))
    parts = []
    # Only here: float64 elsewhere would change what a caller's own arrays become.
    with jax.enable_x64(dtype == "float64"):
        arrays = {name: jnp.asarray(table, dtype) for name, table in tables.items()}
        for start in range(0, B, rows):
            # The last part is padded to full size, since each shape is compiled for.
            index = np.arange(start, start + rows) % B
            if own:
                of_rows = {n: jnp.asarray(t[index], dtype) for n, t in own.items()}
                found = _each_row(function, arrays, of_rows, tokens_BT[index])
            else:
                found = function(arrays, tokens_BT[index])
            real = np.s_[: B - start, unpredicted:]
            keep = lambda array, real=real: np.asarray(array, np.float64)[real]
            parts.append(jax.tree.map(keep, jax.device_get(found)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def check_result(tokens_BT: np.ndarray, size: int) -> None:
    """Raises UserError if `size` float64 numbers for each token do not fit."""
    B, T = tokens_BT.shape
    what = f"{size} numbers for each of {B} x {T} tokens"
    check_memory(8 * B * T * size, what, "give fewer sequences")


def _each_row(
    function: Callable[..., Any], tables: Arrays, own: Arrays, tokens_BT: np.ndarray
) -> Any:
    """Returns function(tables, tokens) where each row has its own tables."""

    def one(own: Arrays, tokens_T: Any) -> Any:
        found = function({**tables, **own}, tokens_T[None])
        return jax.tree.map(lambda array: array[0], found)

    return jax.vmap(one)(own, tokens_BT)


def from_time_0(tokens_BT: np.ndarray, first_token: str) -> np.ndarray:
    """Returns tokens with the state 0 of time 0, which a drawn first one follows."""
    return np.pad(tokens_BT, ((0, 0), (int(first_token == "drawn"), 0)))


def check_tokens(graph: LatentGraph, tokens_BT: np.ndarray, first_token: str) -> None:
    """Raises UserError unless the tokens [B, T] can be those of the graph."""
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


def impossible(nll_NT: np.ndarray) -> str:
    """Returns which token is the first of probability 0, "" if all are possible."""
    if not (found := np.argwhere(np.isposinf(nll_NT))).size:
        return ""
    row, position = found[0].tolist()
    rows = len(np.unique(found[:, 0]))
    return (
        f"token {position + 1} of sequence {row}, counted from 0, has probability 0 "
        f"after those before it ({rows} of {len(nll_NT)} sequences have such a token)"
    )


def _gathered_size(graph: LatentGraph, node: Node) -> int:
    """Returns the size of a row's part of the table where X selects it, else 0."""
    if graph.observed.name not in graph.inputs(node):
        return 0
    return math.prod(graph.shape(node)) // graph.observed.state_dim


@functools.partial(jax.jit, static_argnames=("graph", "wanted"))
def compute(
    graph: LatentGraph, tables: Arrays, tokens_BT: jax.Array, wanted: str = "nll"
) -> Any:
    """Returns what `forward` does, of tokens from the state 0 of time 0 on."""
    reads: dict[str, Callable[[Step], Any]] = {
        "nll": lambda step: -jnp.log(step.p_B),
        "predictive": lambda step: observe(graph, tables, step.predicted, step.old_B),
        "beliefs": lambda step: marginals(graph, step.belief),
        "joint": lambda step: step.belief,
    }
    found = scan(graph, tables, tokens_BT, reads[wanted])
    if wanted in ("nll", "predictive"):
        return found
    first: Any = rest(graph, tables, len(tokens_BT))
    if wanted == "beliefs":
        first = marginals(graph, first)
    join = lambda one, later: jnp.concatenate([one[:, None], later], 1)
    return jax.tree.map(join, first, found)


class Step(NamedTuple):
    """What a step of the forward algorithm knows, [B, ...].

    Attributes:
      old_B: the token before.
      before: the distribution of the latents' old states, given the tokens up to it.
      predicted: the distribution of the latents' new states before the new token is
        read, [B, d_1 .. d_n].
      belief: the same once it is read.
      p_B: the probability of the new token.
    """

    old_B: jax.Array
    before: jax.Array
    predicted: jax.Array
    belief: jax.Array
    p_B: jax.Array


def scan(
    graph: LatentGraph,
    tables: Arrays,
    tokens_BT: jax.Array,
    read: Callable[[Step], Any],
) -> Any:
    """Returns read(step) of the T - 1 steps, a tree of arrays [B, T - 1, ...].

    Tokens are from the state 0 of time 0 on.
    """
    tokens_TB, B = tokens_BT.T, len(tokens_BT)
    first = rest(graph, tables, B)
    dims, dtype = first.shape[1:], first.dtype
    S = math.prod(dims)
    feedback = any(graph.observed.name in node.parents for node in graph.latents)
    move = lambda b, x_B: predict(graph, tables, b, x_B)
    # At the default precision GPUs and TPUs would round the factors of products to TF32
    # or bfloat16, which is more than the gaps that are measured.
    if not feedback and S <= DENSE_STATES:
        every = jnp.eye(S, dtype=dtype).reshape(S, *dims)
        transition_ZZ = predict(graph, tables, every, None).reshape(S, S)
        move = lambda b, _: jnp.dot(
            b.reshape(B, S), transition_ZZ, precision="highest"
        ).reshape(b.shape)
    likelihood = emission(graph, tables)

    def step(belief, tokens_2B):
        old_B, new_B = tokens_2B
        predicted = move(belief, old_B)
        joint = predicted * likelihood(old_B, new_B)
        p_B = joint.reshape(B, -1).sum(1)
        # After an impossible token the belief is 0, not NaN.
        scale_B = jnp.where(p_B > 0, 1 / p_B, 0)
        after = joint * scale_B.reshape(B, *[1] * len(dims))
        return after, read(Step(old_B, belief, predicted, after, p_B))

    pairs_T2B = jnp.stack([tokens_TB[:-1], tokens_TB[1:]], 1)
    found = jax.lax.scan(step, first, pairs_T2B)[1]
    return jax.tree.map(lambda array: array.swapaxes(0, 1), found)


def rest(graph: LatentGraph, tables: Arrays, rows: int) -> jax.Array:
    """Returns the belief at time 0, [rows, d_1 .. d_n]: every latent is in state 0."""
    dims = [node.state_dim for node in graph.latents]
    dtype = tables[graph.observed.name].dtype
    return jnp.zeros((rows, math.prod(dims)), dtype).at[:, 0].set(1).reshape(-1, *dims)


def marginals(graph: LatentGraph, belief: jax.Array) -> dict[str, jax.Array]:
    """Returns {latent: [B, states]} of a belief [B, d_1 .. d_n]."""
    axes = range(1, belief.ndim)
    return {
        node.name: belief.sum([axis for axis in axes if axis != own])
        for own, node in zip(axes, graph.latents, strict=True)
    }


def predict(
    graph: LatentGraph, tables: Arrays, belief: jax.Array, x_B: jax.Array | None
) -> jax.Array:
    """Moves every latent: beliefs [B, d_1 .. d_n] to the same of the next time."""
    axes = {node.name: 1 + i for i, node in enumerate(graph.latents)}
    moved = 1 + len(axes)
    for node in graph.latents:
        table, places = _given_token(graph, tables, node, axes, x_B)
        own = axes[node.name]
        every = list(range(moved))
        result = [moved if axis == own else axis for axis in every]
        belief = jnp.einsum(
            belief, every, table, [*places, moved], result, precision="highest"
        )
    return belief


def _given_token(
    graph: LatentGraph,
    tables: Arrays,
    node: Node,
    axes: Mapping[str, int],
    x_B: jax.Array | None,
) -> tuple[jax.Array, list[int]]:
    """Returns a node's table for old tokens, and where its inputs' axes are.

    Where X is not an input the table has no axis of rows, which is axis 0.
    """
    table, inputs, X = tables[node.name], graph.inputs(node), graph.observed.name
    places = [axes[name] for name in inputs if name != X]
    if X not in inputs:
        return table, places
    return jnp.moveaxis(table, inputs.index(X), 0)[x_B], [0, *places]


def emission(
    graph: LatentGraph, tables: Arrays
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns (old tokens, new tokens) -> p(new | ..) over the latents, [B, d_1 ..].

    Latents that X does not read have an axis of length 1.
    """
    X, inputs = graph.observed.name, graph.observed.parents
    table = tables[X]
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


def observe(
    graph: LatentGraph, tables: Arrays, predicted: jax.Array, old_B: jax.Array
) -> jax.Array:
    """Returns the distribution [B, V] of X for one of the latents, [B, d_1 .. d_n]."""
    axes = {node.name: 1 + i for i, node in enumerate(graph.latents)}
    table, places = _given_token(graph, tables, graph.observed, axes, old_B)
    every, new = list(range(predicted.ndim)), predicted.ndim
    return jnp.einsum(
        predicted, every, table, [*places, new], [0, new], precision="highest"
    )
