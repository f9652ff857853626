"""Sequences to train on: sampled as they are needed, or read from an HDF5 file.

A file holds the dataset "tokens" [N, T], contiguous so that it can be memory-mapped,
optionally the latents' states as "latents/NAME", in its attributes all settings that it
was generated with, and kernels that were given as "kernels/NAME". "data", the name by
which the original reads the tokens, is a link to them.

The original's own files hold "data" alone. Their graph is unknown, so they are compared
with sequences of the graph in the config.
"""

from __future__ import annotations

import math
import pathlib
import time
from typing import Any

import h5py
import jax
import numpy as np
from ml_collections import ConfigDict

import jaxgpt
from jaxgpt import backend
from jaxgpt.config import user_path
from jaxgpt.data.arrays import check_integers, epoch_rows
from jaxgpt.data.cache import fingerprint, resolve_path
from jaxgpt.errors import UserError, atomic_write, log, require
from jaxgpt.systems.gssm import baselines, likelihood
from jaxgpt.systems.gssm.baselines import token_dtype
from jaxgpt.systems.gssm.graph_files import load_graph
from jaxgpt.systems.gssm.process import GraphProcess, Stream, make_process, resolve

FORMAT = "jaxgpt.gssm 1"
ORIGINAL = "data"  # The original's name of the tokens.
COMMAND = "python -m jaxgpt.systems.gssm.generate"
# How many sequences of a file are compared, and the difference in standard errors from
# which they are those of another graph.
COMPARED, TOO_FAR = 256, 8
ROUNDING = 1e-6


class OnlineData:
    """Sequences sampled on the device; training never sees one twice."""

    tokenizer, fingerprint = None, ""

    def __init__(self, config: ConfigDict, process: GraphProcess):
        self.config, self.process = config, process
        self.vocab_size = process.vocab_size

    def batch_at(
        self, seed: int, split: str, step: int, size: int, length: int
    ) -> jax.Array | np.ndarray:
        """Returns int32 [size, length], a pure function of (seed, split, step)."""
        return self.process.sample(Stream(seed, split, size), step, length)

    def eval_windows(
        self, split: str, length: int, count: int | None = None
    ) -> np.ndarray:
        """Returns the first sequences of a split, int32 [count, length].

        A split is endless: the default count is `eval_sequences`.
        """
        c = self.config
        count = count or c.eval_sequences
        stream = Stream(c.seed, split, c.batch_size)
        return self.process.held_out(stream, count, length)


class FiniteData(OnlineData):
    """Trains on the rows of an array, each once an epoch; other splits are sampled."""

    def __init__(
        self,
        config: ConfigDict,
        process: GraphProcess,
        tokens_NT: np.ndarray,
        fingerprint: str = "",
    ):
        super().__init__(config, process)
        self.tokens_NT, self.fingerprint = tokens_NT, fingerprint

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
        """Returns fixed sequences; those of train are spread over the array."""
        if split != "train":
            return super().eval_windows(split, length, count)
        N = len(self.tokens_NT)
        rows = np.linspace(0, N - 1, min(count or N, N)).astype(np.int64)
        return self.tokens_NT[rows, :length].astype(np.int32)


def open_data(config: ConfigDict, process: GraphProcess, length: int) -> OnlineData:
    """Opens `data.path`, an HDF5 file of this process; "" samples sequences instead.

    `gssm.sequences` limits either to its first sequences.

    Raises:
      UserError: if the file is of another graph or truncated, or its sequences too
        short or too few.
    """
    name, count = config.data.path, config.gssm.sequences
    if name:
        path = resolve_path(config.data)
        digest = fingerprint(path, [path], config.data)
        tokens_NT = open_tokens(str(path), process)
        N, T = tokens_NT.shape
        require(count <= N, "gssm.sequences", f"<= {N}, all that '{name}' has", count)
        if length > T:
            raise UserError(
                f"'{name}' has sequences of {T} tokens: model.block_size "
                f"{config.model.block_size} needs {length}"
            )
        return FiniteData(config, process, tokens_NT[: count or None], digest)
    if not count:
        return OnlineData(config, process)
    stream = Stream(config.seed, "train", config.batch_size)
    sampled_NT = process.held_out(stream, count, length)
    return FiniteData(config, process, sampled_NT)


def read_dataset(name: str) -> tuple[dict[str, Any], np.ndarray]:
    """Returns the attributes of a file, and its tokens [N, T] memory-mapped.

    A file of the original has no attributes, and is read in the smallest dtype.

    Raises:
      UserError: if it is not a dataset, or truncated.
    """
    path = user_path(name)
    if not path.is_file():
        raise UserError(
            f"data.path '{name}' does not exist: write it with {COMMAND}, or leave it "
            "empty to sample online"
        )
    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
            if not attributes and ORIGINAL in file and "tokens" not in file:
                return attributes, _read_original(file[ORIGINAL], name)
            if attributes.get("format") != FORMAT or "tokens" not in file:
                raise UserError(
                    f"'{name}' is not a dataset written by {COMMAND}, nor one of the "
                    f"original's, which hold '{ORIGINAL}' alone"
                )
            tokens = file["tokens"]
            # By NumPy rather than h5py, whose indexing by rows is slow. Raises
            # ValueError where the file is shorter than its tokens.
            offset = tokens.id.get_offset()
            tokens_NT = np.memmap(path, tokens.dtype, "r", offset, tokens.shape)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"'{name}' is truncated or not an HDF5 file ({reason}): generate it again"
        ) from None
    return attributes, tokens_NT


def _read_original(tokens: Any, name: str) -> np.ndarray:
    """Returns tokens of a dataset in chunks, which cannot be memory-mapped."""
    if not isinstance(tokens, h5py.Dataset) or tokens.ndim != 2 or not tokens.size:
        raise UserError(f"'{name}': '{ORIGINAL}' must hold integers [rows, tokens]")
    parts = []
    rows = max(1, (1 << 22) // tokens.shape[1])
    for start in range(0, len(tokens), rows):
        part = check_integers(tokens[start : start + rows], name)
        low, high = int(part.min()), int(part.max())
        require(low >= 0, f"tokens of '{name}'", ">= 0", low)
        parts.append(part.astype(np.min_scalar_type(high)))
    return np.concatenate(parts)


def check_dataset(name: str, config: ConfigDict) -> None:
    """Checks a dataset against the `gssm` fields by its header: no kernel is drawn.

    Raises:
      UserError: if it is not a dataset, truncated, or of other fields.
    """
    attributes, _ = read_dataset(name)
    for field in ("graph", "graph_seed", "clip", "first_token", "context"):
        if attributes.get(field, config.gssm[field]) != config.gssm[field]:
            raise _another_graph(name, attributes)


def open_tokens(name: str, process: GraphProcess) -> np.ndarray:
    """Memory-maps the tokens [N, T] of a dataset, or reads those of the original.

    Raises:
      UserError: if it is not a dataset, truncated, or of another graph.
    """
    attributes, tokens_NT = read_dataset(name)
    if not attributes:
        _compare(name, process, tokens_NT)
    elif attributes.get("digest") != process.digest:
        raise _another_graph(name, attributes)
    return tokens_NT


def _compare(name: str, process: GraphProcess, tokens_NT: np.ndarray) -> None:
    """Compares a file of the original with the graph, and logs the result.

    Raises:
      UserError: if their likelihood is not that of sequences of the graph.
    """
    try:
        likelihood.check_tokens(process.graph, tokens_NT, process.first_token)
    except UserError as error:
        raise UserError(f"'{name}': {error}") from None
    unknown = f"note: '{name}' does not record its graph"
    if process.first_token == "drawn" and not tokens_NT[:, 0].any():
        log(f"note: '{name}' begins with 0 throughout: gssm.first_token=start?")
    if process.graph.has_context:
        log(f"{unknown}: it is assumed to be this one")
        return
    N, T = tokens_NT.shape
    rows = np.linspace(0, N - 1, min(N, COMPARED)).astype(np.int64)
    given_NT = process.score(tokens_NT[rows], "float64")
    if place := likelihood.impossible(given_NT):
        raise UserError(f"'{name}' is of another graph or kernels: {place}")
    own_NT = process.held_out(Stream(0, "fit", COMPARED), COMPARED, T)
    own, given = baselines.mean(process.score(own_NT, "float64")), given_NT.mean()
    costs = f"{given:.4f} nats per token, sequences of this graph {own.value:.4f}"
    chance = (own.error or 0.0) * math.sqrt(1 + COMPARED / len(rows))
    if abs(given - own.value) > TOO_FAR * chance + ROUNDING:
        raise UserError(
            f"'{name}' is of another graph or kernels: it costs {costs}, with a "
            f"standard error of {chance:.4f}: give those that drew it, the kernels as "
            "gssm.kernels"
        )
    log(f"{unknown}: it is assumed to be this one, and costs {costs}")


def _another_graph(name: str, attributes: dict[str, Any]) -> UserError:
    return UserError(
        f"'{name}' holds sequences of another graph (graph_seed "
        f"{attributes.get('graph_seed')}): set the gssm.* fields it was written with"
    )


def generate(
    config: ConfigDict,
    output: pathlib.Path,
    sequences: int,
    chunk_size: int,
    latents: bool = False,
) -> dict[str, Any]:
    """Writes a file of sequences of model.block_size + 1 tokens: see `write_dataset`.

    Returns:
      The number of sequences, tokens, bytes and seconds.

    Raises:
      OSError: as `write_dataset`.
      UserError: if the graph or its kernels cannot be used.
    """
    tables = resolve(config)  # Before JAX starts, which takes longer than its errors.
    backend.set_up_jax()
    began = time.perf_counter()
    shape = (sequences, config.model.block_size + 1)
    process = make_process(config, tables)
    write_dataset(output, config, process, shape, chunk_size, latents)
    return {
        "sequences": sequences,
        "tokens": sequences * shape[1],
        "bytes": output.stat().st_size,
        "seconds": time.perf_counter() - began,
    }


def write_dataset(
    output: pathlib.Path,
    config: ConfigDict,
    process: GraphProcess,
    shape: tuple[int, int],
    chunk_size: int,
    latents: bool = False,
) -> None:
    """Writes a file of sequences: the rows of the training batches in order.

    Args:
      output: the file, written atomically.
      config: its seed and batch_size are those of the training batches.
      process: of the sequences.
      shape: (sequences, tokens of each).
      chunk_size: sequences held in memory at a time, rounded up to whole batches.
      latents: whether their states are written too.

    Raises:
      OSError: if the disk is full or the folder not writable.
    """
    rows, (N, T) = config.batch_size, shape
    stream = Stream(config.seed, "train", rows)
    attributes = {
        "format": FORMAT,
        "version": jaxgpt.__version__,
        "graph": load_graph(config.gssm.graph).to_json(),
        "vocab_size": process.vocab_size,
        "graph_seed": config.gssm.graph_seed,
        "clip": config.gssm.clip,
        "first_token": config.gssm.first_token,
        "context": config.gssm.context,
        "seed": config.seed,
        "batch_size": rows,
        "digest": process.digest,
    }
    batches = -(-chunk_size // rows)
    with atomic_write(output, "w+b") as raw, h5py.File(raw, "w") as file:
        file.attrs.update(attributes)
        if config.gssm.kernels:
            for name, table in process.tables.items():
                file[f"kernels/{name}"] = table
        nodes = process.graph.order if latents else (process.graph.observed,)
        arrays = {
            node.name: file.create_dataset(
                "tokens" if node.observed else f"latents/{node.name}",
                shape,
                token_dtype(node.state_dim),
            )
            for node in nodes
        }
        file[ORIGINAL] = file["tokens"]
        # 100,000 sequences take under a second, so there is nothing to resume.
        for start in range(0, N, batches * rows):
            count = min(batches * rows, N - start)
            states = process.held_out_nodes(
                tuple(arrays), stream, count, T, start // rows
            )
            for name, array in arrays.items():
                array[start : start + count] = states[name]
