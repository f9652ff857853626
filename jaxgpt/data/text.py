"""Text as memory-mapped tokens; a batch is a pure function of (seed, split, step)."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import random
import re
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.config import UserError, user_path
from jaxgpt.data import sentencepiece
from jaxgpt.data import tokenizer as tok

SPLITS = ("train", "val", "test")
CHUNK = 1 << 22
LONGEST_WORD = 1 << 24
LAST_WORD_END = re.compile(r".*\S(?=[ \n])", re.DOTALL)
REPOSITORY = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class TextData:
    """The splits of a text and its tokenizer; the test split may be empty.

    With `chunk`, each split is a row of chunks of so many tokens from different places
    of the text, and no window reaches from one into the next.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    tokenizer: tok.Tokenizer
    chunk: int = 0

    @property
    def vocab_size(self) -> int:
        """How many different tokens there may be."""
        return self.tokenizer.vocab_size

    def batch_at(
        self, seed: int, split: str, step: int, size: int, length: int
    ) -> np.ndarray:
        """Returns int32 [size, length]: windows at places that (seed, step) draw."""
        generator = np.random.default_rng((seed, SPLITS.index(split), step))
        drawn = generator.integers(0, self.places(split, length), size)
        return self._windows(split, drawn, length)

    def fixed(self, split: str, length: int, count: int | None = None) -> np.ndarray:
        """Returns int32 [count, length]: the same windows every time.

        They are spread evenly over the split; without a count they follow one
        another, sharing no token, to its end (or that of each chunk).
        """
        places = self.places(split, length)
        if count is None:
            each = self._each(split, length)
            of_chunk = np.arange(0, each, length)
            chosen = (np.arange(0, places, each)[:, None] + of_chunk).ravel()
        else:
            chosen = np.linspace(0, places - 1, count).astype(np.int64)
        return self._windows(split, chosen, length)

    def places(self, split: str, length: int) -> int:
        """Returns how many windows of this length there are in a split.

        Raises:
          UserError: where there is none.
        """
        have = len(getattr(self, split))
        found = (have // self.chunk if self.chunk else 1) * self._each(split, length)
        if not found:
            raise UserError(
                f"the {split} split has no window of {length} tokens: "
                + (f"it has {have}" if have else "set data.test_fraction to have one")
                + (f", in chunks of {self.chunk}" if have and self.chunk else "")
            )
        return found

    def _each(self, split: str, length: int) -> int:
        """Returns how many windows there are in a chunk, or in a split without."""
        return max((self.chunk or len(getattr(self, split))) - length + 1, 0)

    def _windows(self, split: str, places: np.ndarray, length: int) -> np.ndarray:
        chunk, within = np.divmod(places, self._each(split, length))
        starts = chunk * self.chunk + within
        tokens = getattr(self, split)
        return tokens[starts[:, None] + np.arange(length)].astype(np.int32)


def open_text(config: ConfigDict, length: int) -> TextData:
    """Opens `config.data`, tokenising it once into the cache.

    Args:
      config: of the run.
      length: of the windows that will be asked for; every split must hold one.

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
        if split == "test" and not (have or config.data.test_fraction):
            continue
        if not have and data.chunk:
            raise UserError(
                f"'{path}': its {split} split is empty, of {_count(data)} chunks of "
                f"data.chunk_tokens={data.chunk}: take smaller ones, or other fractions"
            )
        have = min(have, data.chunk or have)
        if have < length:
            raise UserError(
                f"'{path}': its {split} split has {have} tokens"
                f"{' a chunk' if data.chunk else ''}, a window needs {length}: take "
                f"{'larger chunks' if data.chunk else 'a longer text'} or a smaller "
                "model.block_size"
            )
    return data


def _count(data: TextData) -> int:
    return sum(len(getattr(data, split)) for split in SPLITS) // data.chunk


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
    stamps = [_stamp(file) for file in files]
    c = config.data
    wanted = repr((3, stamps, {k: v for k, v in c.items() if k != "path"}))
    wanted += repr(_stamp(_model_file(c))) if c.sentencepiece_model else ""
    name = f"{files[0].stem}-{hashlib.sha256(wanted.encode()).hexdigest()[:16]}"
    home = user_path(os.environ.get("JAXGPT_CACHE", "~/.cache/jaxgpt"))
    cached = home / "text" / name
    if not (cached / "tokenizer.json").exists():
        _build(files, config, cached)
    chunk = c.chunk_tokens if c.split == "chunks" else 0
    return _read_bins(cached, tok.load(cached / "tokenizer.json"), chunk)


def _stamp(file: pathlib.Path) -> tuple[str, int, int]:
    about = file.stat()
    return str(file.resolve()), about.st_size, about.st_mtime_ns


def _model_file(data: ConfigDict) -> pathlib.Path:
    path = user_path(data.sentencepiece_model)
    if not path.is_file():
        raise UserError(
            f"data.sentencepiece_model '{path}' does not exist: leave it out to train "
            "one"
        )
    return path


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
        tokenizer = _make_tokenizer(files, characters, config.data)
        if config.data.split == "chunks":
            _encode(files, tokenizer, [total], building)
            _shuffle_chunks(building, tokenizer, config.data)
        else:
            train, held = shares(total, config.data)
            _encode(files, tokenizer, [train, train + held, total], building)
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


def _make_tokenizer(
    files: list[pathlib.Path], characters: set[str], data: ConfigDict
) -> tok.Tokenizer:
    if data.tokenizer == "char":
        return tok.CharTokenizer("".join(sorted(characters)))
    if data.tokenizer == "gpt2":
        return tok.GPT2Tokenizer()
    if not data.sentencepiece_model:
        return sentencepiece.train(_lines(files), characters, data.vocab_size)
    return sentencepiece.read(_model_file(data), data.vocab_size)


def shares(count: int, data: ConfigDict) -> tuple[int, int]:
    """Returns how many of count are trained on and how many validated on.

    The rest is the test split; without one nothing is left over.
    """
    # Rounded, so that 10 * (1 - 0.1 - 0.1) is 8 and not 7.
    share = lambda fraction: int(round(count * fraction, 6))
    train = share(1 - data.val_fraction - data.test_fraction)
    return train, share(data.val_fraction) if data.test_fraction else count - train


def _encode(
    files: list[pathlib.Path],
    tokenizer: tok.Tokenizer,
    ends: list[int],
    folder: pathlib.Path,
) -> None:
    """Writes train.bin, val.bin and test.bin, which end at these characters."""
    dtype = _token_dtype(tokenizer.vocab_size)
    with contextlib.ExitStack() as stack:
        outs = [
            stack.enter_context(open(folder / f"{split}.bin", "wb")) for split in SPLITS
        ]
        done = 0
        for text in _chunks(files):
            at = 0
            for end, out in zip(ends, outs[: len(ends)], strict=True):
                part = text[at : max(end - done, at)]
                at += len(part)
                if part:
                    tokenizer.encode(part).astype(dtype).tofile(out)
            done += len(text)


def _shuffle_chunks(
    folder: pathlib.Path, tokenizer: tok.Tokenizer, data: ConfigDict
) -> None:
    """Deals the chunks of train.bin out to the three splits; drops a short last one.

    Python's random shuffles them, as teenyGPT's: the same seed, the same split.
    """
    dtype = _token_dtype(tokenizer.vocab_size)
    whole = folder / "whole.bin"
    (folder / "train.bin").replace(whole)
    # It is not empty: _survey has seen to that.
    tokens = np.memmap(whole, dtype, "r")
    order = list(range(len(tokens) // data.chunk_tokens))
    random.Random(data.split_seed).shuffle(order)
    train, held = shares(len(order), data)
    parts = order[:train], order[train : train + held], order[train + held :]
    for split, part in zip(SPLITS, parts, strict=True):
        with open(folder / f"{split}.bin", "wb") as out:
            for index in part:
                start = index * data.chunk_tokens
                tokens[start : start + data.chunk_tokens].tofile(out)
    del tokens
    whole.unlink()


def _chunks(files: list[pathlib.Path]) -> Iterator[str]:
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


def _lines(files: list[pathlib.Path]) -> Iterator[str]:
    """Yields the lines of the text, wherever `_chunks` cuts it."""
    rest = ""
    for text in _chunks(files):
        *whole, rest = (rest + text).split("\n")
        yield from whole
    yield rest


def _token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def _read_bins(
    folder: pathlib.Path, tokenizer: tok.Tokenizer, chunk: int = 0
) -> TextData:
    dtype = _token_dtype(tokenizer.vocab_size)
    splits: list[np.ndarray] = []
    for split in SPLITS:
        file = folder / f"{split}.bin"
        if split == "test" and not file.exists():
            splits.append(np.zeros(0, dtype))
            continue
        if not file.is_file():
            raise UserError(f"'{folder}' has no {split}.bin")
        size = file.stat().st_size
        if size % dtype.itemsize:
            raise UserError(
                f"'{file}' has {size} bytes, which is no whole number of "
                f"{dtype.name} tokens: it is truncated or of another kind"
            )
        splits.append(np.memmap(file, dtype, "r") if size else np.zeros(0, dtype))
    train, val, test = splits
    return TextData(train, val, test, tokenizer, chunk)


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
