"""The cache of tokenised texts and trained tokenizers."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.config import find_path, shipped, user_path
from jaxgpt.data import reading, sentencepiece, tokenizer_files
from jaxgpt.data.reading import file_digest
from jaxgpt.data.tokenizers import (
    END_OF_TEXT_TOKEN,
    WORD,
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    UnknownCharacterError,
    WordTokenizer,
)
from jaxgpt.errors import UserError, log, os_errors

# To be raised whenever what is written changes, or stale tokens are read.
VERSION = 4
DIGESTS = "sha256.json"  # {file: SHA-256} of a folder of tokens.
OF_TOKENIZER = ("tokenizer", "vocab_size", "sentencepiece_type")
FILES = ("path", "fingerprint", "sentencepiece_model", "tokenizer_file")
NOT_OF_TOKENS = (*FILES, *OF_TOKENIZER)


def cache_root() -> pathlib.Path:
    """Returns $JAXGPT_CACHE, the folder of everything that can be made again.

    Raises:
      UserError: if it is not set and there is no home folder.
    """
    named = os.environ.get("JAXGPT_CACHE", "~/.cache/jaxgpt")
    try:
        return user_path(named)
    except UserError as error:
        raise UserError(f"{error}: set JAXGPT_CACHE to a writable folder") from None


class OtherDataError(UserError):
    """`data.path` holds other data than the run was trained on."""


def resolve_path(data: ConfigDict) -> pathlib.Path:
    """Returns the absolute path of data.path, or of the shipped file of that name.

    A shipped text that a run was trained on is found wherever jaxgpt is installed now.
    """
    path = find_path(data.path)
    if data.path and path.exists():
        return pathlib.Path(os.path.abspath(path))
    own = shipped("data") / path.name
    if own.is_file() and file_digest(own) == data.fingerprint:
        return own
    raise UserError(
        f"data.path '{data.path}' does not exist: name a text file or folder"
    )


def fingerprint(
    path: pathlib.Path, files: Iterable[pathlib.Path], data: ConfigDict
) -> str:
    """Returns the SHA-256 of a file, or of the names and SHA-256s of those in a folder.

    Reads everything every time: size and modification time do not identify a file.

    Raises:
      OtherDataError: if `data.fingerprint` is set and differs.
    """
    found = hashlib.sha256()
    for file in sorted(files):
        if file == path:
            digest = file_digest(path)
            break
        name = file.relative_to(path).as_posix()
        found.update(f"{file_digest(file)}  {name}\n".encode())
    else:
        digest = found.hexdigest()
    check_fingerprint(f"data.path '{data.path}'", digest, data)
    return digest


def check_fingerprint(name: str, digest: str, data: ConfigDict) -> None:
    """Raises OtherDataError if `data.fingerprint` is set and differs."""
    if data.fingerprint not in ("", digest):
        raise OtherDataError(
            f"{name} holds other data (SHA-256 {digest[:12]}) than this run was "
            f"trained on ({data.fingerprint[:12]})"
        )


def cached_tokens(
    files: list[pathlib.Path],
    digest: str,
    config: ConfigDict,
    write: Callable[[Tokenizer, pathlib.Path], None],
    tokenizer: Tokenizer | None = None,
    prefix: str = "",
) -> tuple[pathlib.Path, Tokenizer]:
    """Tokenises files, unless the cache has their tokens with the same settings.

    Args:
      digest: `fingerprint` of the files.
      write: writes the tokens into a folder.
      tokenizer: None makes that of `config.data`.
      prefix: of the folder's name, for other contents.

    Returns:
      (folder with the tokens, tokenizer).

    Raises:
      UserError: for text that cannot be read or encoded, or a cache that cannot be
        written.
    """
    data = config.data
    scan = functools.cache(lambda: reading.scan(files, data.normalize))
    if tokenizer is None:
        tokenizer = _cached_tokenizer(files, digest, data, scan)
    settings = {k: v for k, v in data.items() if k not in NOT_OF_TOKENS}
    vocabulary = json.dumps(tokenizer.to_json(), sort_keys=True)
    key = _digest_of(digest, settings, vocabulary)
    folder = cache_root() / "text" / f"{prefix}{files[0].stem}-{key}"

    def fill(building: pathlib.Path) -> None:
        for note in scan().notes:
            log(note)
        if scan().end_marks:
            _log_end_marks(scan().end_marks, tokenizer, data)
        write(tokenizer, building)
        tokenizer_files.save(tokenizer, building / "tokenizer.json")

    keep(folder, fill)
    return folder, tokenizer


def _cached_tokenizer(
    files: list[pathlib.Path],
    digest: str,
    data: ConfigDict,
    scan: Callable[[], reading.Contents],
) -> Tokenizer:
    """Returns the tokenizer of `config.data`, from the cache if it was made before."""
    if data.tokenizer == "huggingface":
        return _read_tokenizer(data)
    _check_sentencepiece(data)
    settings = {name: data[name] for name in ("normalize", *OF_TOKENIZER)}
    if data.sentencepiece_model:
        settings["sentencepiece_model"] = file_digest(_model_file(data))
    folder = cache_root() / "tokenizers" / _digest_of(digest, settings)

    def fill(building: pathlib.Path) -> None:
        tokenizer = _make_tokenizer(files, scan().characters, data)
        tokenizer_files.save(tokenizer, building / "tokenizer.json")

    keep(folder, fill)
    return tokenizer_files.load(folder / "tokenizer.json")


def _check_sentencepiece(data: ConfigDict) -> None:
    """Raises UserError, or logs a note, for settings of SentencePiece without it."""
    if data.tokenizer == "sentencepiece":
        return
    if data.sentencepiece_model:
        raise UserError(
            "data.sentencepiece_model needs data.tokenizer=sentencepiece, got "
            f"{data.tokenizer!r}"
        )
    if data.vocab_size:
        log(
            f"note: data.vocab_size={data.vocab_size} is not used: "
            f"data.tokenizer={data.tokenizer} has its own"
        )


def _digest_of(*parts: Any) -> str:
    return hashlib.sha256(repr((VERSION, *parts)).encode()).hexdigest()[:16]


def keep(folder: pathlib.Path, fill: Callable[[pathlib.Path], None]) -> None:
    """Fills a folder of the cache unless it exists intact."""
    if folder.exists():
        try:
            digests = json.loads((folder / DIGESTS).read_text())
            same = (file_digest(folder / name) == d for name, d in digests.items())
            if digests and all(same):
                return
        except (OSError, ValueError, AttributeError, UserError):
            pass
        log(f"note: '{folder}' in the cache is damaged: making it again")
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.unlink(missing_ok=True)
    _build(folder, fill)


def _model_file(data: ConfigDict) -> pathlib.Path:
    path = user_path(data.sentencepiece_model)
    if not path.is_file():
        raise UserError(
            f"data.sentencepiece_model '{path}' does not exist: leave it out to train "
            "one"
        )
    return path


def _build(folder: pathlib.Path, fill: Callable[[pathlib.Path], None]) -> None:
    """Fills a temporary folder, then renames it: it is complete or absent."""
    what = f"the cache '{folder.parent}' cannot be written"
    with os_errors(what, "set JAXGPT_CACHE to a writable folder"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = pathlib.Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        fill(building)
        digests = {file.name: file_digest(file) for file in building.iterdir()}
        (building / DIGESTS).write_text(json.dumps(digests))
        try:
            building.replace(folder)
        except OSError:
            # Another process may have built the same one in the meantime.
            if not folder.exists():
                raise
    except OSError as error:
        raise UserError(
            f"cannot make '{error.filename or folder}': {error.strerror}"
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _log_end_marks(count: int, tokenizer: Tokenizer, data: ConfigDict) -> None:
    mark = END_OF_TEXT_TOKEN
    if data.tokenizer in ("char", "word", "sentencepiece"):
        return  # They have no such token.
    if len(tokenizer.encode(mark, data.special_tokens)) == 1:
        log(f"data.special_tokens: {count:,} {mark} in the text are read as the token")
    elif len(tokenizer.encode(mark, special_tokens=True)) == 1:
        log(
            f"note: {count:,} {mark} in the text are read as plain text: "
            "data.special_tokens=true reads the token"
        )


def _make_tokenizer(
    files: list[pathlib.Path], characters: set[str], data: ConfigDict
) -> Tokenizer:
    if data.tokenizer == "char":
        return CharTokenizer("".join(sorted(characters)))
    if data.tokenizer == "word":
        texts = reading.iter_chunks(files, data.normalize)
        return WordTokenizer(sorted({w for text in texts for w in WORD.findall(text)}))
    if data.tokenizer == "gpt2":
        return GPT2Tokenizer()
    if data.sentencepiece_model:
        return sentencepiece.read(_model_file(data), data.vocab_size)
    return sentencepiece.train(
        reading.iter_lines(files, data.normalize),
        characters,
        data.vocab_size,
        data.sentencepiece_type,
    )


def _read_tokenizer(data: ConfigDict) -> Tokenizer:
    if not data.tokenizer_file:
        raise UserError(
            "data.tokenizer=huggingface needs data.tokenizer_file=PATH: a "
            "tokenizer.json, or a folder that holds one"
        )
    tokenizer, notes = tokenizer_files.read_any(user_path(data.tokenizer_file))
    for note in notes:
        log(f"note: data.tokenizer_file '{data.tokenizer_file}': {note}")
    return tokenizer


def encode(
    pieces: Iterable[str],
    tokenizer: Tokenizer,
    files: list[pathlib.Path],
    data: ConfigDict,
    at: int = 0,
) -> Iterator[np.ndarray]:
    """Yields the ids of a text that starts at character `at` of these files.

    Raises:
      UserError: naming file, line and column of a character that has no token.
    """
    try:
        yield from tokenizer.encode_pieces(pieces, data.special_tokens)
    except UnknownCharacterError as error:
        place = reading.locate(files, at + error.at, data.normalize)
        raise error.located(place) from None


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest type that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
