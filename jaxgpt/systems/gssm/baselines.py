"""Baselines on the same sequences as a trained model, and means with their errors."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.systems.gssm.likelihood import joint_states
from jaxgpt.systems.gssm.process import GraphProcess, Stream

# Added to every count: the Krichevsky-Trofimov estimator.
PRIOR = 0.5
# The least number of tokens that unigram and bigram are fitted to.
FIT_TOKENS = 1 << 18


def fitted_scores(
    process: GraphProcess, config: ConfigDict, tokens_NT: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns {"unigram" and "bigram": [N, T - 1]}, fitted to other sequences."""
    c, V = config, process.vocab_size
    N, T = tokens_NT.shape
    count = max(FIT_TOKENS // T, N)
    fit_NT = process.held_out(Stream(c.seed, "fit", c.batch_size), count, T)
    return {
        "unigram": unigram(fit_NT, tokens_NT, V),
        "bigram": bigram(fit_NT, tokens_NT, V),
    }


def unigram(fit_NT: np.ndarray, tokens_BT: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns the score [B, T - 1], in nats, under the token frequencies of fit_NT."""
    counts_V = np.bincount(fit_NT[:, 1:].ravel(), minlength=vocab_size) + PRIOR
    return -np.log(counts_V / counts_V.sum())[tokens_BT[:, 1:]]


def bigram(fit_NT: np.ndarray, tokens_BT: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns the score [B, T - 1], in nats, given the token before."""
    pair = lambda tokens: tokens[:, :-1].astype(np.int64) * vocab_size + tokens[:, 1:]
    # Only pairs that occur are counted: a table of all may not fit.
    seen, counts = np.unique(pair(fit_NT), return_counts=True)
    before_V = np.bincount(fit_NT[:, :-1].ravel(), minlength=vocab_size)
    target = pair(tokens_BT)
    place = np.minimum(np.searchsorted(seen, target), len(seen) - 1)
    count = np.where(seen[place] == target, counts[place], 0)
    return np.log(before_V[tokens_BT[:, :-1]] + vocab_size * PRIOR) - np.log(
        count + PRIOR
    )


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest unsigned integer that holds every token."""
    return np.dtype(np.min_scalar_type(max(vocab_size - 1, 1)))


def zlib_ratio(tokens_BT: np.ndarray) -> np.ndarray:
    """Returns the compression ratio of each sequence's bytes [B], in the given dtype.

    Times the bits of the dtype it is bits per token.
    """
    raw = [np.ascontiguousarray(row).tobytes() for row in tokens_BT]
    return np.array([len(zlib.compress(row, 9)) / len(row) for row in raw])


def zlib_nats(tokens_BT: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns zlib's nats per token [B], with tokens in the smallest dtype."""
    dtype = token_dtype(vocab_size)
    return zlib_ratio(tokens_BT.astype(dtype)) * dtype.itemsize * 8 * math.log(2)


class Mean(NamedTuple):
    """A mean over sequences, and its standard error where it can be estimated."""

    value: float
    error: float | None

    def figures(self, name: str) -> dict[str, float]:
        """Returns {name: value, name_error: error}, without an error that is None."""
        error = {} if self.error is None else {f"{name}_error": self.error}
        return {name: self.value} | error


def mean(nll_BT: np.ndarray, group: int = 1) -> Mean:
    """Returns the mean of a score; `group` neighbouring rows depend on each other."""
    rows = nll_BT.mean(1, dtype=np.float64)
    groups = [rows[i : i + group].mean() for i in range(0, len(rows), group)]
    n = len(groups)
    estimable = n > 1 and np.isfinite(groups).all()
    error = float(np.std(groups, ddof=1) / math.sqrt(n)) if estimable else None
    return Mean(float(rows.mean()), error)


def divergence(p_BTV: np.ndarray, log_q_BTV: np.ndarray) -> np.ndarray:
    """Returns KL(p || q) of distributions along the last axis, [B, T], in nats."""
    possible = p_BTV > 0
    log_p_BTV = np.log(p_BTV, where=possible, out=np.zeros_like(p_BTV))
    ratio_BTV = np.subtract(
        log_p_BTV, log_q_BTV, where=possible, out=np.zeros_like(p_BTV)
    )
    return (p_BTV * ratio_BTV).sum(-1)


def summary(
    process: GraphProcess,
    config: ConfigDict,
    tokens_NT: np.ndarray,
    bounds: Mapping[str, np.ndarray],
    dtype: str,
) -> dict[str, Any]:
    """Returns the figures of the entropy command for tokens and `process.bounds`."""
    V = process.vocab_size
    found: dict[str, Any] = {}
    group = process.dependent_rows(config.batch_size)
    scores = {**bounds, **fitted_scores(process, config, tokens_NT)}
    for name, score_NT in scores.items():
        found[name], found[f"{name}_error"] = mean(score_NT, group)
    return found | {
        "uniform": math.log(V),
        "zlib": float(zlib_nats(tokens_NT, V).mean()),
        "zlib_unit": f"nats per token, each sequence compressed as {token_dtype(V)}",
        "unit": "nats per token; errors are standard errors over sequences",
        "sequences": len(tokens_NT),
        "predicted_tokens": tokens_NT[:, 1:].size,
        "joint_states": joint_states(process.graph),
        "first_token": process.first_token,
        "dtype": dtype,
    }
