"""Fills any number of texts in bounded memory: a batch of rows at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.model import attention, rng
from jaxgpt.sampling.output import length_with_stop, until
from jaxgpt.sampling.state import Callback, Draws, SamplerOutput, SamplingParams
from jaxgpt.systems.base import System

if TYPE_CHECKING:
    from jaxgpt.systems.memory.options import MemorySession

# Memory of a batch's rows on the device, and their number at most: with more of them a
# row does not get cheaper.
BYTES_AT_ONCE = 1 << 30
ROWS_AT_ONCE = 256
STOP_EVERY = 32  # Forward passes between two looks for the stop text.


class Row(NamedTuple):
    """One text to fill.

    Attributes:
      tokens: int32 [T].
      known: bool [T], true where the token is given.
      seed: of the draws.
      number: among the rows of this seed; both together say what is drawn.
    """

    tokens: np.ndarray
    known: np.ndarray
    seed: int
    number: int


class Batch(NamedTuple):
    """Rows as the arguments of `System.sample`."""

    tokens_BT: np.ndarray
    known_BT: np.ndarray
    draws: Draws
    length_B: np.ndarray


def rows_at_once(system: System, T: int, sampling: SamplingParams) -> int:
    """Returns how many rows of T tokens there is room for."""
    c, slots = system.model_config, system.cache_length(T) + 1
    cache = jax.eval_shape(lambda: attention.empty_cache(c, 1, slots))
    cached = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    # The cache is copied when it grows; a pass has logits and what is drawn from them.
    drawn = system.lookahead(sampling) * c.vocab_size * 4
    return max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE // (3 * cached + 8 * drawn)))


def batches(
    system: System, rows: Iterable[Row], sampling: SamplingParams
) -> Iterator[list[Row]]:
    """Yields the rows in order, as many at a time as there is room for."""
    batch: list[Row] = []
    longest = room = 0
    for row in rows:
        T = len(row.tokens)
        mixed = bool(batch) and longest != T
        if mixed and not system.mixes_lengths(max(T, longest)):
            yield batch
            batch = []
        if not batch or longest < T:
            longest, room = T, rows_at_once(system, T, sampling)
        if len(batch) >= room:
            yield batch
            batch, longest = [], T
        batch.append(row)
    if batch:
        yield batch


def stack(rows: Sequence[Row], size: int = 0) -> Batch:
    """Returns rows as arrays.

    Args:
      rows: of a batch.
      size: rows of the arrays, at least: the last one is repeated, so that a smaller
        last batch needs no compilation of its own.
    """
    rows = [*rows, *[rows[-1]] * (size - len(rows))]
    length_B = np.array([len(row.tokens) for row in rows])
    tokens_BT = np.zeros((len(rows), length_B.max()), np.int32)
    known_BT = np.zeros(tokens_BT.shape, bool)
    for b, row in enumerate(rows):
        tokens_BT[b, : length_B[b]], known_BT[b, : length_B[b]] = row.tokens, row.known
    key_of = {seed: rng.stream(seed, "sample") for seed in {row.seed for row in rows}}
    key_B = jnp.stack([key_of[row.seed] for row in rows])
    draws = Draws(key_B, np.array([row.number for row in rows], np.int32))
    return Batch(tokens_BT, known_BT, draws, length_B)


def fill(
    system: System,
    params: dict,
    tokenizer: Tokenizer | None,
    rows: Sequence[Row],
    sampling: SamplingParams,
    stop: str = "",
    show: Callback | None = None,
    session: MemorySession | None = None,
) -> Iterator[tuple[list[Row], SamplerOutput]]:
    """Yields some of the rows at a time, in order, and their fillings.

    Args:
      tokenizer: to look for `stop` with.
      sampling, stop, show, session: as in `Run.fill`; a session takes all at once.
    """
    parts = [[*rows]] if session else list(batches(system, rows, sampling))
    most = max(map(len, parts))
    for part in parts:
        given_B = [int(row.known.sum()) for row in part]
        callback, every = show, 1
        if stop and not show:
            # Not after every pass: each look waits for the device.
            callback, every = until(stop, given_B, tokenizer), STOP_EVERY
        sample: Any = system.sample
        if session:
            shown = lambda tokens_T, given=given_B[0]: length_with_stop(
                tokens_T, given, stop, tokenizer
            )
            sample = functools.partial(session.sample, shown=shown)
        batch = stack(part, most if 2 * len(part) > most else 0)
        output = sample(
            params,
            batch.tokens_BT,
            batch.known_BT,
            batch.draws,
            sampling,
            callback,
            every,
            batch.length_B,
        )
        yield part, output[: len(part)]
