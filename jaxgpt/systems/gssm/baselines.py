"""What little a model must know to be as good as these: scores beside the exact one."""

from __future__ import annotations

import dataclasses
import math
import zlib

import numpy as np

# Added to every count: Krichevsky and Trofimov's half.
PRIOR = 0.5


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest unsigned integer that holds every token."""
    return np.dtype(np.min_scalar_type(max(vocab_size - 1, 1)))


def unigram(fit_NT: np.ndarray, tokens_BT: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns the score [B, T - 1], in nats, under the frequencies of other tokens.

    Args:
      fit_NT: sequences that the frequencies of tokens 1 .. are counted in.
      tokens_BT: sequences whose tokens 1 .. are scored.
      vocab_size: how many tokens there are.
    """
    counts_V = np.bincount(fit_NT[:, 1:].ravel(), minlength=vocab_size) + PRIOR
    return -np.log(counts_V / counts_V.sum())[tokens_BT[:, 1:]]


def bigram(fit_NT: np.ndarray, tokens_BT: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns the score [B, T - 1] given the token before, as `unigram`."""
    pair = lambda tokens: tokens[:, :-1].astype(np.int64) * vocab_size + tokens[:, 1:]
    # Only pairs that occur are counted: there may be too many to hold.
    seen, counts = np.unique(pair(fit_NT), return_counts=True)
    before_V = np.bincount(fit_NT[:, :-1].ravel(), minlength=vocab_size)
    wanted = pair(tokens_BT)
    place = np.minimum(np.searchsorted(seen, wanted), len(seen) - 1)
    count = np.where(seen[place] == wanted, counts[place], 0)
    return np.log(before_V[tokens_BT[:, :-1]] + vocab_size * PRIOR) - np.log(
        count + PRIOR
    )


def zlib_ratio(tokens_BT: np.ndarray) -> np.ndarray:
    """Returns compressed by raw bytes of each sequence [B], in the array's own dtype.

    A ratio of int64 tokens times 64 is bits per token; of uint8, times 8.
    """
    raw = [np.ascontiguousarray(row).tobytes() for row in tokens_BT]
    return np.array([len(zlib.compress(row, 9)) / len(row) for row in raw])


def zlib_nats(tokens_BT: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns zlib's nats per token of each sequence [B], stored as small as can be."""
    dtype = token_dtype(vocab_size)
    return zlib_ratio(tokens_BT.astype(dtype)) * dtype.itemsize * 8 * math.log(2)


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over sequences, and its standard error.

    It has none of a single sequence, nor where one is impossible: infinite.
    """

    value: float
    error: float | None


def mean(nll_BT: np.ndarray, group: int = 1) -> Mean:
    """Returns the mean of a score [B, T], its error from the spread of sequences.

    Args:
      nll_BT: the score.
      group: so many neighbouring sequences depend on each other, which share the
        kernels drawn for their batch.
    """
    B = len(nll_BT)
    rows = nll_BT.mean(1, dtype=np.float64)
    groups = np.array([rows[i : i + group].mean() for i in range(0, B, group)])
    n = len(groups)
    spreads = n > 1 and np.isfinite(groups).all()
    error = float(groups.std(ddof=1) / math.sqrt(n)) if spreads else None
    return Mean(float(rows.mean()), error)
