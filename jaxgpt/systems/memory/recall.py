"""Recall, a task that cannot be solved without a memory.

A document states `FACTS` pairs of a key and a random value, then repeats each key,
after which its value must be predicted. A segment holds a quarter of the document, so
that every fact has left the window when it is needed.
"""

from __future__ import annotations

import numpy as np

from jaxgpt.data.documents import Segment, Segments
from jaxgpt.data.text import SPLITS
from jaxgpt.errors import require

FACTS, KEYS, VALUES = 32, 64, 64
SEGMENT = FACTS
PARTS = 4


class RecallData:
    """Documents drawn as they are needed, each once."""

    tokenizer, fingerprint = None, ""
    vocab_size = KEYS + VALUES

    def __init__(self, block_size: int):
        """Raises UserError if a segment is not a quarter of a document."""
        rule = f"{SEGMENT} for the recall task (data.path is empty)"
        require(block_size == SEGMENT, "model.block_size", rule, block_size)

    def batch_at(
        self, seed: int, split: str, step: int, size: int, length: int
    ) -> Segment:
        """Returns the segments that rows read at a step.

        A quarter of the rows each read the first segment of a document, the second, the
        third and the last.
        """
        del length
        text = np.empty((size, PARTS * SEGMENT + 1), np.int32)
        nth = np.empty(size, np.int32)
        for group in range(PARTS):
            number, part = divmod(step + group, PARTS)
            rows = slice(group, size, PARTS)
            key = (seed, SPLITS.index(split), group, number)
            text[rows], nth[rows] = documents(key, len(nth[rows])), part
        return _cut(text, nth)

    def eval_windows(
        self, split: str, length: int, count: int | None = None
    ) -> Segments:
        """Returns whole documents, the same every time."""
        del length
        rows = max(1, (count or 1024) // PARTS)
        text = documents((0, SPLITS.index(split), PARTS), rows)
        cut = _cut(text.repeat(PARTS, 0), np.tile(np.arange(PARTS), rows))
        return Segments(cut["tokens"], cut["document"], cut["start"], cut["weight"])


def documents(key: tuple[int, ...], rows: int) -> np.ndarray:
    """Returns int32 [rows, 4 FACTS + 1]: facts, questions, and a key that ends them."""
    generator = np.random.default_rng(key)
    keys = generator.permuted(np.tile(np.arange(KEYS), (rows, 1)), axis=1)[:, :FACTS]
    values = KEYS + generator.integers(0, VALUES, (rows, FACTS))
    facts = np.stack([keys, values], 2)
    order = generator.permuted(np.tile(np.arange(FACTS), (rows, 1)), axis=1)
    asked = np.take_along_axis(facts, order[..., None], 1)
    text = np.concatenate([facts, asked], 1).reshape(rows, PARTS * SEGMENT)
    return np.concatenate([text, keys[:, :1]], 1).astype(np.int32)


def _cut(text: np.ndarray, nth: np.ndarray) -> Segment:
    """Returns the nth segment of each row's document; only answers count."""
    start = nth * SEGMENT
    position = start[:, None] + np.arange(SEGMENT + 1)
    answer = (position[:, 1:] >= 2 * FACTS) & (position[:, 1:] % 2 == 1)
    return {
        "tokens": np.take_along_axis(text, position, 1),
        "document": np.arange(len(text), dtype=np.int32) // PARTS,
        "start": start.astype(np.int32),
        "weight": answer.astype(np.float32),
    }
