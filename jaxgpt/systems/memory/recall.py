"""A task that cannot be done without a memory: facts, asked for when out of sight.

A document states `FACTS` pairs of a key and a random value, and then asks for each: the
key comes again, and its value is to be predicted. A segment holds a quarter of it, so
that every fact is out of the window when it is asked for.
"""

from __future__ import annotations

import numpy as np

from jaxgpt.data.documents import Segment, Segments
from jaxgpt.data.text import SPLITS
from jaxgpt.errors import UserError

FACTS, KEYS, VALUES = 32, 64, 64
SEGMENT = FACTS
PARTS = 4


class RecallData:
    """Documents drawn as they are needed; no document comes twice."""

    tokenizer = None
    vocab_size = KEYS + VALUES

    def __init__(self, block_size: int):
        """Raises UserError where a segment is not a quarter of a document."""
        if block_size != SEGMENT:
            raise UserError(
                f"model.block_size is {SEGMENT} for the recall task (data.path empty): "
                f"not {block_size}"
            )

    def batch_at(
        self, seed: int, split: str, step: int, size: int, length: int
    ) -> Segment:
        """Returns the segments that rows read at a step.

        A quarter of the rows each begin, state on, are asked, and are asked on.
        """
        parts = []
        for group in range(PARTS):
            number, nth = divmod(step + group, PARTS)
            rows = len(range(group, size, PARTS))
            key = (seed, SPLITS.index(split), group, number)
            parts.append(_cut(documents(key, rows), np.full(rows, nth)))
        order = np.argsort(
            np.concatenate([np.arange(g, size, PARTS) for g in range(4)])
        )
        return {
            name: np.concatenate([part[name] for part in parts])[order]
            for name in parts[0]
        }

    def eval_windows(
        self, split: str, length: int, count: int | None = None
    ) -> Segments:
        """Returns whole documents, the same every time."""
        rows = max(1, (count or 1024) // PARTS)
        drawn = documents((0, SPLITS.index(split), PARTS), rows)
        parts = [_cut(drawn, np.full(rows, nth)) for nth in range(PARTS)]
        joined = {
            name: np.stack([part[name] for part in parts], 1).reshape(
                rows * PARTS, *parts[0][name].shape[1:]
            )
            for name in parts[0]
        }
        joined["document"] = np.repeat(np.arange(rows, dtype=np.int32), PARTS)
        return Segments(
            joined["tokens"], joined["document"], joined["start"], joined["weight"]
        )


def documents(key: tuple[int, ...], rows: int) -> np.ndarray:
    """Returns int32 [rows, 4 FACTS + 1]: facts, questions, and a key that ends them."""
    generator = np.random.default_rng(key)
    keys = generator.permuted(np.tile(np.arange(KEYS), (rows, 1)), axis=1)[:, :FACTS]
    values = KEYS + generator.integers(0, VALUES, (rows, FACTS))
    facts = np.stack([keys, values], 2)
    order = generator.permuted(np.tile(np.arange(FACTS), (rows, 1)), axis=1)
    asked = np.take_along_axis(facts, order[..., None], 1)
    text = np.concatenate([facts, asked], 1).reshape(rows, -1)
    return np.concatenate([text, keys[:, :1]], 1).astype(np.int32)


def _cut(text: np.ndarray, nth: np.ndarray) -> Segment:
    """Returns the nth segment of each document; only answers count."""
    start = nth * SEGMENT
    place = start[:, None] + np.arange(SEGMENT + 1)
    answer = (place[:, 1:] >= 2 * FACTS) & (place[:, 1:] % 2 == 1)
    return {
        "tokens": np.take_along_axis(text, place, 1),
        "document": np.arange(len(text), dtype=np.int32),
        "start": start.astype(np.int32),
        "weight": answer.astype(np.float32),
    }
