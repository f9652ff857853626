"""Graphs made by hand, whose entropy rate is known in closed form.

The tokens determine the latents, so that a model whose loss is above the floor has not
learned the rule.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxgpt.errors import UserError, require
from jaxgpt.systems.gssm.graph import HANDMADE, LatentGraph, Node
from jaxgpt.systems.gssm.kernels import Tables, tables_to_json

# Most entries of a kernel.
LARGEST = 1 << 22


class HandMade(NamedTuple):
    """A graph with its kernels, as `jaxgpt.gssm.Graph(nodes, kernels=kernels)` takes.

    Attributes:
      nodes: the observed one, X, last.
      kernels: {node: float64 [inputs ..., state_dim]}.
      entropy_rate: of the tokens, in nats per token.
    """

    nodes: tuple[Node, ...]
    kernels: Tables
    entropy_rate: float

    def fields(self) -> dict[str, str]:
        """Returns the config fields of a training on it."""
        return {
            "gssm.graph": LatentGraph(self.nodes).to_json(),
            "gssm.kernels": tables_to_json(self.kernels),
        }


def controller(transitions: ArrayLike, emissions: ArrayLike) -> HandMade:
    """Returns a deterministic controller: state and token determine the next state.

    In a step the latent S moves from s to transitions[s, old token], then X is drawn
    from emissions[S]. The entropy rate is the mean entropy of the emissions, over the
    states in the long run.

    Args:
      transitions: int [S, V], states.
      emissions: [S, V], each row a distribution.

    Raises:
      UserError: if shapes differ, a transition is to no state, or a row of emissions
        is not a distribution.
    """
    p_SV, next_SV = np.asarray(emissions, np.float64), np.asarray(transitions)
    if next_SV.shape != p_SV.shape or p_SV.ndim != 2:
        raise UserError(
            f"transitions and emissions must have one shape [states, tokens], got "
            f"{list(next_SV.shape)} and {list(p_SV.shape)}"
        )
    S, V = p_SV.shape
    whole = np.issubdtype(next_SV.dtype, np.integer)
    right = whole and next_SV.min() >= 0 and next_SV.max() < S
    require(bool(right), "transitions", f"integers from 0 to {S - 1}", next_SV.tolist())
    sums = (p_SV >= 0).all() and np.allclose(p_SV.sum(1), 1, rtol=0, atol=1e-6)
    require(bool(sums), "emissions", "rows of probabilities that sum to 1", emissions)
    moves_SS = np.zeros((S, S))
    for s, v in np.ndindex(S, V):
        moves_SS[s, next_SV[s, v]] += p_SV[s, v]
    # The lazy chain has the same stationary distribution, and no period.
    lazy_SS = np.linalg.matrix_power((moves_SS + np.eye(S)) / 2, 1 << 30)
    share_S = lazy_SS[next_SV[0, 0]] / lazy_SS[next_SV[0, 0]].sum()
    log_p = np.log(p_SV, where=p_SV > 0, out=np.zeros_like(p_SV))
    kernels = {"S": np.eye(S)[next_SV], "X": p_SV}
    nodes = _latent("S", S, "X"), _observed(V, "S")
    return HandMade(nodes, kernels, float(share_S @ -(p_SV * log_p).sum(1)))


def copy(symbols: int = 4, length: int = 3) -> HandMade:
    """Returns random symbols, then the same again, and so on.

    The clock C counts the 2 x length tokens of a round, the register R keeps the
    symbols. The entropy rate is log(symbols) / 2.
    """
    _check(symbols >= 2 and length >= 1, "symbols >= 2 and length >= 1",
           2 * length * symbols ** (2 * min(length, 99) + 1))  # fmt: skip
    V, K, period = symbols, length, 2 * length

    def store(register: int, clock: int, token: int) -> int:
        place = (clock - 2) % period  # Of the old token in its round.
        if place >= K:
            return register
        digit = register // V**place % V
        return register + (token - digit) * V**place

    def write(clock: int, register: int) -> ArrayLike:
        if 1 <= clock <= K:
            return np.full(V, 1 / V)
        place = (clock - K - 1) % period
        return np.eye(V)[register // V**place % V]

    states = V**K
    one_hot = np.eye(states)
    kernels = {
        "C": _clock(period),
        "R": _table((states, period, V), lambda *at: one_hot[store(*at)]),
        "X": _table((period, states), write),
    }
    nodes = (
        _latent("C", period),
        _latent("R", states, "C", "X"),
        _observed(V, "C", "R"),
    )
    return HandMade(nodes, kernels, math.log(V) / 2)


def parity(bits: int = 3) -> HandMade:
    """Returns random bits; after each group of them comes their parity.

    The clock C counts the bits + 1 tokens of a round, P is the parity so far. The
    entropy rate is bits / (bits + 1) log 2.
    """
    _check(bits >= 1, "bits >= 1", 4 * (bits + 1) ** 2)
    period = bits + 1
    even = lambda old, clock, token: 0 if clock == 1 else old ^ token
    kernels = {
        "C": _clock(period),
        "P": _table((2, period, 2), lambda *at: np.eye(2)[even(*at)]),
        "X": _table((period, 2), lambda c, p: np.full(2, 0.5) if c else np.eye(2)[p]),
    }
    nodes = _latent("C", period), _latent("P", 2, "C", "X"), _observed(2, "C", "P")
    return HandMade(nodes, kernels, bits / period * math.log(2))


def induction(symbols: int = 3, noise: float = 0.2) -> HandMade:
    """Returns tokens that follow each other as they did the last time.

    After a token comes what came after it last (at first 0), or with probability noise
    a uniformly random symbol. The latent M keeps what came after each symbol, and the
    token before. The entropy rate is the entropy of that choice.
    """
    V = symbols
    _check(V >= 2 and 0 < noise <= 1, "symbols >= 2 and 0 < noise <= 1",
           (V * V ** min(V, 99)) ** 2 * V)  # fmt: skip
    kept = list(itertools.product(*[range(V)] * (V + 1)))  # Successors, token before.
    place = {state: index for index, state in enumerate(kept)}

    def store(memory: int, token: int) -> int:
        *after, before = kept[memory]
        after[before] = token
        return place[*after, token]

    def write(memory: int) -> ArrayLike:
        *after, before = kept[memory]
        return noise / V + (1 - noise) * np.eye(V)[after[before]]

    one_hot = np.eye(len(kept))
    kernels = {
        "M": _table((len(kept), V), lambda *at: one_hot[store(*at)]),
        "X": _table((len(kept),), write),
    }
    p_V = kernels["X"][0]
    nodes = _latent("M", len(kept), "X"), _observed(V, "M")
    return HandMade(nodes, kernels, float(-(p_V * np.log(p_V)).sum()))


MAKERS: dict[str, Callable[..., HandMade]] = {
    maker.__name__: maker for maker in (controller, copy, induction, parity)
}


def read(text: str) -> HandMade | None:
    """Returns the graph of "parity", "copy:4,3"...; None for any other text.

    After the name stand the arguments of its function, as JSON.

    Raises:
      UserError: for arguments that the function cannot take.
    """
    name, _, arguments = text.partition(":")
    if name not in HANDMADE:
        return None
    try:
        return MAKERS[name](*json.loads(f"[{arguments}]"))
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise UserError(
            f"'{text[:80]}' is not a graph: write parity:BITS, copy:SYMBOLS,LENGTH, "
            "induction:SYMBOLS,NOISE or controller:TRANSITIONS,EMISSIONS"
        ) from None


def _check(condition: bool, rule: str, size: int) -> None:
    if not condition:
        raise UserError(f"this graph needs {rule}")
    require(size <= LARGEST, "entries of its largest kernel", f"<= {LARGEST}", size)


def _latent(name: str, state_dim: int, *parents: str) -> Node:
    return Node(name, state_dim, 1.0, parents)  # Alpha has no effect on given kernels.


def _observed(state_dim: int, *parents: str) -> Node:
    return Node("X", state_dim, 1.0, parents, observed=True)


def _clock(period: int) -> np.ndarray:
    return np.eye(period)[(np.arange(period) + 1) % period]


def _table(dims: tuple[int, ...], row: Callable[..., ArrayLike]) -> np.ndarray:
    """Returns row(inputs) of all inputs, [dims ..., states]."""
    rows = np.array([row(*index) for index in np.ndindex(*dims)], np.float64)
    return rows.reshape(*dims, -1)
