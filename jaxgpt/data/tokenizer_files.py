"""Tokenizer files: those of runs, read and written, and other programs', read."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from jaxgpt.data import huggingface_folder, sentencepiece
from jaxgpt.data.arrays import read_json_object
from jaxgpt.data.config import TOKENIZERS
from jaxgpt.data.huggingface import HuggingFaceTokenizer
from jaxgpt.data.tokenizers import (
    WORD,
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    WordTokenizer,
)
from jaxgpt.errors import UserError, atomic_write


def from_json(saved: Any) -> Tokenizer:
    """Returns the tokenizer of a `to_json`, or of nanoGPT's meta as JSON.

    Raises:
      UserError: for anything else.
    """
    match saved:
        case {"kind": "char", "characters": str(characters)} if characters:
            return CharTokenizer(characters)
        case {"kind": "word", "words": [str(), *_] as words} if len({*words}) == len(
            words
        ) and all(map(WORD.fullmatch, words)):
            return WordTokenizer(words)
        case {"kind": "gpt2"}:
            return GPT2Tokenizer()
        case {"kind": "huggingface", "tokenizer": dict(file)}:
            return HuggingFaceTokenizer(file, saved.get("named", {}))
        case {"model": dict()}:
            return HuggingFaceTokenizer(saved, {})
        case {"kind": "sentencepiece", "model": str()}:
            return sentencepiece.from_json(saved)
        case list():
            return CharTokenizer(_characters_of_meta({"itos": saved}))
        case {"stoi": _} | {"itos": _} | {"chars": _}:
            return CharTokenizer(_characters_of_meta(saved))
        case dict() if saved and all(isinstance(i, int) for i in saved.values()):
            return CharTokenizer(_characters_of_meta({"stoi": saved}))
    raise UserError(f"it holds no tokenizer of kind {', '.join(TOKENIZERS)}")


def _characters_of_meta(meta: dict[str, Any]) -> str:
    """Returns the characters, in the order of their ids, of nanoGPT's meta as JSON.

    That is {"stoi": {character: id}, "itos": {"id": character}, "vocab_size": count} or
    a part of it, and lists in the order of ids.
    """
    tables = []
    for name in sorted({"stoi", "itos", "chars"} & meta.keys()):
        table = meta[name]
        if not isinstance(table, dict):
            pairs: Iterable[tuple[Any, Any]] = enumerate(table)
        elif name == "stoi":
            pairs = ((i, letter) for letter, i in table.items())
        else:
            pairs = table.items()
        tables.append(sorted((int(str(i)), letter) for i, letter in pairs))
    ids, letters = zip(*tables[0], strict=True) if tables[0] else ((), ())
    count = meta.get("vocab_size", len(ids))
    faults = {
        "its tables contradict each other": any(t != tables[0] for t in tables),
        "its ids are not 0, 1, 2, ...": ids != (*range(len(ids)),),
        "a token is not one character": any(len(letter) != 1 for letter in letters),
        "it lists a character twice": len({*letters}) < len(letters),
        f"it has vocab_size {count} but {len(ids)} characters": count != len(ids),
        "it is empty": not ids,
    }
    if found := next((fault for fault, holds in faults.items() if holds), ""):
        raise UserError(f"it is not a vocabulary of characters: {found}")
    return "".join(letters)


def load(path: pathlib.Path) -> Tokenizer:
    """Reads a tokenizer.json or meta.json; UserError if it is damaged."""
    refused = f"tokenizer file '{path}' cannot be used"
    try:
        text = path.read_text(encoding="utf-8-sig")
        return from_json(json.loads(text))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{refused}: it is not JSON, as a tokenizer.json or meta.json is ({error})"
        ) from None
    except (OSError, ValueError, TypeError, UserError) as error:
        raise UserError(f"{refused}: {error}") from None


def save(tokenizer: Tokenizer, path: pathlib.Path) -> None:
    """Writes the tokenizer.json of a run."""
    with atomic_write(path) as stream:
        stream.write(json.dumps(tokenizer.to_json(), ensure_ascii=False) + "\n")


def read_any(path: pathlib.Path) -> tuple[Tokenizer, tuple[str, ...]]:
    """Reads a tokenizer of any kind from a file or a folder.

    A file is a tokenizer.json, a meta.json, or SentencePiece's .model; a folder is a
    run's, or one that `huggingface_folder.read` reads.

    Returns:
      (tokenizer, notes for the user).

    Raises:
      UserError: if there is no usable one.
    """
    if not path.exists():
        raise UserError(
            f"'{path}' does not exist: name a tokenizer.json, a .model file, or a "
            "folder with vocab.json and merges.txt"
        )
    if path.name in ("vocab.json", "merges.txt"):
        path = path.parent  # Each is half of a tokenizer.
    if path.suffix == ".model":
        return sentencepiece.read(path), ()
    own = path / "tokenizer.json"
    if path.is_dir() and own.exists() and "kind" in read_json_object(own):
        path = own
    if path.is_dir():
        tokenizer, notes = huggingface_folder.read(path)
        if tokenizer is None:
            raise UserError(notes[0] if notes else f"'{path}' holds no tokenizer")
        return tokenizer, notes
    tokenizer = load(path)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer, tokenizer.notes()
    return tokenizer, ()
