"""The files of a text: found, read in pieces, tokenised once into a cache."""

from __future__ import annotations

import codecs
import hashlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.config import user_path
from jaxgpt.data import tokenizers
from jaxgpt.errors import UserError

CHUNK = 1 << 22  # Bytes read at a time.
LONGEST_WORD = 1 << 24
LAST_WORD_END = re.compile(r".*\S(?=[ \n])", re.DOTALL)
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


def text_files(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns a text file, or those in a folder; UserError where there are none."""
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.rglob("*.txt") if p.is_file())
    if not files:
        raise UserError(f"data.path '{path}' holds neither .txt files nor train.bin")
    return files


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
        tokenizer = make_tokenizer(files, scan(files)[0], config.data)
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


def scan(files: list[pathlib.Path]) -> tuple[set[str], int]:
    """Returns the characters of a text and its length; UserError where it is empty."""
    characters: set[str] = set()
    total = 0
    for text in iter_chunks(files):
        characters |= set(text)
        total += len(text)
    if not total:
        raise UserError(f"'{files[0]}' is empty: there is no text to learn from")
    return characters, total


def make_tokenizer(
    files: list[pathlib.Path], characters: set[str], data: ConfigDict
) -> tokenizers.Tokenizer:
    """Returns the tokenizer of `config.data`, trained on these files if need be."""
    if data.tokenizer == "char":
        return tokenizers.CharTokenizer("".join(sorted(characters)))
    if data.tokenizer == "gpt2":
        return tokenizers.GPT2Tokenizer()
    if data.sentencepiece_model:
        return tokenizers.read_sentencepiece(_model_file(data), data.vocab_size)
    return tokenizers.train_sentencepiece(
        iter_lines(files), characters, data.vocab_size, data.sentencepiece_type
    )


def iter_chunks(files: list[pathlib.Path]) -> Iterator[str]:
    """Yields the text in pieces that end with a word, before the space or newline.

    No token of any tokenizer spans such a place and none depends on what is
    beyond it (a piece that ends with a newline would join blank lines into another
    token), so pieces change no token. Memory stays bounded whatever the size of the
    text: only a word longer than `LONGEST_WORD` is cut.
    """
    for file in files:
        decoder = codecs.getincrementaldecoder("utf-8")()
        rest, offset = "", 0
        with open(file, "rb") as stream:
            while raw := stream.read(CHUNK):
                try:
                    rest += decoder.decode(raw)
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"'{file}' is not UTF-8 (near byte {offset + error.start}): "
                        "convert it first"
                    ) from None
                offset += len(raw)
                word = LAST_WORD_END.match(rest)
                if word or len(rest) > LONGEST_WORD:
                    cut = word.end() if word else len(rest)
                    yield rest[:cut]
                    rest = rest[cut:]
        if decoder.getstate()[0]:
            raise UserError(f"'{file}' is not UTF-8: it ends within a character")
        if rest:
            yield rest


def iter_lines(files: list[pathlib.Path]) -> Iterator[str]:
    """Yields the lines of the text, wherever `iter_chunks` cuts it."""
    rest = ""
    for text in iter_chunks(files):
        *whole, rest = (rest + text).split("\n")
        yield from whole
    yield rest


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest type that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
