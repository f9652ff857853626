"""Text as memory-mapped tokens; a batch is a pure function of (seed, split, step)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import random
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.data import cache, reading, tokenizer_files
from jaxgpt.data.tokenizers import CharTokenizer, GPT2Tokenizer, Tokenizer
from jaxgpt.errors import UserError, log

PICKLED = (
    "; meta.pkl is never read: if you trust it, convert it to meta.json there: "
    'python -c "import json, pickle; '
    "json.dump(pickle.load(open('meta.pkl', 'rb')), open('meta.json', 'w'))\""
)
SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class TextData:
    """The splits of a text and its tokenizer; the test split may be empty.

    With `chunk`, each split consists of chunks of that many tokens from all over the
    text, and no window crosses a boundary.
    """

    splits: dict[str, np.ndarray]
    tokenizer: Tokenizer
    chunk: int = 0
    fingerprint: str = ""

    @property
    def vocab_size(self) -> int:
        """The tokenizer's."""
        return self.tokenizer.vocab_size

    def batch_at(
        self, seed: int, split: str, step: int, size: int, length: int
    ) -> np.ndarray:
        """See `Dataset.batch_at`: windows at random places."""
        generator = np.random.default_rng((seed, SPLITS.index(split), step))
        places = generator.integers(0, self.num_windows(split, length), size)
        return self._windows(split, places, length)

    def eval_windows(
        self, split: str, length: int, count: int | None = None
    ) -> np.ndarray:
        """See `Dataset.eval_windows`: spread evenly from end to end.

        Without a count they are consecutive, to the end of the split or each chunk.
        """
        total = self.num_windows(split, length)
        if count is None:
            each = self._windows_per_chunk(split, length)
            starts = np.arange(0, each, length)
            places = (np.arange(0, total, each)[:, None] + starts).ravel()
        else:
            places = np.linspace(0, total - 1, count).astype(np.int64)
        return self._windows(split, places, length)

    def num_windows(self, split: str, length: int) -> int:
        """Returns how many windows of this length a split has; UserError for none."""
        size = len(self.splits[split])
        chunks = size // self.chunk if self.chunk else 1
        count = chunks * self._windows_per_chunk(split, length)
        if not count:
            raise UserError(
                f"the {split} split has no window of {length} tokens: "
                + (f"it has {size}" if size else "set data.test_fraction to have one")
                + (f", in chunks of {self.chunk}" if size and self.chunk else "")
            )
        return count

    def _windows_per_chunk(self, split: str, length: int) -> int:
        return max((self.chunk or len(self.splits[split])) - length + 1, 0)

    def _windows(self, split: str, places: np.ndarray, length: int) -> np.ndarray:
        chunk, within = np.divmod(places, self._windows_per_chunk(split, length))
        starts = chunk * self.chunk + within
        tokens = self.splits[split]
        return tokens[starts[:, None] + np.arange(length)].astype(np.int32)


def open_text(
    config: ConfigDict, length: int, tokenizer: Tokenizer | None = None
) -> TextData:
    """Opens `config.data`, tokenising it once into the cache.

    Args:
      length: of a window; every split must have one.
      tokenizer: None makes that of `config.data`.

    Raises:
      UserError: for a file that is missing, empty, too short, not UTF-8, or has text or
        ids outside the vocabulary; leaves nothing half-written.
      OtherDataError: see `cache.fingerprint`.
    """
    path, c = cache.resolve_path(config.data), config.data
    if path.is_dir() and (path / "train.bin").exists():
        found = [path / f"{split}.bin" for split in SPLITS]
        digest = cache.fingerprint(path, [f for f in found if f.is_file()], c)
        data = _open_bins(path, config, tokenizer)
    else:
        files = reading.text_files(path)
        digest = cache.fingerprint(path, files, c)
        write = functools.partial(_write_splits, files, c)
        folder, tokenizer = cache.cached_tokens(files, digest, config, write, tokenizer)
        chunk = c.chunk_tokens if c.split == "chunks" else 0
        data = read_bins(folder, tokenizer, chunk)
    data = dataclasses.replace(data, fingerprint=digest)
    sizes = {split: len(data.splits[split]) for split in SPLITS}
    unit, longer = (" per chunk", "larger chunks") if data.chunk else ("", "more text")
    for split, size in sizes.items():
        if split == "test" and not (size or c.test_fraction):
            continue
        if not size and data.chunk:
            raise UserError(
                f"'{path}': its {split} split is empty, of "
                f"{sum(sizes.values()) // data.chunk} chunks of "
                f"data.chunk_tokens={data.chunk}: use smaller ones, or other fractions"
            )
        size = min(size, data.chunk or size)
        if size < length:
            raise UserError(
                f"'{path}': its {split} split has {size} tokens{unit}, a window needs "
                f"{length}: use {longer} or a smaller model.block_size"
            )
    return data


def split_sizes(count: int, data: ConfigDict) -> tuple[int, int]:
    """Returns how many of count are for training and validation; the rest for tests."""
    # Rounded, so that 10 * (1 - 0.1 - 0.1) is 8 and not 7.
    share = lambda fraction: int(round(count * fraction, 6))
    train = share(1 - data.val_fraction - data.test_fraction)
    return train, share(data.val_fraction) if data.test_fraction else count - train


def _write_splits(
    files: list[pathlib.Path],
    data: ConfigDict,
    tokenizer: Tokenizer,
    folder: pathlib.Path,
) -> None:
    total = reading.scan(files, data.normalize).length
    if data.split == "chunks":
        _encode(files, data, tokenizer, [total], folder)
        _shuffle_chunks(folder, tokenizer, data)
    else:
        train, val = split_sizes(total, data)
        _encode(files, data, tokenizer, [train, train + val, total], folder)


def _encode(
    files: list[pathlib.Path],
    data: ConfigDict,
    tokenizer: Tokenizer,
    ends: list[int],
    folder: pathlib.Path,
) -> None:
    """Writes train.bin, val.bin and test.bin, which end at these characters.

    Or with the word that one is in, where tokens are words.
    """
    dtype = cache.token_dtype(tokenizer.vocab_size)
    with contextlib.ExitStack() as stack:
        paths = [folder / f"{split}.bin" for split in SPLITS]
        outs = [stack.enter_context(open(path, "wb")) for path in paths]
        chunks = reading.iter_chunks(files, data.normalize)
        pieces = _cut(chunks, ends, tokenizer.cut_after)
        for split, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
            part = iter(group)
            _, start, first = next(part)
            texts = itertools.chain([first], (text for *_, text in part))
            for ids in cache.encode(texts, tokenizer, files, data, start):
                ids.astype(dtype).tofile(outs[split])


def _cut(
    pieces: Iterable[str], ends: list[int], cut_after: Callable[[str, int], int]
) -> Iterator[tuple[int, int, str]]:
    """Yields (split, start, piece) of a text whose splits end at these characters."""
    done = 0
    for text in pieces:
        at = 0
        for split, end in enumerate(ends):
            part = text[at : cut_after(text, max(end - done, at))]
            if part:
                yield split, done + at, part
            at += len(part)
        done += len(text)


def _shuffle_chunks(
    folder: pathlib.Path, tokenizer: Tokenizer, data: ConfigDict
) -> None:
    """Distributes the chunks of train.bin over the splits; drops a short last one."""
    whole = (folder / "train.bin").replace(folder / "whole.bin")
    # Not empty, which could not be mapped: reading.scan has checked.
    tokens = np.memmap(whole, cache.token_dtype(tokenizer.vocab_size), "r")
    order = list(range(len(tokens) // data.chunk_tokens))
    # Python's generator, as in teenyGPT: the same seed makes the same split.
    random.Random(data.split_seed).shuffle(order)
    train, val = split_sizes(len(order), data)
    parts = order[:train], order[train : train + val], order[train + val :]
    for split, part in zip(SPLITS, parts, strict=True):
        with open(folder / f"{split}.bin", "wb") as out:
            for index in part:
                start = index * data.chunk_tokens
                tokens[start : start + data.chunk_tokens].tofile(out)
    del tokens
    whole.unlink()


def read_bins(folder: pathlib.Path, tokenizer: Tokenizer, chunk: int = 0) -> TextData:
    """Memory-maps train.bin, val.bin and test.bin, if any; UserError if damaged."""
    dtype = cache.token_dtype(tokenizer.vocab_size)
    splits: dict[str, np.ndarray] = dict.fromkeys(SPLITS, np.zeros(0, dtype))
    for split in SPLITS:
        file = folder / f"{split}.bin"
        if split == "test" and not file.exists():
            continue
        if not file.is_file():
            raise UserError(f"'{folder}' has no {split}.bin")
        size = file.stat().st_size
        if size % dtype.itemsize:
            raise UserError(
                f"'{file}' has {size} bytes, not a multiple of {dtype.name}'s "
                f"{dtype.itemsize}: it is truncated or has another type"
            )
        if size:  # An empty file cannot be mapped.
            splits[split] = np.memmap(file, dtype, "r")
    return TextData(splits, tokenizer, chunk)


def _read_as_nanogpt(file: pathlib.Path) -> str:
    """Returns a text with newlines as line ends, and with its byte-order mark."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{file}' cannot be read: {error}") from None


def _open_bins(
    folder: pathlib.Path, config: ConfigDict, given: Tokenizer | None
) -> TextData:
    """Opens a nanoGPT data folder; its pickled vocabulary is never read."""
    tokenizer, text = _tokenizer_of_bins(folder, config.data)
    # A run whose fingerprint matches was trained on these ids.
    if tokenizer is None and config.data.fingerprint:
        tokenizer = given
    if tokenizer is None:
        pickled = (folder / "meta.pkl").exists()
        raise UserError(
            f"'{folder}' has no vocabulary: put tokenizer.json, meta.json or input.txt "
            "into it" + (PICKLED if pickled else ", or set data.tokenizer=gpt2")
        )
    if given and given.to_json() != tokenizer.to_json():
        raise UserError(
            f"data.path '{folder}' has another vocabulary than this run, and its ids "
            "mean other text: make it with the run's tokenizer.json, or name the text"
        )
    data = read_bins(folder, tokenizer)
    for split in SPLITS:
        tokens = data.splits[split]
        _check_width(folder / f"{split}.bin", tokens, data.vocab_size)
        for start in range(0, len(tokens), reading.CHUNK):
            part = tokens[start : start + reading.CHUNK]
            if part.max() >= data.vocab_size:
                at = start + int((part >= data.vocab_size).argmax())
                raise UserError(
                    f"'{folder / split}.bin' holds id {tokens[at]} at token {at}, but "
                    f"its vocabulary has {data.vocab_size}: is it another tokenizer's?"
                )
    if text and not text.startswith(
        tokenizer.decode(data.splits["train"][: len(text)][:1000])
    ):
        log(
            f"note: '{folder}/train.bin' does not begin like input.txt: was it made of "
            "that text? Otherwise its ids are read as other characters"
        )
    return data


def _check_width(file: pathlib.Path, tokens: np.ndarray, vocab_size: int) -> None:
    """Raises UserError for wider ids, whose high parts would be read as tokens."""
    # Characters with a space after each can look like ids of twice the width.
    parts = 2 if vocab_size > 256 else 4
    start = tokens[: reading.CHUNK]
    high = [start[part::parts] for part in range(1, parts)]
    if len(start) >= 64 and start.any() and not any(part.any() for part in high):
        raise UserError(
            f"'{file}' seems to hold ids of more than {8 * tokens.itemsize} bits: save "
            f"them as {tokens.dtype.name}"
        )


def _tokenizer_of_bins(
    folder: pathlib.Path, data: ConfigDict
) -> tuple[Tokenizer | None, str]:
    """Returns the vocabulary of a folder, and the text that it was derived from."""
    if (folder / "tokenizer.json").exists():
        return tokenizer_files.load(folder / "tokenizer.json"), ""
    if data.tokenizer == "gpt2":
        for own in ("meta.pkl", "meta.json"):
            if (folder / own).exists():
                log(
                    f"note: '{folder}' has a vocabulary in {own}: data.tokenizer=gpt2 "
                    "reads its ids as GPT-2's tokens"
                )
        return GPT2Tokenizer(), ""
    if (folder / "meta.json").exists():
        return tokenizer_files.load(folder / "meta.json"), ""
    if (folder / "input.txt").exists():
        text = _read_as_nanogpt(folder / "input.txt")
        return CharTokenizer("".join(sorted(set(text)))), text
    return None, ""
