"""Sequences to train on: drawn as they are needed, or read from an HDF5 file.

A file holds the dataset "tokens" [n, T], in one piece so that it can be memory-mapped,
and in its attributes all that made it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import h5py
import jax
import numpy as np
from ml_collections import ConfigDict
from rich import progress
from rich.console import Console

import jaxgpt
from jaxgpt.config import user_path
from jaxgpt.data.arrays import epoch_rows
from jaxgpt.errors import UserError
from jaxgpt.systems.gssm import baselines
from jaxgpt.systems.gssm.source import Source

FORMAT = "jaxgpt.gssm 1"


class OnlineData:
    """Sequences drawn on the device: no sequence comes twice."""

    tokenizer = None

    def __init__(self, config: ConfigDict, source: Source):
        self.config, self.source = config, source
        self.vocab_size = source.vocab_size

    def batch_at(
        self, seed: int, split: str, step: int, size: int, length: int
    ) -> jax.Array | np.ndarray:
        """Returns int32 [size, length], a pure function of (seed, split, step)."""
        return self.source.draw(seed, split, step, size, length)

    def eval_windows(
        self, split: str, length: int, count: int | None = None
    ) -> np.ndarray:
        """Returns int32 [count, length]: the first sequences of a split.

        Without a count they are `eval_sequences`: a split has no end.
        """
        c = self.config
        count = count or c.eval_sequences
        return self.source.held_out(c.seed, split, count, c.batch_size, length)


class FiniteData(OnlineData):
    """Training sequences of an array, each once an epoch; other splits are drawn."""

    def __init__(self, config: ConfigDict, source: Source, tokens_NT: np.ndarray):
        super().__init__(config, source)
        self.tokens_NT = tokens_NT

    def batch_at(
        self, seed: int, split: str, step: int, size: int, length: int
    ) -> jax.Array | np.ndarray:
        """Returns int32 [size, length]: epochs one after another, each shuffled."""
        if split != "train":
            return super().batch_at(seed, split, step, size, length)
        rows = epoch_rows(seed, step, size, len(self.tokens_NT))
        return self.tokens_NT[rows, :length].astype(np.int32)

    def eval_windows(
        self, split: str, length: int, count: int | None = None
    ) -> np.ndarray:
        """Returns the same sequences every time: of train, spread over the array."""
        if split != "train":
            return super().eval_windows(split, length, count)
        N = len(self.tokens_NT)
        rows = np.linspace(0, N - 1, min(count or N, N)).astype(np.int64)
        return self.tokens_NT[rows, :length].astype(np.int32)


def open_data(config: ConfigDict, source: Source, length: int) -> OnlineData:
    """Opens `data.path`, an HDF5 file of this source; "" draws sequences instead.

    Of both, `gssm.sequences` takes the first ones only.

    Raises:
      UserError: where the file is another graph's or truncated, or its sequences too
        short or too few.
    """
    first = config.gssm.sequences
    if not config.data.path:
        if not first:
            return OnlineData(config, source)
        rows = config.batch_size
        drawn = source.held_out(config.seed, "train", first, rows, length)
        return FiniteData(config, source, drawn)
    tokens_NT = read(config.data.path, source)
    if first > len(tokens_NT):
        raise UserError(
            f"'{config.data.path}' has {len(tokens_NT)} sequences: gssm.sequences asks "
            f"for {first}"
        )
    if tokens_NT.shape[1] < length:
        raise UserError(
            f"'{config.data.path}' has sequences of {tokens_NT.shape[1]} tokens: "
            f"model.block_size {config.model.block_size} needs {length}"
        )
    return FiniteData(config, source, tokens_NT[: first or None])


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of its tokens [N, T]: where they lie, and what made them."""

    path: pathlib.Path
    shape: tuple[int, int]
    dtype: np.dtype
    offset: int
    attributes: dict[str, Any]


def open_file(name: str) -> Header:
    """Reads the header of a file that `write` made.

    Raises:
      UserError: where it is no such file, or truncated.
    """
    path = user_path(name)
    if not path.is_file():
        raise UserError(
            f"data.path '{name}' does not exist: write it with python -m "
            "jaxgpt.systems.gssm.generate, or leave it empty to draw online"
        )
    try:
        with h5py.File(path, "r") as file:
            found = dict(file.attrs)
            if found.get("format") != FORMAT or "tokens" not in file:
                raise UserError(
                    f"'{name}' is no dataset of python -m jaxgpt.systems.gssm.generate"
                )
            tokens = file["tokens"]
            shape, dtype, offset = tokens.shape, tokens.dtype, tokens.id.get_offset()
    except (OSError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"'{name}' is truncated or no HDF5 file ({reason}): generate it again"
        ) from None
    if offset is None or path.stat().st_size < offset + dtype.itemsize * np.prod(shape):
        raise UserError(f"'{name}' is truncated: generate it again")
    return Header(path, shape, dtype, offset, found)


def check(name: str, config: ConfigDict) -> None:
    """Refuses a file of another graph by its header alone: no kernel is drawn.

    Raises:
      UserError: where it is no such file, truncated, or of other `gssm` fields.
    """
    found, c = open_file(name).attributes, config.gssm
    for field in ("graph", "graph_seed", "clip", "first_token"):
        if field in found and found[field] != c[field]:
            raise _another_graph(name, found)


def _another_graph(name: str, attributes: dict[str, Any]) -> UserError:
    return UserError(
        f"'{name}' holds sequences of another graph (graph_seed "
        f"{attributes.get('graph_seed')}): the gssm.* fields must be those it was "
        "written with"
    )


def read(name: str, source: Source) -> np.ndarray:
    """Memory-maps the tokens [N, T] of a file that `write` made.

    Raises:
      UserError: where it is no such file, truncated, or of another graph.
    """
    header = open_file(name)
    if header.attributes.get("digest") != source.digest:
        raise _another_graph(name, header.attributes)
    return np.memmap(header.path, header.dtype, "r", header.offset, header.shape)


def attributes(config: ConfigDict, source: Source) -> dict[str, Any]:
    """Returns what a file says of its sequences."""
    return {
        "format": FORMAT,
        "version": jaxgpt.__version__,
        "graph": source.graph.to_json(),
        "vocab_size": source.vocab_size,
        "graph_seed": config.gssm.graph_seed,
        "clip": config.gssm.clip,
        "first_token": config.gssm.first_token,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "digest": source.digest,
    }


def write(
    output: pathlib.Path,
    config: ConfigDict,
    source: Source,
    shape: tuple[int, int],
    chunk_size: int,
) -> None:
    """Writes a file of sequences, row after row of the training batches.

    What it holds does not depend on chunk_size, nor on how often it was resumed.

    Args:
      output: the file; until it is whole, `output.part` is.
      config: of the seed and batch_size drawn with.
      source: of the sequences.
      shape: sequences, and tokens of each.
      chunk_size: sequences written at a time.

    Raises:
      OSError: where the disk is full or the folder cannot be written to.
    """
    rows, (N, T) = config.batch_size, shape
    writer = Writer(output, shape, attributes(config, source))
    try:
        step, skip = divmod(writer.done, rows)
        waiting = np.zeros((0, T), np.int32)
        with progress.Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("sequences", total=N, completed=writer.done)
            while writer.done < N:
                wanted = min(chunk_size, N - writer.done)
                while len(waiting) < wanted:
                    batch = source.draw(config.seed, "train", step, rows, T)
                    waiting = np.concatenate([waiting, np.asarray(batch)[skip:]])
                    step, skip = step + 1, 0
                writer.append(waiting[:wanted])
                waiting = waiting[wanted:]
                bar.update(task, completed=writer.done)
        writer.finish()
    finally:
        writer.close()


class Writer:
    """A dataset in the making: a file beside the one it will be, which can be resumed.

    The attribute "done" counts the sequences that are on disk.
    """

    def __init__(
        self, output: pathlib.Path, shape: tuple[int, int], attributes: dict[str, Any]
    ):
        self.output = output
        self.part = output.with_name(output.name + ".part")
        self.file = self._resume(shape, attributes) or self._begin(shape, attributes)
        self.done = int(self.file.attrs["done"])

    def _begin(self, shape, attributes) -> h5py.File:
        self.part.unlink(missing_ok=True)
        file = h5py.File(self.part, "w")
        file.attrs.update(attributes | {"done": 0})
        dtype = baselines.token_dtype(attributes["vocab_size"])
        file.create_dataset("tokens", shape, dtype)
        return file

    def _resume(self, shape, attributes) -> h5py.File | None:
        try:
            file = h5py.File(self.part, "r+")
        except BlockingIOError:  # Another process is writing it.
            raise
        except OSError:
            return None
        same = all(file.attrs.get(key) == value for key, value in attributes.items())
        if same and "tokens" in file and file["tokens"].shape == shape:
            return file
        file.close()
        return None

    def append(self, tokens_NT: np.ndarray) -> None:
        """Writes the next sequences, and counts them once they are on disk."""
        end = self.done + len(tokens_NT)
        self.file["tokens"][self.done : end] = tokens_NT
        self.file.flush()
        self.done = end
        self.file.attrs["done"] = end
        self.file.flush()

    def finish(self) -> None:
        """Gives the file its name: it is whole or not there."""
        self.file.close()
        self.part.replace(self.output)

    def close(self) -> None:
        """Leaves what there is for a later resumption."""
        self.file.close()
