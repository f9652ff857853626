"""A text, tokenised once into a cache."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.config import user_path
from jaxgpt.data import huggingface, reading, tokenizers
from jaxgpt.errors import UserError, log

REPOSITORY = pathlib.Path(__file__).parents[2]


def cache_root() -> pathlib.Path:
    """Returns the folder of all that can be made again: $JAXGPT_CACHE."""
    return user_path(os.environ.get("JAXGPT_CACHE", "~/.cache/jaxgpt"))


def resolve_path(name: str) -> pathlib.Path:
    """Returns the path that data.path names, here or in the repository."""
    path = user_path(name)
    for candidate in (path, REPOSITORY / path):
        if name and candidate.exists():
            return candidate
    raise UserError(f"data.path '{name}' does not exist: name a text file or folder")


def cached_tokens(
    files: list[pathlib.Path],
    config: ConfigDict,
    write: Callable[[tokenizers.Tokenizer, pathlib.Path], None],
    prefix: str = "",
) -> tuple[pathlib.Path, tokenizers.Tokenizer]:
    """Tokenises files unless that was done before, with the same settings.

    Args:
      files: which the tokenizer is made for.
      config: of the run.
      write: writes the tokens into a folder.
      prefix: of the folder's name, for other contents.

    Returns:
      (folder with the tokens, tokenizer).

    Raises:
      UserError: for text that cannot be read, or a cache that cannot be written.
    """
    settings = {k: v for k, v in config.data.items() if k != "path"}
    key = repr((3, [_fingerprint(file) for file in files], settings))
    if config.data.tokenizer == "huggingface":
        key += repr(_read_tokenizer(config.data).to_json())
    if config.data.sentencepiece_model:
        key += repr(_fingerprint(_model_file(config.data)))
    name = f"{files[0].stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder = cache_root() / "text" / f"{prefix}{name}"
    if not (folder / "tokenizer.json").exists():
        build(files, config, folder, write)
    return folder, tokenizers.load_tokenizer(folder / "tokenizer.json")


def _fingerprint(file: pathlib.Path) -> tuple[str, int, int]:
    """Returns what changes when a file does."""
    stat = file.stat()
    return str(file.resolve()), stat.st_size, stat.st_mtime_ns


def _model_file(data: ConfigDict) -> pathlib.Path:
    path = user_path(data.sentencepiece_model)
    if not path.is_file():
        raise UserError(
            f"data.sentencepiece_model '{path}' does not exist: leave it out to train "
            "one"
        )
    return path


def build(
    files: list[pathlib.Path],
    config: ConfigDict,
    folder: pathlib.Path,
    write: Callable[[tokenizers.Tokenizer, pathlib.Path], None],
) -> None:
    """Tokenises into a temporary folder, then renames it: it is complete or absent."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = pathlib.Path(tempfile.mkdtemp(dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"the token cache '{folder.parent}' cannot be written ({error.strerror}): "
            "set JAXGPT_CACHE to a writable folder"
        ) from None
    try:
        found = reading.scan(files, config.data.normalize)
        for note in found.notes:
            log(note)
        tokenizer = make_tokenizer(files, found.characters, config.data)
        if found.end_marks:
            _say_how_marks_are_read(found.end_marks, tokenizer, config.data)
        write(tokenizer, building)
        tokenizers.save_tokenizer(tokenizer, building / "tokenizer.json")
        try:
            building.replace(folder)
        except OSError:
            # Another process may have built the same meanwhile.
            if not folder.exists():
                raise
    except OSError as error:
        raise UserError(
            f"cannot tokenise '{error.filename or folder}': {error.strerror}"
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _say_how_marks_are_read(
    count: int, tokenizer: tokenizers.Tokenizer, data: ConfigDict
) -> None:
    mark = tokenizers.END_OF_TEXT_TOKEN
    if data.tokenizer in ("char", "sentencepiece"):
        return  # They have no such token.
    if len(tokenizer.encode(mark, data.special_tokens)) == 1:
        log(f"data.special_tokens: {count:,} {mark} written out are read as the token")
    elif len(tokenizer.encode(mark, special_tokens=True)) == 1:
        log(
            f"note: {count:,} {mark} written out are read as plain text: "
            "data.special_tokens=true reads the token"
        )


def make_tokenizer(
    files: list[pathlib.Path], characters: set[str], data: ConfigDict
) -> tokenizers.Tokenizer:
    """Returns the tokenizer of `config.data`, trained on these files if need be."""
    if data.tokenizer == "char":
        return tokenizers.CharTokenizer("".join(sorted(characters)))
    if data.tokenizer == "gpt2":
        return tokenizers.GPT2Tokenizer()
    if data.tokenizer == "huggingface":
        return _read_tokenizer(data)
    if data.sentencepiece_model:
        return tokenizers.read_sentencepiece(_model_file(data), data.vocab_size)
    return tokenizers.train_sentencepiece(
        reading.iter_lines(files, data.normalize),
        characters,
        data.vocab_size,
        data.sentencepiece_type,
    )


def _read_tokenizer(data: ConfigDict) -> tokenizers.Tokenizer:
    if not data.tokenizer_file:
        raise UserError(
            "data.tokenizer=huggingface needs data.tokenizer_file=PATH: a "
            "tokenizer.json, or a folder that holds one"
        )
    tokenizer, notes = huggingface.read(user_path(data.tokenizer_file))
    for note in notes:
        log(f"note: data.tokenizer_file '{data.tokenizer_file}': {note}")
    return tokenizer


def encode(
    pieces: Iterable[str],
    tokenizer: tokenizers.Tokenizer,
    files: list[pathlib.Path],
    data: ConfigDict,
    at: int = 0,
) -> Iterator[np.ndarray]:
    """Yields the ids of a text, which files hold from this place on.

    Raises:
      UserError: naming file, line and column of a character that has no token.
    """
    try:
        yield from tokenizer.encode_pieces(pieces, data.special_tokens)
    except tokenizers.UnknownCharacterError as error:
        place = reading.locate(files, at + error.at, data.normalize)
        raise error.located(place) from None


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest type that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
