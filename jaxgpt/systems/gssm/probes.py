"""Linear probes: what a model's hidden states encode of the latents of its graph.

A probe is a ridge regression from the residual stream at a token to something known
exactly: the belief, p(state of a latent | tokens so far), or the state itself. It is
fitted on some sequences and scored on others. With the covariance C of the features x
and their covariance c with the targets y,

    y ~ mean_y + (x - mean_x) (C + strength * mean eigenvalue of C)^-1 c

in float64. The strength is the one that serves best on the last quarter of the fitting
sequences, of those in `STRENGTHS`; then the probe is fitted to all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.data.arrays import batched
from jaxgpt.errors import UserError, require
from jaxgpt.model import rng
from jaxgpt.model.positions import in_order
from jaxgpt.model.transformer import LanguageModel
from jaxgpt.systems.base import System
from jaxgpt.systems.gssm import baselines
from jaxgpt.systems.gssm.process import Stream
from jaxgpt.systems.gssm.system import GSSM

STRENGTHS = tuple(10.0**power for power in range(-8, 2))
# Numbers of hidden states held at a time.
LARGEST_HIDDEN = 1 << 24
# The variance below which a belief is constant but for rounding.
LEAST_SPREAD = 1e-20

# From tokens [B, T] to features [B, T, D], of each layer.
Reader = Callable[[np.ndarray], list[np.ndarray]]


class Sequences(NamedTuple):
    """Tokens int [N, T], and by latent its beliefs [N, T, states] and states [N, T]."""

    tokens_NT: np.ndarray
    beliefs: dict[str, np.ndarray]
    states: dict[str, np.ndarray]

    def targets(self) -> tuple[np.ndarray, list[slice]]:
        """Returns what is regressed, [N, T, K]: beliefs and states as 0 and 1.

        The slices of K are one of the belief and one of the state of each latent.
        """
        parts: list[np.ndarray] = []
        for name, belief_NTS in self.beliefs.items():
            one_hot = np.eye(belief_NTS.shape[-1])
            parts += [belief_NTS, one_hot[self.states[name]]]
        ends = np.cumsum([0, *(part.shape[-1] for part in parts)])
        groups = [slice(a, b) for a, b in itertools.pairwise(ends)]
        return np.concatenate(parts, -1), groups


class Moments(NamedTuple):
    """Sums over tokens of products, where z is 1 and the features: zz, zy, and y y."""

    zz: np.ndarray
    zy: np.ndarray
    yy: np.ndarray

    @classmethod
    def of(cls, x_ND: np.ndarray, y_NK: np.ndarray) -> Moments:
        """Returns those of N tokens."""
        z = np.column_stack([np.ones(len(x_ND)), x_ND])
        return cls(z.T @ z, z.T @ y_NK, (y_NK * y_NK).sum(0))

    def plus(self, other: Moments) -> Moments:
        """Returns those of the tokens of both."""
        return Moments(*(a + b for a, b in zip(self, other, strict=True)))

    def squared_error(self, weights: np.ndarray) -> np.ndarray:
        """Returns the sum over tokens of (y - z weights)^2, [K]."""
        explained = 2 * self.zy - self.zz @ weights
        return self.yy - (weights * explained).sum(0)


def ridge(found: Moments) -> Iterator[np.ndarray]:
    """Yields weights [1 + D, K], the intercept first, for each of `STRENGTHS`."""
    N = found.zz[0, 0]
    mean_x, mean_y = found.zz[0, 1:] / N, found.zy[0] / N
    covariance = found.zz[1:, 1:] / N - np.outer(mean_x, mean_x)
    with_y = found.zy[1:] / N - np.outer(mean_x, mean_y)
    values, vectors = np.linalg.eigh(covariance)
    scale = values.mean() if values.max() > 0 else 1.0
    rotated = vectors.T @ with_y
    for strength in STRENGTHS:
        shrunk = rotated / (np.maximum(values, 0) + strength * scale)[:, None]
        slope = vectors @ shrunk
        yield np.vstack([mean_y - mean_x @ slope, slope])


def fit(most: Moments, rest: Moments, groups: list[slice]) -> np.ndarray:
    """Returns weights [1 + D, K], fitted to the tokens of both moments.

    The strength of each group of the K targets is the best on `rest` of those fitted to
    `most`.
    """
    errors = np.array([rest.squared_error(weights) for weights in ridge(most)])
    candidates = list(ridge(most.plus(rest)))
    return np.concatenate(
        [candidates[errors[:, g].sum(1).argmin()][:, g] for g in groups], 1
    )


def score(read: Reader, fitting: Sequences, scored: Sequences, rows: int) -> np.ndarray:
    """Fits probes, and scores them on other sequences: float64 [L, 2 x latents, N, T].

    Of each of L layers, for each latent: the squared error of its belief, summed over
    states; then whether the largest output of its state's probe is at the state.

    Args:
      read: the features.
      fitting: 4 sequences or more.
      scored: N others.
      rows: how many sequences `read` is given at a time.
    """
    y_NTK, groups = fitting.targets()
    most = len(y_NTK) - len(y_NTK) // 4
    parts = [slice(most), slice(most, None)]
    first, rest = (
        _moments(read, fitting.tokens_NT[part], y_NTK[part], rows) for part in parts
    )
    weights = [fit(*layer, groups) for layer in zip(first, rest, strict=True)]
    y_NTK, _ = scored.targets()
    scores = []
    for x_LBTD, y_BTK in _batches(read, scored.tokens_NT, y_NTK, rows):
        layers: list[list[np.ndarray]] = []
        for x_BTD, weights_ZK in zip(x_LBTD, weights, strict=True):
            output_BTK = weights_ZK[0] + x_BTD.astype(np.float64) @ weights_ZK[1:]
            layers.append([])
            for belief, state in zip(groups[::2], groups[1::2], strict=True):
                missed = output_BTK[..., belief] - y_BTK[..., belief]
                guess = output_BTK[..., state].argmax(-1)
                right = guess == y_BTK[..., state].argmax(-1)
                layers[-1] += [(missed**2).sum(-1), right]
        scores.append(np.array(layers, np.float64))
    return np.concatenate(scores, 2)


def measure(
    read: Reader, fitting: Sequences, scored: Sequences, rows: int, group: int = 1
) -> dict[str, dict[str, list[float | None]]]:
    """Returns what linear probes decode from each layer.

    Args:
      read, fitting, scored, rows: as of `score`.
      group: how many consecutive sequences depend on each other.

    Returns:
      {latent: {"r2": the share of the belief's variance over tokens, of all its states
      together, that the probe explains, None where the belief is constant; "accuracy":
      how often the largest output of the state's probe is at the state; *_error,
      standard errors over sequences}}, each a list by layer.
    """
    scores_LGNT = score(read, fitting, scored, rows)
    found: dict[str, dict[str, list[float | None]]] = {}
    for i, (name, belief_NTS) in enumerate(scored.beliefs.items()):
        spread_NT = ((belief_NTS - belief_NTS.mean((0, 1))) ** 2).sum(-1)
        errors_LNT, right_LNT = scores_LGNT[:, 2 * i], scores_LGNT[:, 2 * i + 1]
        r2 = [_r2(error_NT, spread_NT, group) for error_NT in errors_LNT]
        right = [baselines.mean(right_NT, group) for right_NT in right_LNT]
        found[name] = {
            "r2": [value for value, _ in r2],
            "r2_error": [error for _, error in r2],
            "accuracy": [value for value, _ in right],
            "accuracy_error": [error for _, error in right],
        }
    return found


class Probes:
    """Sequences of a run's graph, and probes of models trained on them.

    Attributes:
      layers: their names, lowest first.
    """

    def __init__(self, system: System, num_sequences: int):
        """Samples the sequences, as many again to score on, and their beliefs.

        Raises:
          UserError: for another system than gssm; as `likelihood.forward`.
        """
        c = system.config
        if not isinstance(system, GSSM):
            raise UserError(
                f"probes need a run of a graph (system gssm), got system '{c.system}'"
            )
        require(num_sequences >= 4, "num_sequences", ">= 4", num_sequences)
        self.system = system
        # No model is trained or selected on these splits.
        self.fitting = _sequences(system, "fit", num_sequences)
        self.scored = _sequences(system, "test", num_sequences)
        blocks = [f"block_{i}" for i in range(c.model.n_layer)]
        self.layers = ["embedding", *blocks]
        _, T = self.fitting.tokens_NT.shape
        each = T * c.model.n_embd * len(self.layers)
        self.rows = max(1, min(num_sequences, LARGEST_HIDDEN // each))
        self._read = jax.jit(self._hidden)

    def _hidden(self, params: dict, tokens_BT: jax.Array) -> list[jax.Array]:
        hidden = hidden_states(self.system.model(params), tokens_BT)
        return [x_BTD.astype(jnp.float32) for x_BTD in hidden]

    def untrained(self) -> dict:
        """Returns the parameters that training from scratch begins with."""
        return self.system.init(rng.stream(self.system.config.seed, "params"))

    def measure(self, params: dict) -> dict[str, dict[str, list[float | None]]]:
        """Returns the function `measure` of a model's residual stream."""
        read = lambda tokens_BT: jax.device_get(self._read(params, tokens_BT))
        group = self.system.process.dependent_rows(self.system.config.batch_size)
        return measure(read, self.fitting, self.scored, self.rows, group)

    def references(self) -> dict[str, dict[str, float]]:
        """Returns {latent: {"states": how many it has, and two accuracies}}.

        "commonest": of the commonest state in the sequences fitted to; "belief": of
        the likeliest state given the tokens so far, the best possible in expectation.
        """
        found = {}
        for name, belief_NTS in self.scored.beliefs.items():
            states_NT = self.scored.states[name]
            commonest = np.bincount(self.fitting.states[name].ravel()).argmax()
            found[name] = {
                "states": belief_NTS.shape[-1],
                "commonest": float((states_NT == commonest).mean()),
                "belief": float((states_NT == belief_NTS.argmax(-1)).mean()),
            }
        return found


def hidden_states(model: LanguageModel, tokens_BT: jax.Array) -> list[jax.Array]:
    """Returns the residual stream [B, T, D]: the embedding, then after each block."""
    positions = in_order(tokens_BT.shape[1], model.config)
    _, outputs = model.transformer(
        model.embed(tokens_BT, positions),
        model.target(positions),
        keep_hidden=True,
        positions=positions,
    )
    return outputs.hidden


def _sequences(system: GSSM, split: str, count: int) -> Sequences:
    """Returns the first sequences of a split, as long as the model reads."""
    c, process = system.config, system.process
    names = tuple(node.name for node in process.graph.order)
    stream = Stream(c.seed, split, c.batch_size)
    states = process.held_out_nodes(names, stream, count, system.window)
    states = {name: states_NT[:, :-1] for name, states_NT in states.items()}
    tokens_NT = states.pop(process.graph.observed.name)
    beliefs = process.score_held_out(tokens_NT, stream, "float64", "beliefs")
    return Sequences(tokens_NT, beliefs, states)


def _batches(
    read: Reader, tokens_NT: np.ndarray, y_NTK: np.ndarray, rows: int
) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Yields the features of each layer, and the targets, of some rows at a time."""
    for batch, count in batched({"tokens": tokens_NT, "y": y_NTK}, rows):
        x_LBTD = [x_BTD[:count] for x_BTD in read(batch["tokens"])]
        yield x_LBTD, batch["y"][:count]


def _moments(
    read: Reader, tokens_NT: np.ndarray, y_NTK: np.ndarray, rows: int
) -> list[Moments]:
    """Returns those of each layer."""
    flat = lambda x_BTD: x_BTD.reshape(-1, x_BTD.shape[-1]).astype(np.float64)
    total: list[Moments] = []
    for x_LBTD, y_BTK in _batches(read, tokens_NT, y_NTK, rows):
        new = [Moments.of(flat(x_BTD), flat(y_BTK)) for x_BTD in x_LBTD]
        total = list(map(Moments.plus, total, new)) if total else new
    return total


def _r2(
    error_NT: np.ndarray, spread_NT: np.ndarray, group: int
) -> tuple[float | None, float | None]:
    """Returns 1 - errors / spread, and its standard error as that of a ratio."""
    spread = float(spread_NT.mean())
    if spread < LEAST_SPREAD:
        return None, None
    r2 = 1 - float(error_NT.mean()) / spread
    error = baselines.mean(error_NT - (1 - r2) * spread_NT, group).error
    return r2, None if error is None else error / spread
