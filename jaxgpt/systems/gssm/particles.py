"""Bounds on the Bayes floor of a context graph where it has no closed form.

Both estimators give Z with mean p(x), so that by Jensen's inequality the mean of -log Z
is at least -log p(x). If one of the particles is the truth behind the sampled sequence,
which is an exact draw from the posterior, the mean of 1 / Z is 1 / p(x), and that of
-log Z at most -log p(x) (Grosse, Ghahramani and Adams 2015). The figures by position
are differences of log Z of the tokens so far; the bounds hold for their sums.

Where every context node's kernel is conjugate, a particle is a path of the latents, and
kernels are integrated out: given the path so far, a node's next state has probability
(alpha + n) / (d alpha + n_row), if it came n of the n_row times that its row of the
kernel was used. New latents are drawn from their exact distribution given the new
token, so that a particle's weight is the token's probability. The truth is the path
that was drawn.

Elsewhere a particle is a draw of the kernels, whose weight is the exact likelihood. The
truth is the kernels that were drawn.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.data.arrays import batched
from jaxgpt.systems.gssm import kernels, likelihood
from jaxgpt.systems.gssm.graph import LatentGraph, Node, check_memory

# Numbers held by all particles of the sequences estimated at a time.
LARGEST_PARTICLES = 1 << 22
# Copies of the particles that a step may take.
COPIES = 4

Arrays = Mapping[str, jax.Array]


def filtered(
    graph: LatentGraph,
    tables: Mapping[str, np.ndarray],
    tokens_NT: np.ndarray,
    count: int,
    key: jax.Array,
    paths: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Returns -log Z of each token after the first by its increments, [N, T - 1].

    Every context node's kernel must be conjugate (`kernels.is_conjugate`).

    Args:
      graph, tables: as in kernels.py; tables of context nodes are not used.
      tokens_NT: integers, from the state 0 of time 0 on.
      count: of particles.
      key: of the random numbers; row n folds in n.
      paths: {latent: states [N, T]} behind the tokens, to be one of the particles.

    Raises:
      UserError: if the particles of one sequence do not fit.
    """
    log_tables = {}
    with np.errstate(divide="ignore"):
        for node in graph.order:
            if node.mode != "context":
                flat = tables[node.name].reshape(-1, node.state_dim)
                log_tables[node.name] = jnp.asarray(np.log(flat), jnp.float32)
    arrays = {"tokens": np.asarray(tokens_NT, np.int32)}
    for node in graph.latents:
        path = paths[node.name] if paths else np.zeros_like(tokens_NT)
        arrays[node.name] = np.asarray(path, np.int32)
    held = sum(math.prod(graph.shape(node)) for node in graph.context)
    held += 2 * likelihood.joint_states(graph)
    run = functools.partial(_filter, graph, count, paths is not None, log_tables)
    return _by_rows(run, arrays, count, held, key)


def weighted(
    graph: LatentGraph,
    tables: Mapping[str, np.ndarray],
    tokens_NT: np.ndarray,
    count: int,
    key: jax.Array,
    clip: float,
    known_NT: np.ndarray | None = None,
) -> np.ndarray:
    """Returns -log Z of each token after the first by its increments, [N, T - 1].

    Args:
      graph, tables, tokens_NT, count, key: as of `filtered`, of any kernels.
      clip: of the kernels that are drawn.
      known_NT: the score under the kernels behind the tokens, [N, T - 1], to be one of
        the particles.

    Raises:
      UserError: if the kernels of one sequence do not fit.
    """
    fixed = {
        node.name: jnp.asarray(tables[node.name], jnp.float32)
        for node in graph.order
        if node.mode != "context"
    }
    arrays = {"tokens": np.asarray(tokens_NT, np.int32)}
    if known_NT is not None:
        arrays["known"] = known_NT.astype(np.float32)
    S = likelihood.joint_states(graph)
    held = sum(math.prod(graph.shape(node)) for node in graph.context)
    held += S * S if S <= likelihood.DENSE_STATES else S
    run = functools.partial(_weigh, graph, count, clip, fixed)
    return _by_rows(run, arrays, count, held, key)


def _by_rows(
    run: Any, arrays: dict[str, np.ndarray], count: int, held: int, key: jax.Array
) -> np.ndarray:
    """Returns run(arrays, keys), of as many rows at a time as fit; float64.

    `held` is the size of a particle.
    """
    what = f"gssm.particles={count}: each holds {held:,} numbers, which"
    check_memory(COPIES * 4 * count * held, what, "lower it")
    N = len(arrays["tokens"])
    rows = max(1, min(N, LARGEST_PARTICLES // (count * held)))
    parts = []
    for batch, real in batched(arrays | {"row": np.arange(N)}, rows):
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(batch.pop("row"))
        parts.append(np.asarray(run(batch, keys), np.float64)[:real])
    nll_NT = np.concatenate(parts)
    # What follows an impossible token costs infinity too.
    return np.where(np.maximum.accumulate(np.isinf(nll_NT), 1), np.inf, nll_NT)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _weigh(
    graph: LatentGraph,
    count: int,
    clip: float,
    tables: Arrays,
    arrays: Arrays,
    keys_R: jax.Array,
) -> jax.Array:
    means = {
        node.name: jnp.full(graph.shape(node), 1 / node.state_dim)
        for node in graph.context
    }

    def score(key: jax.Array, tokens_T: jax.Array) -> jax.Array:
        drawn = kernels.draw_context_tables(key, graph, clip)
        own = {name: jnp.exp(log_p) for name, log_p in drawn.items()}
        return likelihood.compute(graph, {**tables, **own}, tokens_T[None])[0]

    def row(key: jax.Array, row: Arrays) -> jax.Array:
        keys_P = jax.random.split(key, count)
        log_p_PT = -jax.vmap(score, (0, None))(keys_P, row["tokens"]).cumsum(1)
        if "known" in row:
            log_p_PT = log_p_PT.at[0].set(-row["known"].cumsum())
        log_z_T = jax.nn.logsumexp(log_p_PT, axis=0) - math.log(count)
        # The first token is exact: no row is used twice, and the mean row is uniform.
        begin_12 = row["tokens"][None, :2]
        first = likelihood.compute(graph, {**tables, **means}, begin_12)
        log_z_T = log_z_T.at[0].set(-first[0, 0])
        return -jnp.diff(log_z_T, prepend=0)

    return jax.vmap(row)(keys_R, dict(arrays))


class _Particles(NamedTuple):
    """P particles of one sequence.

    Attributes:
      states: {latent: int32 [P]}.
      seen: {context node: alpha + n, [P, rows, states]}.
      total: {context node: its sums over states, [P, rows]}.
    """

    states: dict[str, jax.Array]
    seen: dict[str, jax.Array]
    total: dict[str, jax.Array]


def _first(graph: LatentGraph, count: int) -> _Particles:
    zeros = {node.name: jnp.zeros(count, jnp.int32) for node in graph.latents}
    seen, total = {}, {}
    for node in graph.context:
        shape = count, math.prod(graph.shape(node)[:-1]), node.state_dim
        seen[node.name] = jnp.full(shape, node.alpha, jnp.float32)
        total[node.name] = jnp.full(shape[:2], node.alpha * shape[2], jnp.float32)
    return _Particles(zeros, seen, total)


def _row_of(graph: LatentGraph, node: Node, old: Arrays, new: Arrays) -> Any:
    """Returns which row of a node's flat table its inputs choose."""
    row: Any = 0
    for name in graph.inputs(node):
        value = old[name] if name in (node.name, graph.observed.name) else new[name]
        row = row * graph.by_name[name].state_dim + value
    return row


def _log_joint(
    graph: LatentGraph,
    log_tables: Arrays,
    particle: _Particles,
    old_x: jax.Array,
    new_x: jax.Array,
) -> jax.Array:
    """Returns log p(new latents, new token | a particle), [S]."""
    dims = [node.state_dim for node in graph.latents]
    grid = jnp.meshgrid(*map(jnp.arange, dims), indexing="ij", sparse=True)
    X = graph.observed.name
    old = particle.states | {X: old_x}
    new = {n.name: g for n, g in zip(graph.latents, grid, strict=True)} | {X: new_x}
    total = jnp.zeros(dims)
    for node in graph.order:
        row, state = _row_of(graph, node, old, new), new[node.name]
        if node.mode == "context":
            seen, all_states = particle.seen[node.name], particle.total[node.name]
            total += jnp.log(seen[row, state]) - jnp.log(all_states[row])
        else:
            total += log_tables[node.name][row, state]
    return total.reshape(-1)


def _move(
    graph: LatentGraph, particle: _Particles, old_x: jax.Array, new: dict[str, Any]
) -> _Particles:
    """Returns a particle after a step to new states, the token's included."""
    old = particle.states | {graph.observed.name: old_x}
    seen, total = dict(particle.seen), dict(particle.total)
    for node in graph.context:
        row, name = _row_of(graph, node, old, new), node.name
        seen[name] = seen[name].at[row, new[name]].add(1)
        total[name] = total[name].at[row].add(1)
    states = {node.name: new[node.name] for node in graph.latents}
    return _Particles(states, seen, total)


def _resample(
    weight_P: jax.Array, u: jax.Array, truth: jax.Array, has_truth: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns the particles that survive, [P], and the truth's place among them.

    Systematic resampling: place i takes the particle at (i + u) / P of the cumulative
    weights. To keep the truth, (its new place) + u is drawn uniformly from its own
    interval of P times the cumulative weights, which is their joint distribution given
    that the truth survives.
    """
    P = len(weight_P)
    ends_P = weight_P.cumsum() * P
    place = truth
    if has_truth:
        begin = jnp.where(truth > 0, ends_P[truth - 1], 0)
        # The last end may be rounded up to P or more.
        at = jnp.minimum(begin + u * (ends_P[truth] - begin), P - 1e-3)
        place = at.astype(jnp.int32)
        u = at - place
    index_P = jnp.arange(P)
    chosen_P = jnp.searchsorted(ends_P, index_P + u, side="right").clip(0, P - 1)
    if has_truth:
        chosen_P = chosen_P.at[place].set(truth)
    return chosen_P, place


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _filter(
    graph: LatentGraph,
    count: int,
    has_truth: bool,
    log_tables: Arrays,
    arrays: Arrays,
    keys_R: jax.Array,
) -> jax.Array:
    P, X = count, graph.observed.name
    dims = [node.state_dim for node in graph.latents]
    names = [node.name for node in graph.latents]

    def step(carry: Any, now: Any) -> Any:
        particles, log_weight_P, truth = carry
        old_x, new_x, true_states, key = now
        u, *draws = jnp.split(jax.random.uniform(key, (1 + P,)), [1])
        log_joint_PS = jax.vmap(
            lambda particle: _log_joint(graph, log_tables, particle, old_x, new_x)
        )(particles)
        log_p_P = jax.nn.logsumexp(log_joint_PS, axis=1)
        increment = jax.nn.logsumexp(log_weight_P + log_p_P)
        possible = jnp.isfinite(increment)
        even_P = jnp.full(P, -math.log(P))
        log_weight_P = jnp.where(possible, log_weight_P + log_p_P - increment, even_P)

        weight_P = jnp.exp(log_weight_P)
        # Resampling adds variance: only where the effective sample size is under P / 2.
        uneven = jnp.square(weight_P).sum() * P > 2
        chosen_P, place = _resample(weight_P, u[0], truth, has_truth)
        chosen_P = jnp.where(uneven, chosen_P, jnp.arange(P))
        truth = jnp.where(uneven, place, truth)
        log_weight_P = jnp.where(uneven, even_P, log_weight_P)
        particles = jax.tree.map(lambda array: array[chosen_P], particles)

        p_PS = jnp.exp(log_joint_PS - log_p_P[:, None]).cumsum(1)[chosen_P]
        below_PS = p_PS <= draws[0][:, None] * p_PS[:, -1:]
        joint_P = below_PS.sum(1).clip(0, p_PS.shape[1] - 1)
        new = dict(zip(names, jnp.unravel_index(joint_P, dims), strict=True))
        if has_truth:
            for name in names:
                new[name] = new[name].at[truth].set(true_states[name])
        new |= {X: jnp.full(P, new_x)}
        move = lambda particle, new: _move(graph, particle, old_x, new)
        particles = jax.vmap(move)(particles, new)
        return (particles, log_weight_P, truth), -increment

    def row(key: jax.Array, row: Arrays) -> jax.Array:
        tokens_T = row["tokens"]
        true_states = {name: row[name][1:] for name in names}
        keys = jax.random.split(key, len(tokens_T) - 1)
        first = _first(graph, P), jnp.full(P, -math.log(P)), jnp.int32(0)
        every_step = tokens_T[:-1], tokens_T[1:], true_states, keys
        return jax.lax.scan(step, first, every_step)[1]

    return jax.vmap(row)(keys_R, dict(arrays))
