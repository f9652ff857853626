"""The sequences of a task: sampled once, kept on disk, read as batches.

An array holds both tokens and their prompt mask: a token that is to be generated is
stored as its complement, ~token, which is negative.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.data import cache
from jaxgpt.data.arrays import epoch_rows
from jaxgpt.errors import UserError, log, require
from jaxgpt.systems.sigma.tasks.base import Task

SPLITS = ("train", "val")
# A change of what a task samples must change this too, or old sequences are read.
VERSION = 5
CHUNK = 10000
PATIENCE = 10  # Chunks in a row with hardly anything new, after which to give up.
UNIMPORTANT = ("learn", "strategies", "eval_sequences")
LONG = 1 << 24  # Tokens that take seconds to sample.


def mark(tokens: np.ndarray, prompt_mask: np.ndarray) -> np.ndarray:
    """Returns tokens with the complement of those that are not given, int32."""
    tokens = tokens.astype(np.int32)  # Of unsigned ones no complement is negative.
    return np.where(prompt_mask, tokens, ~tokens)


def unmark(marked):
    """Returns (tokens, prompt_mask) of a marked array, NumPy's or JAX's."""
    return marked ^ (marked >> 31), marked >= 0


class TaskData:
    """The splits of a task."""

    tokenizer = None

    def __init__(
        self, task: Task, splits: dict[str, np.ndarray], fingerprint: str = ""
    ):
        self.splits, self.vocab_size = splits, task.vocab_size
        self.fingerprint = fingerprint

    def batch_at(
        self, seed: int, split: str, step: int, size: int, length: int
    ) -> np.ndarray:
        """Returns marked int32 [size, length]: epochs one after another."""
        marked_NT = self._split(split)
        rows = epoch_rows(seed, step, size, len(marked_NT))
        return marked_NT[rows, :length].astype(np.int32)

    def eval_windows(
        self, split: str, length: int, count: int | None = None
    ) -> np.ndarray:
        """Returns marked int32 [count, length]: the first sequences; None is all."""
        return self._split(split)[:count, :length].astype(np.int32)

    def _split(self, split: str) -> np.ndarray:
        rule = f"{' or '.join(SPLITS)} for a task"
        require(split in self.splits, "--split", rule, split)
        return self.splits[split]


def open_data(task: Task, config: ConfigDict) -> TaskData:
    """Opens the sequences of a task; samples them where there are none yet.

    Raises:
      OtherDataError: where its files hold other data than the run was trained on.
      UserError: if there are fewer than the config says.
    """
    fingerprint = "".join(map(cache.file_digest, task.files))
    if fingerprint:
        fingerprint = hashlib.sha256(fingerprint.encode()).hexdigest()
        name = f"task.path '{config.task.path}'"
        cache.check_fingerprint(name, fingerprint, config.data)
    folder = _folder(task, config)
    cache.keep(folder, functools.partial(_write, task, config))
    splits = {s: np.load(folder / f"{s}.npy", mmap_mode="r") for s in SPLITS}
    return TaskData(task, splits, fingerprint)


def _folder(task: Task, config: ConfigDict) -> pathlib.Path:
    """Returns where sequences are kept: a folder for everything they depend on."""
    about = {k: v for k, v in config.task.items() if k not in UNIMPORTANT}
    for path in task.files:
        about[str(path.resolve())] = cache.file_digest(path)
    text = json.dumps([VERSION, about], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return cache.cache_root() / "tasks" / f"{config.task.name}-{digest}"


def _write(task: Task, config: ConfigDict, folder: pathlib.Path) -> None:
    c = config.task
    total = c.train_sequences + c.val_sequences
    if total * task.length > LONG and not task.files:
        kept = _folder(task, config)
        log(f"sampling {total:,} sequences of {c.name}, once: they are kept in {kept}")
    taken = np.zeros(0, np.uint64)
    # Validation first: training sequences are those that are not among it.
    for split, count in (("val", c.val_sequences), ("train", c.train_sequences)):
        tokens_NT = task.read_split(split)
        if tokens_NT is not None:
            marked_NT = mark(tokens_NT, task.prompt_mask(tokens_NT))[:count]
        else:
            marked_NT, taken = sample_split(task, split, count, c.data_seed, taken)
        np.save(folder / f"{split}.npy", marked_NT.astype(np.int16))


def sample_split(
    task: Task, split: str, count: int, seed: int, taken: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Samples marked sequences [count, T], distinct ones where the task wants them.

    Args:
      taken: hashes of sequences that may not come again.

    Returns:
      (sequences, hashes of these and of those taken before).

    Raises:
      UserError: if there are fewer.
    """
    task, parts = task.for_split(split), []
    found, number, stale = 0, 0, 0
    size = min(CHUNK, max(count, 100))
    while found < count:
        rng = np.random.default_rng((seed, 2, SPLITS.index(split), number))
        tokens_NT, prompt_mask_NT = task.sample(rng, size)
        if task.distinct:
            hashes = _hashes(tokens_NT)
            _, first = np.unique(hashes, return_index=True)
            # Only what is kept is taken: a surplus stays free for the other split.
            first = np.sort(first[~np.isin(hashes[first], taken)])[: count - found]
            tokens_NT, prompt_mask_NT = tokens_NT[first], prompt_mask_NT[first]
            taken = np.concatenate([taken, hashes[first]])
            stale = stale + 1 if len(first) < size / 100 else 0
        parts.append(mark(tokens_NT, prompt_mask_NT))
        found, number = found + len(tokens_NT), number + 1
        if stale == PATIENCE and found < count:
            raise UserError(
                f"task.{split}_sequences {count} are too many: only about {len(taken)} "
                f"different ones of this {task.config.name} exist for both splits; "
                "lower the number, or make the task larger"
            )
    return np.concatenate(parts)[:count], taken


def _hashes(tokens_NT: np.ndarray) -> np.ndarray:
    """Returns a uint64 of each row: a random linear form, modulo 2^64."""
    factors_T = np.random.default_rng(0).integers(
        0, 1 << 64, tokens_NT.shape[1], np.uint64, endpoint=False
    )
    return (tokens_NT.astype(np.uint64) * (factors_T | np.uint64(1))).sum(1)
