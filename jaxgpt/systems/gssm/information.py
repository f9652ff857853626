"""The information of the tokens so far, and of each latent, on the next token.

With the tokens so far x = x_0 .. x_t, the belief b(z) of the forward algorithm, and
G(z, v) = p(x_{t+1} = v | z_t = z, x_t), the joint distribution of one latent's state
and the next token is

    p(z_i = s, v | x) = sum over the z with z_i = s of b(z) G(z, v)

The information between the two, given these tokens, is exact; only its mean over x is
estimated from samples. The prior information, given no token, is exact altogether: the
distribution of (z, x_t) is moved through time instead of b.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr

from jaxgpt.errors import UserError
from jaxgpt.systems.gssm import baselines, likelihood
from jaxgpt.systems.gssm.graph import LatentGraph
from jaxgpt.systems.gssm.likelihood import Arrays
from jaxgpt.systems.gssm.process import GraphProcess

# Entries of G: joint states x next tokens, and x old tokens where X is a parent.
LARGEST_TABLE = 1 << 26


def decompose(
    process: GraphProcess, tokens_NT: np.ndarray, dtype: str = "float64"
) -> dict[str, Any]:
    """Returns the figures that `jaxgpt.gssm.decompose` describes.

    token_entropy and prior_information are exact, the others means over the sequences.

    Args:
      process: of the sequences, with known kernels.
      tokens_NT: integers.
      dtype: of the computation.

    Raises:
      UserError: as `likelihood.forward`; if a token is impossible; for too many joint
        states and tokens.
    """
    graph = process.graph
    found = by_token(graph, process.tables, tokens_NT, process.first_token, dtype)
    nan_NT = np.isnan(found["entropy"])
    if nan_NT.any():
        row, position = np.argwhere(nan_NT)[0].tolist()
        raise UserError(
            f"token {position} of sequence {row}, counted from 0, has probability 0 "
            "under these kernels: give the kernels that generated it"
        )
    T = tokens_NT.shape[1]
    prior = prior_information(graph, process.tables, T - 1, process.first_token)

    def figures(name: str, array_NT: np.ndarray) -> dict[str, float | None]:
        value, error = baselines.mean(array_NT)
        return {name: value, f"{name}_error": error}

    def of_latents(key: str) -> dict[str, float | None]:
        information = figures("information", found[f"information{key}"])
        uncertainty = figures("uncertainty", found[f"uncertainty{key}"])
        before = float(prior[f"information{key}"].mean())
        return {"prior_information": before} | information | uncertainty

    entropy = figures("entropy", found["entropy"])
    before = float(prior["entropy"].mean())
    return {
        "token_entropy": before,
        **entropy,
        "predictable": before - (entropy["entropy"] or 0.0),
        **figures("entropy_rate", found["entropy"][:, (T - 1) // 2 :]),
        "latents": {node.name: of_latents(f"/{node.name}") for node in graph.latents},
        "all_latents": of_latents(""),
    }


def by_token(
    graph: LatentGraph,
    tables: dict[str, np.ndarray],
    tokens_BT: np.ndarray,
    first_token: str = "start",
    dtype: str = "float64",
) -> dict[str, np.ndarray]:
    """Returns figures given the tokens so far, float64 [B, T - 1], in nats.

    The arguments are those of `likelihood.forward`.

    Returns:
      {"entropy": of the next token, NaN after an impossible one; "information/NAME":
      of a latent's state and the next token; "uncertainty/NAME": entropy of a latent's
      state; "information" and "uncertainty": of all latents together}.
    """
    work = _check_size(graph) * graph.observed.state_dim
    size = 3 + 2 * len(graph.latents)
    function = functools.partial(_by_token, graph)
    return likelihood.by_rows(
        graph, tables, tokens_BT, first_token, dtype, function, size, work
    )


def prior_information(
    graph: LatentGraph,
    tables: dict[str, np.ndarray],
    steps: int,
    first_token: str = "start",
) -> dict[str, np.ndarray]:
    """Returns the prior figures of each predicted token, float64 [steps].

    Returns:
      {"entropy": of the next token; "information/NAME" and "information": as of
      `by_token`}.
    """
    _check_size(graph)
    skipped = int(first_token == "drawn")
    with jax.enable_x64(True):
        arrays = {name: jnp.asarray(table, "float64") for name, table in tables.items()}
        found = jax.device_get(_prior(graph, arrays, steps + skipped))
    return {name: array[skipped:] for name, array in found.items()}


def _check_size(graph: LatentGraph) -> int:
    """Returns the joint states of the latents; UserError if G is too large."""
    V, S = graph.observed.state_dim, likelihood.check_size(graph)
    size = S * V * (V if _feedback(graph) else 1)
    if size > LARGEST_TABLE:
        raise UserError(
            f"{S:.3g} joint states of the latents and {V} tokens make a table of "
            f"{size:.3g} entries: a decomposition takes at most {LARGEST_TABLE}"
        )
    return S


def _feedback(graph: LatentGraph) -> bool:
    """Returns whether any node reads the old token."""
    return any(graph.observed.name in node.parents for node in graph.order)


def _next_token(graph: LatentGraph, tables: Arrays) -> jax.Array:
    """Returns G, [old tokens or 1, d_1 .. d_n, V]."""
    V = graph.observed.state_dim
    dims = [node.state_dim for node in graph.latents]
    old = V if _feedback(graph) else 1
    x_N, v_N = jnp.repeat(jnp.arange(old), V), jnp.tile(jnp.arange(V), old)
    p_N = jnp.broadcast_to(
        likelihood.emission(graph, tables)(x_N, v_N), (old * V, *dims)
    )
    # Moving a belief is linear in it: the transpose takes a function of the new states
    # to its mean given the old ones.
    move = lambda belief: likelihood.predict(graph, tables, belief, x_N)
    (table,) = jax.linear_transpose(move, p_N)(p_N)
    return jnp.moveaxis(table.reshape(old, V, *dims), 1, -1)


def _entropy(p: jax.Array) -> jax.Array:
    """Returns the entropies [B] of distributions [B, ...]."""
    return entr(p).reshape(len(p), -1).sum(1)


def _mutual(joint_BSV: jax.Array) -> jax.Array:
    """Returns the mutual information [B] of joint distributions."""
    alone = _entropy(joint_BSV.sum(1)) + _entropy(joint_BSV.sum(2))
    return alone - _entropy(joint_BSV)


def _with_next(
    graph: LatentGraph, belief: jax.Array, table: jax.Array
) -> dict[str, jax.Array]:
    """Returns {latent: p(its state, next token), [B, states, V]}.

    `belief` is [B, d_1 .. d_n], and the first axis of G, `table`, has length B or 1.
    """
    axes, new = list(range(belief.ndim)), belief.ndim
    own_rows = len(table) > 1
    table, of_table = (table, axes) if own_rows else (table[0], axes[1:])
    sums = lambda kept: jnp.einsum(
        belief, axes, table, [*of_table, new], kept, precision="highest"
    )
    names = [node.name for node in graph.latents]
    return {name: sums([0, axis, new]) for axis, name in enumerate(names, 1)}


@functools.partial(jax.jit, static_argnames="graph")
def _by_token(
    graph: LatentGraph, tables: Arrays, tokens_BT: jax.Array
) -> dict[str, jax.Array]:
    table = _next_token(graph, tables)
    # The entropy of the next token that remains once all latents are known.
    left = entr(table).sum(-1)
    feedback = _feedback(graph)

    def read(step: likelihood.Step) -> dict[str, jax.Array]:
        belief, B = step.before, len(step.before)
        rows = step.old_B if feedback else slice(None)
        p_BV = likelihood.observe(graph, tables, step.predicted, step.old_B)
        entropy_B = jnp.where(p_BV.sum(1) > 0, _entropy(p_BV), jnp.nan)
        known_B = (belief * left[rows]).reshape(B, -1).sum(1)
        found = {
            "entropy": entropy_B,
            "information": entropy_B - known_B,
            "uncertainty": _entropy(belief),
        }
        for name, joint_BSV in _with_next(graph, belief, table[rows]).items():
            found[f"information/{name}"] = _mutual(joint_BSV)
            found[f"uncertainty/{name}"] = _entropy(joint_BSV.sum(2))
        return found

    return likelihood.scan(graph, tables, tokens_BT, read)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _prior(graph: LatentGraph, tables: Arrays, steps: int) -> dict[str, jax.Array]:
    table = _next_token(graph, tables)
    old, V = len(table), graph.observed.state_dim
    x_V = jnp.arange(old)
    emission = likelihood.emission(graph, tables)

    def step(weights: jax.Array, _: None) -> tuple[jax.Array, dict[str, jax.Array]]:
        # Weights: p(old token, latents), or p(latents) if no node reads the old token.
        all_SV = (weights[..., None] * table).sum(0).reshape(1, -1, V)
        found = {"entropy": _entropy(all_SV.sum(1))[0]}
        found["information"] = _mutual(all_SV)[0]
        for name, joint_BSV in _with_next(graph, weights, table).items():
            found[f"information/{name}"] = _mutual(joint_BSV.sum(0, keepdims=True))[0]
        weights = likelihood.predict(graph, tables, weights, x_V)
        if old > 1:
            new = lambda v: (weights * emission(x_V, jnp.full(V, v))).sum(0)
            weights = jax.lax.map(new, x_V)
        return weights, found

    first = likelihood.rest(graph, tables, old).at[1:].set(0)
    return jax.lax.scan(step, first, length=steps)[1]
