"""Documents, read in consecutive segments.

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

from jaxgpt.data import cache, reading
from jaxgpt.data.text import SPLITS, open_text, read_bins, split_sizes
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import UserError, log

EVAL_SEGMENTS = 64  # Of each document, in evaluations during training.

Segment = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Segments:
    """Segments of documents, each document's one after another, in order.

    Attributes:
      tokens_NT: int32; a segment's last token is the first of the next.
      document_N: int32, the index of the document.
      start_N: int32, where in the document the segment begins.
      weight_NT: float32 [N, T - 1], 1 for the predictions that count.
    """

    tokens_NT: np.ndarray
    document_N: np.ndarray
    start_N: np.ndarray
    weight_NT: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens_NT)

    def streams(self) -> list[np.ndarray]:
        """Returns for each document the indices of its segments, in order."""
        first = np.flatnonzero(np.diff(self.document_N, prepend=-1))
        return np.split(np.arange(len(self)), first[1:])

    def at(self, index_B: np.ndarray | slice) -> Segment:
        """Returns these segments as a batch."""
        return {
            "tokens": self.tokens_NT[index_B],
            "document": self.document_N[index_B],
            "start": self.start_N[index_B],
            "weight": self.weight_NT[index_B],
        }


@dataclasses.dataclass(frozen=True)
class DocumentSplit:
    """Documents end to end; `ends` [documents] are their ends in tokens."""

    tokens: np.ndarray
    ends: np.ndarray

    def cut(self, document_N: np.ndarray, nth_N: np.ndarray, length: int) -> Segments:
        """Returns the nth segments of documents, of length + 1 tokens."""
        start_N = nth_N * length
        begin_N = np.concatenate([[0], self.ends])[document_N] + start_N
        tokens_NT = self.tokens[begin_N[:, None] + np.arange(length + 1)]
        weight_NT = np.ones((len(document_N), length), np.float32)
        tokens_NT, document_N, start_N = (
            array.astype(np.int32) for array in (tokens_NT, document_N, start_N)
        )
        return Segments(tokens_NT, document_N, start_N, weight_NT)


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentData:
    """The documents of a text and its tokenizer."""

    splits: dict[str, DocumentSplit]
    tokenizer: Tokenizer
    fingerprint: str = ""

    @property
    def vocab_size(self) -> int:
        """The tokenizer's."""
        return self.tokenizer.vocab_size

    def batch_at(
        self, seed: int, split: str, step: int, size: int, length: int
    ) -> Segment:
        """See `Dataset.batch_at`: the segments that rows read at a step.

        Each row reads all documents in its own random orders, and begins somewhere in
        the first.
        """
        counts = self.num_segments(split, length)
        total = int(counts.sum())
        document, nth = np.empty(size, np.int64), np.empty(size, np.int64)
        for row in range(size):
            key = (seed, SPLITS.index(split), row)
            place = step + int(np.random.default_rng(key).integers(total))
            epoch, within = divmod(place, total)
            order, ends = _order(key, epoch, tuple(counts.tolist()))
            which = int(np.searchsorted(ends, within, side="right"))
            document[row] = order[which]
            nth[row] = within - (ends[which - 1] if which else 0)
        return self.splits[split].cut(document, nth, length - 1).at(slice(None))

    def eval_windows(
        self, split: str, length: int, count: int | None = None
    ) -> Segments:
        """See `Dataset.eval_windows`: the first segments of documents, about count."""
        counts = self.num_segments(split, length)
        chosen = np.flatnonzero(counts)
        if count is not None:
            documents = min(len(chosen), max(1, count // EVAL_SEGMENTS))
            chosen = chosen[np.linspace(0, len(chosen) - 1, documents).astype(int)]
            counts = np.minimum(counts, max(1, count // documents))
        document = np.repeat(chosen, counts[chosen])
        nth = np.concatenate([np.arange(n) for n in counts[chosen]])
        return self.splits[split].cut(document, nth, length - 1)

    def num_segments(self, split: str, length: int) -> np.ndarray:
        """Returns how many whole segments each document of a split has.

        Raises:
          UserError: if there is none at all.
        """
        sizes = np.diff(self.splits[split].ends, prepend=0)
        counts = (sizes - 1) // (length - 1)
        if not counts.any():
            raise UserError(
                f"no document of the {split} split has the {length} tokens of a "
                "segment: use longer ones or a smaller model.block_size"
            )
        return counts


@functools.lru_cache(maxsize=4096)
def _order(
    key: tuple[int, ...], epoch: int, counts: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the order of documents in an epoch, and where each ends in segments."""
    order = np.random.default_rng((*key, epoch)).permutation(len(counts))
    return order, np.cumsum(np.array(counts)[order])


def open_documents(
    config: ConfigDict, length: int, tokenizer: Tokenizer | None = None
) -> DocumentData:
    """Opens `config.data`: a folder in which each .txt file is a document.

    Its subfolders train, val and test are the splits, if it has them; otherwise
    `data.split_seed` draws which documents are held out. If it is one file, each split
    is a document, or each of its chunks is.

    Args:
      length: of a segment with its last target; each split must have one.
      tokenizer: as in `open_text`.

    Raises:
      UserError: if there is no document, or a split is empty; see `open_text`.
    """
    path = cache.resolve_path(config.data)
    ends: dict[str, list[int] | np.ndarray]
    if path.is_dir() and not (path / "train.bin").exists():
        files = _split_files(path, config.data)
        paths = [file for part in files.values() for file in part]
        write = functools.partial(_write_documents, files, config.data)
        digest = cache.fingerprint(path, paths, config.data)
        folder, tokenizer = cache.cached_tokens(
            paths, digest, config, write, tokenizer, "documents-"
        )
        text = read_bins(folder, tokenizer)
        ends = json.loads((folder / "ends.json").read_text())
    else:
        text, ends = open_text(config, length, tokenizer), {}
        digest = text.fingerprint
        for split in SPLITS:
            size = len(text.splits[split])
            chunk = text.chunk or max(size, 1)
            ends[split] = np.arange(chunk, size + 1, chunk)
    splits = {
        split: DocumentSplit(text.splits[split], np.array(ends[split], int))
        for split in SPLITS
    }
    data = DocumentData(splits, text.tokenizer, digest)
    for split in SPLITS:
        if len(ends[split]):
            data.num_segments(split, length)
    return data


def _split_files(path: pathlib.Path, data: ConfigDict) -> dict[str, list[pathlib.Path]]:
    if (path / "train").is_dir():
        folders = {split: path / split for split in SPLITS}
        others = sorted(p.name for p in path.iterdir() if p.name not in SPLITS)
        if others:
            names = reading.some(others)
            log(f"note: '{path}': skipped, in no split: {names}")
        files = {
            s: reading.text_files(f) if f.is_dir() else [] for s, f in folders.items()
        }
    else:
        paths = reading.text_files(path)
        order = np.random.default_rng(data.split_seed).permutation(len(paths))
        train, val = split_sizes(len(paths), data)
        parts = np.split(order, [train, train + val])
        files = {
            split: [paths[i] for i in sorted(part)]
            for split, part in zip(SPLITS, parts, strict=True)
        }
    for split in ("train", "val"):
        if not files[split]:
            raise UserError(
                f"data.path '{path}' has no document for the {split} split: add more, "
                "or set data.val_fraction"
            )
    return files


def _write_documents(
    files: dict[str, list[pathlib.Path]],
    data: ConfigDict,
    tokenizer: Tokenizer,
    folder: pathlib.Path,
) -> None:
    """Writes the tokens of each split, and where its documents end."""
    dtype = cache.token_dtype(tokenizer.vocab_size)
    ends: dict[str, list[int]] = {}
    for split, paths in files.items():
        ends[split], total = [], 0
        with open(folder / f"{split}.bin", "wb") as out:
            for path in paths:
                pieces = reading.iter_chunks([path], data.normalize)
                for ids in cache.encode(pieces, tokenizer, [path], data):
                    ids.astype(dtype).tofile(out)
                    total += len(ids)
                ends[split].append(total)
    (folder / "ends.json").write_text(json.dumps(ends))
