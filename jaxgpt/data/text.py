"""Text as memory-mapped tokens; a batch is a pure function of (seed, split, step)."""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.config import UserError, user_path
from jaxgpt.data import tokenizer as tok

SPLITS = ("train", "val")
CHUNK = 1 << 22
LONGEST_WORD = 1 << 24
LAST_WORD_END = re.compile(r".*\S(?=[ \n])", re.DOTALL)
REPOSITORY = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class TextData:
    """The two splits of a text and its tokenizer."""

    train: np.ndarray
    val: np.ndarray
    tokenizer: tok.Tokenizer

    @property
    def vocab_size(self) -> int:
        """How many different tokens there may be."""
        return self.tokenizer.vocab_size

    def batch_at(
        self, seed: int, split: str, step: int, size: int, length: int
    ) -> np.ndarray:
        """Returns int32 [size, length]: windows at places that (seed, step) draw."""
        tokens = getattr(self, split)
        generator = np.random.default_rng((seed, SPLITS.index(split), step))
        starts = generator.integers(0, len(tokens) - length + 1, size)
        return _windows(tokens, starts, length)

    def fixed(self, split: str, length: int, count: int | None = None) -> np.ndarray:
        """Returns int32 [count, length]: the same windows every time.

        They are spread evenly over the split; without a count they follow one
        another, sharing no token, to its end.
        """
        tokens = getattr(self, split)
        last = len(tokens) - length
        if count is None:
            starts = np.arange(0, last + 1, length)
        else:
            starts = np.linspace(0, last, count).astype(np.int64)
        return _windows(tokens, starts, length)


def _windows(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    return tokens[starts[:, None] + np.arange(length)].astype(np.int32)


def open_text(config: ConfigDict, length: int) -> TextData:
    """Opens `config.data`, tokenising it once into the cache.

    Args:
      config: of the run.
      length: of the windows that will be asked for; both splits must hold one.

    Raises:
      UserError: where a file is missing, empty, too short, not UTF-8, or holds ids
        outside the vocabulary; nothing half-written is left.
    """
    path = _resolve(config.data.path)
    if path.is_dir() and (path / "train.bin").exists():
        data = _open_bins(path, config)
    else:
        data = _open_files(_text_files(path), config)
    for split in SPLITS:
        have = len(getattr(data, split))
        if have < length:
            raise UserError(
                f"'{path}': its {split} split has {have} tokens, a window needs "
                f"{length}: take a longer text or a smaller model.block_size"
            )
    return data


def _resolve(name: str) -> pathlib.Path:
    path = user_path(name)
    for candidate in (path, REPOSITORY / path):
        if name and candidate.exists():
            return candidate
    raise UserError(f"data.path '{name}' does not exist: name a text file or folder")


def _text_files(path: pathlib.Path) -> list[pathlib.Path]:
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.rglob("*.txt") if p.is_file())
    if not files:
        raise UserError(f"data.path '{path}' holds neither .txt files nor train.bin")
    return files


def _open_files(files: list[pathlib.Path], config: ConfigDict) -> TextData:
    stamps = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    wanted = repr((2, stamps, config.data.tokenizer, config.data.val_fraction))
    name = f"{files[0].stem}-{hashlib.sha256(wanted.encode()).hexdigest()[:16]}"
    home = user_path(os.environ.get("JAXGPT_CACHE", "~/.cache/jaxgpt"))
    cached = home / "text" / name
    if not (cached / "tokenizer.json").exists():
        _build(files, config, cached)
    return _read_bins(cached, tok.load(cached / "tokenizer.json"))


def _build(files: list[pathlib.Path], config: ConfigDict, cached: pathlib.Path) -> None:
    """Tokenises into a temporary folder, then renames it: it is whole or not there."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        building = pathlib.Path(tempfile.mkdtemp(dir=cached.parent))
    except OSError as error:
        raise UserError(
            f"the token cache '{cached.parent}' cannot be written ({error.strerror}): "
            "set JAXGPT_CACHE to a folder that can"
        ) from None
    try:
        characters, total = _survey(files)
        if config.data.tokenizer == "char":
            tokenizer: tok.Tokenizer = tok.CharTokenizer("".join(sorted(characters)))
        else:
            tokenizer = tok.GPT2Tokenizer()
        train = int(total * (1 - config.data.val_fraction))
        _encode(files, tokenizer, train, building)
        tok.save(tokenizer, building / "tokenizer.json")
        try:
            building.replace(cached)
        except OSError:
            # Another process built the same meanwhile.
            if not cached.exists():
                raise
    except OSError as error:
        raise UserError(
            f"cannot tokenise '{error.filename or cached}': {error.strerror}"
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _survey(files: list[pathlib.Path]) -> tuple[set[str], int]:
    characters: set[str] = set()
    total = 0
    for text in _chunks(files):
        characters |= set(text)
        total += len(text)
    if not total:
        raise UserError(f"'{files[0]}' is empty: there is no text to learn from")
    return characters, total


def _encode(files, tokenizer: tok.Tokenizer, train: int, folder: pathlib.Path) -> None:
    """Writes train.bin (the first train characters) and val.bin (the rest)."""
    dtype = _token_dtype(tokenizer.vocab_size)
    done = 0
    with (
        open(folder / "train.bin", "wb") as first,
        open(folder / "val.bin", "wb") as last,
    ):
        for text in _chunks(files):
            cut = min(max(train - done, 0), len(text))
            for part, out in ((text[:cut], first), (text[cut:], last)):
                if part:
                    tokenizer.encode(part).astype(dtype).tofile(out)
            done += len(text)


def _chunks(files: list[pathlib.Path]) -> Iterator[str]:
    """Yields the text in pieces that end with a word, before the space or newline.

    No token of either tokenizer spans such a place and none depends on what is
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


def _token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def _read_bins(folder: pathlib.Path, tokenizer: tok.Tokenizer) -> TextData:
    dtype = _token_dtype(tokenizer.vocab_size)
    splits: list[np.ndarray] = []
    for split in SPLITS:
        file = folder / f"{split}.bin"
        if not file.is_file():
            raise UserError(f"'{folder}' has no {split}.bin")
        size = file.stat().st_size
        if size % dtype.itemsize:
            raise UserError(
                f"'{file}' has {size} bytes, which is no whole number of "
                f"{dtype.name} tokens: it is truncated or of another kind"
            )
        splits.append(np.memmap(file, dtype, "r") if size else np.zeros(0, dtype))
    return TextData(splits[0], splits[1], tokenizer)


def _open_bins(folder: pathlib.Path, config: ConfigDict) -> TextData:
    """Opens a nanoGPT data folder; its pickled vocabulary is never read."""
    if (folder / "tokenizer.json").exists():
        tokenizer = tok.load(folder / "tokenizer.json")
    elif config.data.tokenizer == "gpt2":
        tokenizer = tok.GPT2Tokenizer()
    elif (folder / "input.txt").exists():
        tokenizer = tok.CharTokenizer(
            "".join(sorted(_survey([folder / "input.txt"])[0]))
        )
    else:
        raise UserError(
            f"'{folder}' has no vocabulary: put tokenizer.json or input.txt into it, "
            "or set data.tokenizer=gpt2"
        )
    data = _read_bins(folder, tokenizer)
    for split in SPLITS:
        tokens = getattr(data, split)
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            if part.max() >= data.vocab_size:
                at = start + int((part >= data.vocab_size).argmax())
                raise UserError(
                    f"'{folder / split}.bin' holds id {tokens[at]} at token {at}, but "
                    f"its vocabulary has {data.vocab_size}: is it another tokenizer's?"
                )
    return data
