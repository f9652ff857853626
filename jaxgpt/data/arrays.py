"""Arrays and objects read from .npy and JSON files; the rows of batches."""

from __future__ import annotations

import functools
import json
import pathlib
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxgpt.config import user_path
from jaxgpt.errors import UserError, os_errors


def read_integers(name: str) -> np.ndarray:
    """Reads an .npy file of integers [rows, tokens]; UserError for anything else."""
    try:
        array = np.load(user_path(name), allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        reason = why_not_loaded(error)
        raise UserError(f"'{name}' is not an .npy file of integers: {reason}") from None
    return check_integers(array, name)


def check_integers(array: np.ndarray, name: str) -> np.ndarray:
    """Returns an array of integers [rows, tokens]; UserError for anything else."""
    if getattr(array, "ndim", 0) != 2 or array.dtype.kind not in "iu" or not array.size:
        raise UserError(f"'{name}' must hold integers [rows, tokens]")
    return array


def why_not_loaded(error: Exception) -> str:
    """Returns NumPy's reason, without its advice to load a pickle."""
    reason = str(error).partition("\n")[0]
    if "Object arrays" in reason:
        return "it holds Python objects, which are never loaded"
    return "it has another format" if "pickle" in reason else reason


def read_json_object(path: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object that a file holds.

    Raises:
      UserError: if it cannot be read, or holds anything else.
    """
    try:
        with os_errors(f"'{path}' cannot be read"):
            value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"'{path}' is not a JSON object")
    return value


def batched(
    arrays: Mapping[str, np.ndarray], rows: int
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Yields ({name: array [rows, ...]}, how many of its rows are real) in order.

    Args:
      arrays: of equal length N >= 1.
      rows: of every batch, including the last.
    """
    N = len(next(iter(arrays.values())))
    for start in range(0, N, rows):
        # The last batch is padded with the first rows: another shape would compile
        # another program.
        index = np.arange(start, start + rows) % N
        batch = {name: array[index] for name, array in arrays.items()}
        yield batch, min(rows, N - start)


def epoch_rows(seed: int, step: int, size: int, count: int) -> np.ndarray:
    """Returns which of `count` rows are in batch `step`: [size].

    Each epoch is a shuffle of all rows; a batch may extend into the next epoch.
    """
    place = np.arange(step * size, (step + 1) * size)
    epochs = range(place[0] // count, place[-1] // count + 1)
    order = np.concatenate([_shuffled(seed, epoch, count) for epoch in epochs])
    return order[place - epochs[0] * count]


@functools.lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)
