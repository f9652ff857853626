"""Text as memory-mapped tokens; a batch is a pure function of (seed, split, step)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import random

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.data import cache, tokenizers
from jaxgpt.errors import UserError

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class TextData:
    """The splits of a text and its tokenizer; the test split may be empty.

    With `chunk`, each split is a row of chunks of so many tokens from different places
    of the text, and no window reaches from one into the next.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    tokenizer: tokenizers.Tokenizer
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
        drawn = generator.integers(0, self.num_windows(split, length), size)
        return self._windows(split, drawn, length)

    def eval_windows(
        self, split: str, length: int, count: int | None = None
    ) -> np.ndarray:
        """Returns int32 [count, length]: the same windows every time.

        They are spread evenly over the split; without a count they follow one
        another, sharing no token, to its end (or that of each chunk).
        """
        places = self.num_windows(split, length)
        if count is None:
            each = self._each(split, length)
            of_chunk = np.arange(0, each, length)
            chosen = (np.arange(0, places, each)[:, None] + of_chunk).ravel()
        else:
            chosen = np.linspace(0, places - 1, count).astype(np.int64)
        return self._windows(split, chosen, length)

    def num_windows(self, split: str, length: int) -> int:
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
    path = cache.resolve(config.data.path)
    if path.is_dir() and (path / "train.bin").exists():
        data = _open_bins(path, config)
    else:
        data = _open_files(cache.text_files(path), config)
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


def _open_files(paths: list[pathlib.Path], config: ConfigDict) -> TextData:
    c = config.data
    cached = cache.cache_folder(paths, config)
    if not (cached / "tokenizer.json").exists():
        cache.build(paths, config, cached, functools.partial(_fill, paths, c))
    chunk = c.chunk_tokens if c.split == "chunks" else 0
    return _read_bins(
        cached, tokenizers.load_tokenizer(cached / "tokenizer.json"), chunk
    )


def _fill(
    paths: list[pathlib.Path],
    data: ConfigDict,
    tokenizer: tokenizers.Tokenizer,
    folder: pathlib.Path,
) -> None:
    """Writes the splits of a text."""
    total = cache.scan(paths)[1]
    if data.split == "chunks":
        _encode(paths, tokenizer, [total], folder)
        _shuffle_chunks(folder, tokenizer, data)
    else:
        train, held = shares(total, data)
        _encode(paths, tokenizer, [train, train + held, total], folder)


def shares(count: int, data: ConfigDict) -> tuple[int, int]:
    """Returns how many of count are trained on and how many validated on.

    The rest is the test split; without one nothing is left over.
    """
    # Rounded, so that 10 * (1 - 0.1 - 0.1) is 8 and not 7.
    share = lambda fraction: int(round(count * fraction, 6))
    train = share(1 - data.val_fraction - data.test_fraction)
    return train, share(data.val_fraction) if data.test_fraction else count - train


def _encode(
    paths: list[pathlib.Path],
    tokenizer: tokenizers.Tokenizer,
    ends: list[int],
    folder: pathlib.Path,
) -> None:
    """Writes train.bin, val.bin and test.bin, which end at these characters."""
    dtype = cache.token_dtype(tokenizer.vocab_size)
    with contextlib.ExitStack() as stack:
        outs = [
            stack.enter_context(open(folder / f"{split}.bin", "wb")) for split in SPLITS
        ]
        done = 0
        for text in cache.iter_chunks(paths):
            at = 0
            for end, out in zip(ends, outs[: len(ends)], strict=True):
                part = text[at : max(end - done, at)]
                at += len(part)
                if part:
                    tokenizer.encode(part).astype(dtype).tofile(out)
            done += len(text)


def _shuffle_chunks(
    folder: pathlib.Path, tokenizer: tokenizers.Tokenizer, data: ConfigDict
) -> None:
    """Deals the chunks of train.bin out to the three splits; drops a short last one.

    Python's random shuffles them, as teenyGPT's: the same seed, the same split.
    """
    dtype = cache.token_dtype(tokenizer.vocab_size)
    whole = folder / "whole.bin"
    (folder / "train.bin").replace(whole)
    # It is not empty: survey has seen to that.
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


def _read_bins(
    folder: pathlib.Path, tokenizer: tokenizers.Tokenizer, chunk: int = 0
) -> TextData:
    dtype = cache.token_dtype(tokenizer.vocab_size)
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
        tokenizer = tokenizers.load_tokenizer(folder / "tokenizer.json")
    elif config.data.tokenizer == "gpt2":
        tokenizer = tokenizers.GPT2Tokenizer()
    elif (folder / "input.txt").exists():
        tokenizer = tokenizers.CharTokenizer(
            "".join(sorted(cache.scan([folder / "input.txt"])[0]))
        )
    else:
        raise UserError(
            f"'{folder}' has no vocabulary: put tokenizer.json or input.txt into it, "
            "or set data.tokenizer=gpt2"
        )
    data = _read_bins(folder, tokenizer)
    for split in SPLITS:
        tokens = getattr(data, split)
        for start in range(0, len(tokens), cache.CHUNK):
            part = tokens[start : start + cache.CHUNK]
            if part.max() >= data.vocab_size:
                at = start + int((part >= data.vocab_size).argmax())
                raise UserError(
                    f"'{folder / split}.bin' holds id {tokens[at]} at token {at}, but "
                    f"its vocabulary has {data.vocab_size}: is it another tokenizer's?"
                )
    return data
