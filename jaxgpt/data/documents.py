"""Documents, read in segments that follow one another.

Each row of a batch reads one document after another, a segment at every step. What it
reads at a step is a pure function of (seed, split, row, step).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.data import cache, tokenizers
from jaxgpt.data.text import SPLITS, open_text, shares
from jaxgpt.errors import UserError

# Of each document that is looked at during training.
EVAL_SEGMENTS = 64

Segment = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Segments:
    """Segments of documents, each document's one after another, in order.

    Attributes:
      tokens_NT: int32; a segment's last token is the first of the one that follows.
      document_N: int32, the number of the document.
      start_N: int32, where in the document the segment begins; 0 at its beginning.
      weight_NT: float32 [N, T - 1], which predictions count.
    """

    tokens_NT: np.ndarray
    document_N: np.ndarray
    start_N: np.ndarray
    weight_NT: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens_NT)

    def streams(self) -> list[np.ndarray]:
        """Returns for each document which segments are its own, in order."""
        first = np.flatnonzero(np.diff(self.document_N, prepend=-1))
        return np.split(np.arange(len(self)), first[1:])

    def at(self, index_B: np.ndarray) -> Segment:
        """Returns these segments as a batch."""
        return {
            "tokens": self.tokens_NT[index_B],
            "document": self.document_N[index_B],
            "start": self.start_N[index_B],
            "weight": self.weight_NT[index_B],
        }


@dataclasses.dataclass(frozen=True)
class Split:
    """Documents end to end; `ends` says where each ends."""

    tokens: np.ndarray
    ends: np.ndarray
    names: tuple[str, ...]

    def segments(self, length: int) -> np.ndarray:
        """Returns how many segments of so many predictions each document has."""
        return (np.diff(self.ends, prepend=0) - 1) // length

    def cut(self, document: np.ndarray, nth: np.ndarray, length: int) -> Segment:
        """Returns the nth segments of documents: tokens [N, length + 1]."""
        start = nth * length
        begin = np.concatenate([[0], self.ends])[document] + start
        tokens = self.tokens[begin[:, None] + np.arange(length + 1)]
        return {
            "tokens": tokens.astype(np.int32),
            "document": document.astype(np.int32),
            "start": start.astype(np.int32),
            "weight": np.ones((len(document), length), np.float32),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentData:
    """The documents of a text and its tokenizer."""

    splits: dict[str, Split]
    tokenizer: tokenizers.Tokenizer

    @property
    def vocab_size(self) -> int:
        """How many different tokens there may be."""
        return self.tokenizer.vocab_size

    def batch_at(
        self, seed: int, split: str, step: int, size: int, length: int
    ) -> Segment:
        """Returns the segments that `size` rows read at a step: tokens [size, length].

        A row reads the documents in orders of its own, beginning somewhere in the
        first. A document's last tokens, too few for a segment, are left out.
        """
        part = self.splits[split]
        segments = part.segments(length - 1)
        total = int(segments.sum())
        if not total:
            raise self.too_short(split, length)
        document, nth = np.empty(size, np.int64), np.empty(size, np.int64)
        for row in range(size):
            key = (seed, SPLITS.index(split), row)
            at = step + int(np.random.default_rng(key).integers(total))
            order, ends = _order(key, at // total, tuple(segments.tolist()))
            which = int(np.searchsorted(ends, at % total, side="right"))
            document[row] = order[which]
            nth[row] = at % total - (ends[which - 1] if which else 0)
        return part.cut(document, nth, length - 1)

    def eval_windows(
        self, split: str, length: int, count: int | None = None
    ) -> Segments:
        """Returns the same segments every time, about count of them.

        They are the first of documents spread over the split; without a count, all.
        """
        part = self.splits[split]
        segments = part.segments(length - 1)
        chosen = np.flatnonzero(segments)
        if not len(chosen):
            raise self.too_short(split, length)
        each = segments[chosen]
        if count is not None:
            wanted = min(len(chosen), max(1, count // EVAL_SEGMENTS))
            chosen = chosen[np.linspace(0, len(chosen) - 1, wanted).astype(int)]
            each = np.minimum(segments[chosen], max(1, count // wanted))
        document = np.repeat(chosen, each)
        nth = np.concatenate([np.arange(n) for n in each])
        cut = part.cut(document, nth, length - 1)
        return Segments(cut["tokens"], cut["document"], cut["start"], cut["weight"])

    def too_short(self, split: str, length: int) -> UserError:
        """Returns what is wrong with a split without a segment."""
        return UserError(
            f"no document of the {split} split has the {length} tokens of a segment: "
            "take longer ones or a smaller model.block_size"
        )


@functools.lru_cache(maxsize=4096)
def _order(
    key: tuple[int, ...], epoch: int, segments: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the order of documents in an epoch, and where each ends in segments."""
    order = np.random.default_rng((*key, epoch)).permutation(len(segments))
    return order, np.cumsum(np.array(segments)[order])


def open_documents(config: ConfigDict, length: int) -> DocumentData:
    """Opens `config.data`: a folder in which each .txt file is a document.

    In its subfolders train, val and test they are split already; otherwise the
    fractions of `config.data` are held out, as `data.split_seed` draws. Of one file
    each split is a document, or each of its chunks.

    Args:
      config: of the run.
      length: of a segment with its last target; each split must hold one.

    Raises:
      UserError: where there is none, or a split is empty.
    """
    path = cache.resolve(config.data.path)
    if not path.is_dir() or (path / "train.bin").exists():
        return _one_text(config, length)
    parts = _split(path, config.data)
    paths = [file for part in parts.values() for file in part]
    cached = cache.cache_folder(paths, config)
    cached = cached.with_name(f"documents-{cached.name}")
    if not (cached / "tokenizer.json").exists():
        cache.build(paths, config, cached, functools.partial(_fill, parts))
    tokenizer = tokenizers.load_tokenizer(cached / "tokenizer.json")
    dtype = cache.token_dtype(tokenizer.vocab_size)
    splits = {}
    for split, ends in json.loads((cached / "ends.json").read_text()).items():
        tokens = np.fromfile(cached / f"{split}.bin", dtype)
        splits[split] = Split(tokens, np.array(ends, int), _names(parts[split]))
    data = DocumentData(splits, tokenizer)
    for split, part in splits.items():
        if parts[split] and not part.segments(length - 1).any():
            raise data.too_short(split, length)
    return data


def _one_text(config: ConfigDict, length: int) -> DocumentData:
    text = open_text(config, length)
    splits = {}
    for split in SPLITS:
        tokens = getattr(text, split)
        chunk = text.chunk or max(len(tokens), 1)
        ends = np.arange(chunk, len(tokens) + 1, chunk)
        names = tuple(f"{split} {number}" for number in range(len(ends)))
        splits[split] = Split(tokens, ends, names)
    return DocumentData(splits, text.tokenizer)


def _names(paths: list[pathlib.Path]) -> tuple[str, ...]:
    return tuple(path.stem for path in paths)


def _split(path: pathlib.Path, data: ConfigDict) -> dict[str, list[pathlib.Path]]:
    if (path / "train").is_dir():
        parts = {
            split: cache.text_files(path / split) if (path / split).is_dir() else []
            for split in SPLITS
        }
    else:
        paths = cache.text_files(path)
        order = np.random.default_rng(data.split_seed).permutation(len(paths))
        train, held = shares(len(paths), data)
        chosen = np.split(order, [train, train + held])
        parts = {
            split: [paths[i] for i in sorted(part)]
            for split, part in zip(SPLITS, chosen, strict=True)
        }
    for split in ("train", "val"):
        if not parts[split]:
            raise UserError(
                f"data.path '{path}' has no document for the {split} split: add more, "
                "or set data.val_fraction"
            )
    return parts


def _fill(
    parts: dict[str, list[pathlib.Path]],
    tokenizer: tokenizers.Tokenizer,
    folder: pathlib.Path,
) -> None:
    """Writes the tokens of each split, and where its documents end."""
    dtype = cache.token_dtype(tokenizer.vocab_size)
    ends: dict[str, list[int]] = {}
    for split, paths in parts.items():
        ends[split], total = [], 0
        with open(folder / f"{split}.bin", "wb") as out:
            for path in paths:
                for text in cache.iter_chunks([path]):
                    ids = tokenizer.encode(text).astype(dtype)
                    ids.tofile(out)
                    total += len(ids)
                ends[split].append(total)
    (folder / "ends.json").write_text(json.dumps(ends))
