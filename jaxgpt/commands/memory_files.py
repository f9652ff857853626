"""The actions of jaxgpt.memory: ingest documents from files, query and forget them."""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxgpt import backend, cli
from jaxgpt import config as configs
from jaxgpt.commands.memory import Memory, memory_system, open_reader
from jaxgpt.config import user_path
from jaxgpt.data import reading
from jaxgpt.data.documents import DocumentData, Segments
from jaxgpt.data.tokenizers import Tokenizer, UnknownCharacterError
from jaxgpt.errors import UserError, log, require
from jaxgpt.run import open_run
from jaxgpt.systems.memory import attached
from jaxgpt.systems.memory.documents import Memory as Documents
from jaxgpt.systems.memory.header import peek
from jaxgpt.systems.memory.options import overrides, said, writing
from jaxgpt.systems.registry import build_system
from jaxgpt.training.progress import status
from jaxgpt.training.run_folder import open_data, read_run

SUFFIXES = (".txt", ".md", ".jsonl")
REPLACEMENTS = ("\N{REPLACEMENT CHARACTER}", "?", " ", "")
# What --tune chooses.
TUNED = ("memory.num_search_results", "memory.temperature", "memory.weight")
SAVE_EVERY_S = 30  # The most that is lost if an ingestion is killed.


def execute(args: argparse.Namespace, changes: dict[str, str]) -> None:
    """Does what `args.action` names, and prints it."""
    backend.set_up_jax()
    path = user_path(args.memory)
    if args.action == "ingest":
        ingest(path, args, changes)
    elif args.action == "query":
        query(path, args, changes)
    else:
        forget(path, args, changes)


def ingest(
    path: pathlib.Path, args: argparse.Namespace, changes: dict[str, str]
) -> None:
    """Reads files, or a split of the run's data, into the memory of a file."""
    folder = user_path(args.workdir)
    trained, tokenizer = read_run(folder)
    named = "memory.memory_size" in changes
    changes = overrides(trained, path) | changes
    config = configs.override(trained.copy_and_resolve_references(), changes)
    replaced = 0
    if args.split:
        texts = texts_of_split(folder, config, trained, tokenizer, args.split)
    else:
        files = files_of(args.words)
        texts, replaced = texts_of_files(files, tokenizer, config)
    with writing(path):
        if args.memory_size is not None:
            changes["memory.memory_size"] = str(args.memory_size)
        elif not named:
            changes["memory.memory_size"] = str(_room(path, texts, config))
        run = open_run(args.workdir, args.step, changes)
        memory = memory_system(run).open_memory(path, model=run.fingerprint)
        memory.dtype = args.dtype or memory.dtype
        began = time.perf_counter()
        if memory.evicted and run.config.memory.memory_size > peek(path).memory_size:
            log("note: memory_size has grown: evicted documents are read again")
            memory.read_again(run.params)
        states = _read_all(memory, run.params, texts, path)
        seconds = time.perf_counter() - began
    found = memory.documents()
    short = [document for document in found if document.kept < 1]
    if short and run.config.memory.keep == "all":
        log(
            f"note: {len(short)} of {len(found)} documents are not kept whole: "
            f"{said(short[0])}; --memory_size keeps more"
        )
    if replaced:
        log(f"note: {replaced:,} characters outside the vocabulary were replaced")
    if args.json:
        cli.print_json(
            {
                "documents": [
                    document._asdict() | {"state": states.get(document.name, "")}
                    for document in found
                ],
                "entries": memory.store.size(),
                "memory_size": run.config.memory.memory_size,
                "replaced_characters": replaced,
                "seconds": seconds,
            }
        )
        return
    counts = [
        f"{sum(state == word for state in states.values())} {word}"
        for word in ("new", "changed", "unchanged")
    ]
    print(
        f"{', '.join(counts)}: '{path}' holds {memory.store.size():,} entries of "
        f"{len(found)} documents"
    )


def _read_all(
    memory: Documents, params: dict, texts: dict[str, np.ndarray], path: pathlib.Path
) -> dict[str, str]:
    """Reads what is new or has changed, and saves; returns {name: what it was}."""
    states = {}
    saved = time.monotonic()
    for nth, (name, tokens_T) in enumerate(texts.items(), 1):
        known = name in memory.names
        if known and np.array_equal(memory.texts[memory.number(name)], tokens_T):
            states[name] = "unchanged"
            continue
        states[name] = "changed" if known else "new"
        if known:
            memory.forget(name, params)
        memory.read(params, name, tokens_T)
        log(f"{nth}/{len(texts)}  '{name}' {states[name]}, {len(tokens_T):,} tokens")
        if time.monotonic() - saved > SAVE_EVERY_S:
            memory.save(path)
            saved = time.monotonic()
    memory.save(path)
    return states


def _room(path: pathlib.Path, texts: dict[str, np.ndarray], config: ConfigDict) -> int:
    """Returns a size with room for a memory's documents and for texts."""
    sizes = {name: len(tokens_T) for name, tokens_T in texts.items()}
    least = config.memory.memory_size
    if path.exists():
        header = peek(path)
        for number, count in header.reads:
            name = header.names[number]
            if name not in texts:
                sizes[name] = sizes.get(name, 0) + count
    # A power of two: each size is compiled for.
    return max(least, 1 << (max(1, sum(sizes.values())) - 1).bit_length())


def files_of(words: list[str]) -> dict[str, pathlib.Path]:
    """Returns {name: path} of files, and of those in folders.

    Raises:
      UserError: for one that does not exist, has another ending or is named twice.
    """
    found: dict[str, pathlib.Path] = {}
    for word in words:
        path = user_path(word)
        if not path.exists():
            raise UserError(f"'{word}' does not exist: name a file or a folder")
        for file in reading.text_files(path, SUFFIXES, what=""):
            if file.suffix.lower() not in SUFFIXES:
                endings = ", ".join(SUFFIXES)
                raise UserError(f"'{file}' must end in one of {endings}")
            if file.as_posix() in found:
                raise UserError(f"'{file}' is named twice: name it once")
            found[file.as_posix()] = file
    return found


def texts_of_files(
    files: dict[str, pathlib.Path], tokenizer: Tokenizer | None, config: ConfigDict
) -> tuple[dict[str, np.ndarray], int]:
    """Returns {name: tokens [T]}, and how many characters were replaced.

    A line of a .jsonl file is a document, with a "text" and optionally a "name".

    Raises:
      UserError: without a tokenizer, for a file that is not text, or a name given
        twice.
    """
    if tokenizer is None:
        raise UserError("this run has no tokenizer, so it reads no files: see --split")
    found: dict[str, np.ndarray] = {}
    replaced = 0
    for name, text in _texts(files, config.data.normalize):
        if name in found:
            raise UserError(f"two documents are named '{name}': rename one")
        unknown = {character for character in set(text) if _lacks(tokenizer, character)}
        if unknown:
            replaced += sum(map(text.count, unknown))
            other = next(c for c in REPLACEMENTS if not c or not _lacks(tokenizer, c))
            text = text.translate(dict.fromkeys(map(ord, unknown), other))
        tokens_T = tokenizer.encode(text) if text else np.zeros(0, np.int32)
        if len(tokens_T):
            found[name] = tokens_T
        else:
            log(f"note: '{name}' is empty: there is nothing to read")
    if not found:
        raise UserError("the files hold no text: name others")
    return found, replaced


def _texts(files: dict[str, pathlib.Path], normalize: str) -> Iterator[tuple[str, str]]:
    for name, file in files.items():
        if file.suffix.lower() != ".jsonl":
            yield name, "".join(reading.iter_chunks([file], normalize))
            continue
        for nth, line in enumerate(reading.iter_lines([file]), 1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
                text, own = document["text"], document.get("name", f"{name}:{nth}")
            except (ValueError, TypeError, KeyError, RecursionError):
                text = own = None
            named = isinstance(own, str) and own and own.isprintable()
            if not (isinstance(text, str) and named):
                raise UserError(
                    f"line {nth} of '{file}' must be a JSON object with a \"text\", "
                    'and a "name" of printable characters if it has one'
                )
            yield own, reading.normalized(text, normalize)


def _lacks(tokenizer: Tokenizer, character: str) -> bool:
    try:
        tokenizer.encode(character)
    except (UnknownCharacterError, UnicodeEncodeError):
        return True
    return False


def texts_of_split(
    folder: pathlib.Path,
    config: ConfigDict,
    trained: ConfigDict,
    tokenizer: Tokenizer | None,
    split: str,
) -> dict[str, np.ndarray]:
    """Returns {"train/0": tokens [T]} of the documents of a split."""
    data = open_data(folder, config, trained, build_system(config), tokenizer)
    if not isinstance(data, DocumentData):
        raise UserError(f"'{folder}' has no text: --split needs one")
    part = data.splits[split]
    if not len(part.ends):
        raise UserError(f"the {split} split of '{folder}' is empty: name another")
    texts = np.split(np.asarray(part.tokens[: part.ends[-1]]), part.ends[:-1])
    return {f"{split}/{nth}": text.astype(np.int32) for nth, text in enumerate(texts)}


def query(
    path: pathlib.Path, args: argparse.Namespace, changes: dict[str, str]
) -> None:
    """Prints the passages of a memory that are nearest to a text."""
    run = open_reader(args.workdir, args.step, path, changes)
    memory = Memory(run, path, allow_other_model=args.allow_other_model)
    matches = [
        {
            "document": found.document,
            "text": found.text,
            "position": found.position,
            "distance": -found.score,
        }
        for found in memory.search(args.words[0], args.k)
    ]
    if args.json:
        cli.print_json({"matches": matches})
        return
    if not matches:
        log(f"note: '{path}' holds no entries")
    for match in matches:
        print(
            f"{match['distance']:8.4f}  {match['document']} at {match['position']}: "
            f"{match['text']!r}"
        )


def forget(
    path: pathlib.Path, args: argparse.Namespace, changes: dict[str, str]
) -> None:
    """Removes documents from a memory, for good."""
    with writing(path):
        params = None
        if args.workdir:
            run = open_reader(args.workdir, args.step, path, changes)
            memory = memory_system(run).open_memory(path, model=run.fingerprint)
            params = run.params
        else:
            memory = Documents.load(path)
        for name in args.words:
            memory.number(name)
        if memory.evicted and params is None:
            log(
                "note: entries that these documents evicted do not come back; with "
                "--workdir the others are read again"
            )
        gone = {name: memory.forget(name, params) for name in dict.fromkeys(args.words)}
        memory.save(path)
    if args.json:
        cli.print_json({"forgotten": gone, "left": memory.store.size()})
        return
    for name, count in gone.items():
        print(f"{count:,} entries of '{name}' forgotten")


def evaluate_with_memory(
    args: argparse.Namespace, changes: dict[str, str]
) -> dict[str, Any]:
    """Returns the loss of a split or document with a memory, and without it.

    Args:
      args: of jaxgpt.evaluate.
      changes: of the run's config.

    Raises:
      UserError: if the memory is not this model's, or cannot be tuned.
    """
    path = user_path(args.memory)
    if not path.exists():
        raise UserError(f"--memory='{path}' does not exist: ingest documents first")
    if args.tune:
        if peek(path).settings["memory.mode"] != "output":
            raise UserError("--tune is for a memory of mode output: others are learned")
        for clash in {*TUNED} & {*changes}:
            raise UserError(f"--tune chooses {clash}: leave that out")
        changes = changes | {TUNED[0]: str(max(attached.RESULTS))}
    run = open_reader(args.workdir, args.step, path, changes)
    memory = memory_system(run).open_memory(
        path, model=run.fingerprint, allow_other_model=args.allow_other_model
    )
    rows, T = run.config.batch_size, run.system.window

    def of_split(split: str) -> Segments:
        return run.open_data().eval_windows(split, T)

    # Before tuning, which takes long, what it is for must be there.
    if args.document:
        files = files_of([args.document])
        texts, _ = texts_of_files(files, run.tokenizer, run.config)
        (name, tokens_T), *more = texts.items()
        require(not more, "--document", "one text", args.document)
        require(len(tokens_T) > 1, f"'{name}'", "two tokens or more", len(tokens_T))
        segments = attached.of_text(tokens_T, run.config.model.block_size)
    else:
        segments = of_split(args.split)
    figures: dict[str, Any] = {}
    setting = None
    if args.tune:
        with status("tuning on the validation split"):
            found = attached.find_neighbours(memory, run.params, of_split("val"), rows)
        setting = attached.tune(found)
        figures["tuned"] = setting._asdict()
        flags = (f"--config.{k}={v}" for k, v in zip(TUNED, setting[:3], strict=True))
        log(
            f"tuned on val: {' '.join(flags)} ({setting.loss:.4f} nats; without the "
            f"memory {found.nll_P.mean():.4f})"
        )
    with status("scoring with the memory and without"):
        if setting:
            found = attached.find_neighbours(memory, run.params, segments, rows)
            nll = {"on": found.nll(*setting[:3]), "off": found.nll_P}
        else:
            nll = attached.losses(memory, run.params, segments, rows)
    return attached.summary(nll) | {"step": run.step} | figures
