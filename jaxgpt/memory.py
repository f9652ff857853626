"""Documents that a model remembers: read them, list them, look up, forget.

python -m jaxgpt.memory ingest --workdir=RUN --memory=notes.memory FILE_OR_FOLDER...
python -m jaxgpt.memory list --memory=notes.memory
python -m jaxgpt.memory query --workdir=RUN --memory=notes.memory "to be or not"
python -m jaxgpt.memory forget --memory=notes.memory NAME...

From Python:

>>> from jaxgpt.memory import Memory
>>> memory = Memory("runs/memory_gpt2-laptop")
>>> memory.ingest({"notes": "the queen of night sings", "list": "no king dares speak"})
>>> [found.document for found in memory.search("the queen of", k=1)]
['notes']
>>> memory.forget("list") > 0
True
>>> list(memory.documents)
['notes']
>>> memory.save("my.memory")  # for --memory of jaxgpt.sample, or to be opened again
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
from typing import TYPE_CHECKING, Any

from jaxgpt import cli
from jaxgpt.config import user_path
from jaxgpt.errors import UserError, require
from jaxgpt.systems.memory.header import peek
from jaxgpt.systems.memory.options import add_allow_other_model

if TYPE_CHECKING:
    from jaxgpt.commands.memory import Found, Memory, MemorySample

__all__ = ["Found", "Memory", "MemorySample"]


def __getattr__(name: str) -> Any:
    """Loads what is offered from Python, and JAX with it, when it is used."""
    if name not in __all__:
        raise AttributeError(f"module 'jaxgpt.memory' has no attribute {name!r}")
    return getattr(importlib.import_module("jaxgpt.commands.memory"), name)


def command(argv: list[str]) -> None:
    """Parses arguments and does what they name first."""
    argv, overrides = cli.after_training_overrides(argv)
    fields, _ = cli.read_fields("memory")
    parser = cli.Parser("jaxgpt.memory", __doc__.split("\n\nFrom Python")[0], fields)
    actions = ["ingest", "list", "query", "forget"]
    parser.add_argument("action", choices=actions, help="what to do")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORDS",
        help="of ingest: files and folders (.txt, .md, .jsonl); of query: the text; of "
        "forget: names of documents",
    )
    parser.add_argument("--memory", required=True, help="file of the memory")
    parser.add_argument(
        "--workdir",
        help="folder of the run that reads and writes it; of a causal one "
        "the memory is of mode output",
    )
    parser.add_argument("--step", default="best", help="checkpoint: step, last or best")
    parser.add_json()
    ingest = parser.add_argument_group("of ingest")
    ingest.add_argument(
        "--split",
        choices=["train", "val", "test"],
        help="read this split of the run's data instead of files",
    )
    ingest.add_argument(
        "--memory_size",
        type=int,
        help="maximum entries (default: what all documents need, never less than now)",
    )
    ingest.add_argument(
        "--dtype",
        choices=["float32", "float16"],
        help="of keys and values in the file (default: as it is, float32 if new)",
    )
    query = parser.add_argument_group("of query")
    query.add_argument("--k", type=int, default=5, help="entries to show")
    add_allow_other_model(query)
    # Names may stand before options and after them.
    args = parser.parse_intermixed_args(argv)
    _check(args, overrides)
    path = user_path(args.memory)
    if not path.parent.is_dir():
        raise UserError(f"--memory='{path}': folder '{path.parent}' does not exist")
    if args.action != "ingest" and not path.exists():
        raise UserError(f"--memory='{path}' does not exist: ingest documents first")
    if args.action == "list":
        show(path, args.json)
        return
    # JAX takes seconds, which --help and wrong usage do not need.
    from jaxgpt.commands.memory_files import execute

    execute(args, overrides)


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


def _check(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Raises UserError for options that are incompatible."""
    action, words = args.action, len(args.words)
    if action in ("ingest", "query") and not args.workdir:
        raise UserError(f"{action} needs --workdir, the run that reads the memory")
    if action == "ingest" and bool(words) == bool(args.split):
        raise UserError("ingest needs files or folders, or --split instead")
    if action == "query":
        require(words == 1, "the text of query", "one, in quotes", words)
        require(args.k >= 1, "--k", ">= 1", args.k)
    if action == "forget" and not words:
        raise UserError("forget needs the names of documents: list shows them")
    if action == "list" and words:
        raise UserError("list shows every document: leave out the names")
    if action != "ingest":
        for name in ("split", "memory_size", "dtype"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name} is for ingest")
    if action != "query" and args.allow_other_model:
        raise UserError("--allow_other_model is for query: it writes nothing")
    if overrides and not args.workdir:
        raise UserError("--config.* needs --workdir, the run that it is read with")
    if args.memory_size is not None:
        require(args.memory_size >= 1, "--memory_size", ">= 1", args.memory_size)


if __name__ == "__main__":
    cli.main(command)
