"""Carries out the entropy command."""

from __future__ import annotations

import argparse
import pathlib
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from ml_collections import ConfigDict

from jaxgpt import backend
from jaxgpt.data.arrays import read_integers
from jaxgpt.errors import UserError, atomic_write, log, os_errors
from jaxgpt.systems.gssm import baselines, information, likelihood
from jaxgpt.systems.gssm.dataset import read_dataset
from jaxgpt.systems.gssm.graph_files import load_graph
from jaxgpt.systems.gssm.process import Stream, make_process, resolve


def measure(
    args: argparse.Namespace, config: ConfigDict, outputs: Mapping[str, pathlib.Path]
) -> dict[str, Any]:
    """Returns the figures of the entropy command, and writes its files.

    Args:
      args: its options.
      config: of the graph, and of the sequences where no tokens are given.
      outputs: {"nll", "predictive", "beliefs", "save_kernels" or "save_graph": its
        path}.

    Raises:
      UserError: if a file cannot be used or written.
    """
    config.gssm.kernels = args.kernels or config.gssm.kernels
    tables = resolve(config)
    graph = load_graph(config.gssm.graph)
    if "save_kernels" in outputs and tables is None and graph.has_context:
        raise UserError(
            "--save_kernels: context nodes have no kernels to save: they are redrawn "
            "for every batch or sequence"
        )
    tokens_NT, digest = _read_tokens(args.tokens) if args.tokens else (None, "")
    backend.set_up_jax()
    starts = config.gssm.first_token == "start"
    if tokens_NT is not None and starts and tokens_NT[:, 0].any():
        log(f"note: '{args.tokens}' does not start in state 0: first_token=drawn")
        config.gssm.first_token = "drawn"
    c, process = config, make_process(config, tables)
    if digest not in ("", process.digest):
        log(
            f"note: '{args.tokens}' was written with another graph or kernels: the "
            "figures are of these"
        )
    wanted = [name for name in ("predictive", "beliefs") if name in outputs]
    for name in wanted + ["decompose"] * args.decompose:
        process.check_known(args.tokens or "fresh sequences", name)
    if tokens_NT is None:
        count, length = args.num_sequences, c.model.block_size + 1
        stream = Stream(c.seed, "val", c.batch_size)
        tokens_NT = process.held_out(stream, count, length)
        bounds = process.bounds(tokens_NT, stream, args.dtype)
    else:
        process.check_given(tokens_NT, args.tokens)
        if process.floor_name == "bayes_estimate":
            log("note: the lower bound needs the states behind the tokens: left out")
            bounds = {"bayes_estimate": process.estimate(tokens_NT, c.seed, "val")}
        else:
            bounds = {process.floor_name: process.score(tokens_NT, args.dtype)}
    floor_NT = bounds[process.floor_name]
    figures = baselines.summary(process, config, tokens_NT, bounds, args.dtype)
    if place := likelihood.impossible(floor_NT):
        log(f"note: {place}: these kernels cannot have generated it")
    if args.decompose:
        figures["decomposition"] = information.decompose(process, tokens_NT, args.dtype)
    for name, path in outputs.items():
        found: Any
        if name == "save_graph":
            found = graph.to_yaml()
        elif name == "nll":
            found = floor_NT
        elif name == "save_kernels":
            found = {f"table/{node}": table for node, table in process.tables.items()}
        else:
            found = process.score(tokens_NT, args.dtype, name)
        what = f"--{name}='{getattr(args, name)}'"
        with os_errors(what), atomic_write(path, "wb") as file:
            if isinstance(found, str):
                file.write(found.encode())
            elif isinstance(found, dict):
                _save_npz(file, found)
            else:
                np.save(file, found)
    return figures


def _read_tokens(name: str) -> tuple[np.ndarray, str]:
    """Returns tokens [B, T] of an .npy file, or of a dataset, and its digest or ""."""
    if not name.lower().endswith((".h5", ".hdf5")):
        return read_integers(name), ""
    attributes, tokens_NT = read_dataset(name)
    return tokens_NT, attributes.get("digest", "")


def _save_npz(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file; np.savez cannot name an array "file"."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array(part, array, allow_pickle=False)
