"""What jaxgpt.memory list prints, without loading NumPy or JAX."""

from __future__ import annotations

import pathlib

from jaxgpt import cli
from jaxgpt.systems.memory.header import peek


def show(path: pathlib.Path, as_json: bool) -> None:
    """Prints the documents of a memory."""
    header = peek(path)
    found, by, size = header.documents(), header.written_by, path.stat().st_size
    entries = sum(header.entries)
    mode, index_type = header.settings["memory.mode"], header.index["index_type"]
    if as_json:
        cli.print_json(
            {
                "documents": [document._asdict() for document in found],
                "entries": entries,
                "memory_size": header.memory_size,
                "bytes": size,
                "mode": mode,
                "index_type": index_type,
                "dtype": header.dtype,
                "model": by,
            }
        )
        return
    print(f"{'entries':>10}  {'tokens':>10}  {'kept':>5}  document")
    for document in found:
        print(
            f"{document.entries:>10,}  {document.tokens:>10,}  {document.kept:>5.0%}  "
            f"{document.name}"
        )
    model = f"run '{by['run']}', step {by['step']}" if by else "no run yet"
    print(
        f"{entries:,} entries of {header.memory_size:,}, {size / 1e6:.2f} MB, {mode}, "
        f"{index_type}, {header.dtype}; written by {model}"
    )
