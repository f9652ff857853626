"""Documents read with a memory: losses with it and without, and where they differ."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgpt.data.documents import Segments
from jaxgpt.model import layers
from jaxgpt.systems.memory.runtime import MemoryRuntime

# Lower bounds of the groups of distances, in tokens.
DISTANCES = (1, 16, 64, 256, 1024, 4096)


class Predictions(NamedTuple):
    """Of each target [N, T]: its nats, float64, and the likeliest token, int32."""

    nll_NT: np.ndarray
    likeliest_NT: np.ndarray


@functools.partial(jax.jit, static_argnames=("runtime", "reading"), donate_argnums=2)
def _score_segment(runtime: MemoryRuntime, params, state, batch, reading: str):
    state, read, _ = runtime.read(params, state, batch, reading)
    nll_BT = layers.cross_entropy(read.logits_BTV, batch["tokens"][:, 1:])
    return state, (nll_BT, read.logits_BTV.argmax(-1))


def read_documents(
    runtime: MemoryRuntime, params: dict, segments: Segments, rows: int, reading: str
) -> Predictions:
    """Reads each document from its beginning, with its own new memory.

    Args:
      runtime, params: of the model.
      segments: of documents.
      rows: how many documents are read at a time, at most.
      reading: "on", "off" or "shuffled": the memory of the next row's document.
    """
    # Documents of similar length share a batch, which lasts as long as the longest.
    streams = sorted(segments.streams(), key=len, reverse=True)
    rows = max(min(rows, len(streams)), 2 if reading == "shuffled" else 1)
    parts: list[Any] = [None] * len(segments)
    for first in range(0, len(streams), rows):
        real = streams[first : first + rows]
        # The last batch is padded: another shape would have to be compiled.
        group = (real + streams * rows)[:rows]
        store, state = runtime.open(rows)
        for nth in range(len(real[0])):
            index_B = np.array([s[min(nth, len(s) - 1)] for s in group])
            batch = segments.at(index_B)
            state, found = _score_segment(runtime, params, state, batch, reading)
            store.update(state["entries"])
            found = [np.asarray(array) for array in found]
            for row, stream in enumerate(real):
                if nth < len(stream):
                    parts[stream[nth]] = np.stack([array[row] for array in found])
        runtime.close(store)
    nll, likeliest = np.stack(parts, 1)
    return Predictions(nll.astype(np.float64), likeliest.astype(np.int32))


def report(
    runtime: MemoryRuntime,
    params: dict,
    segments: Segments,
    rows: int,
    scored: dict[str, Predictions],
) -> dict[str, Any]:
    """Returns loss, perplexity, accuracy and F1 with the memory on, off and shuffled.

    For on and off also the loss by position in a segment and by how far back a token
    last occurred. `scored` has what `read_documents` returned already, by reading.
    """
    counts = segments.weight_NT > 0
    targets_NT = segments.tokens_NT[:, 1:]
    distance_NT = distances(segments)
    figures: dict[str, Any] = {}
    ways = ["on", "off"] + ["shuffled"] * (len(segments.streams()) > 1)
    for way in ways:
        read = scored.get(way) or read_documents(runtime, params, segments, rows, way)
        nll, targets = read.nll_NT[counts], targets_NT[counts]
        likeliest = read.likeliest_NT[counts]
        figures[f"loss_{way}"] = float(nll.mean())
        figures[f"perplexity_{way}"] = math.exp(nll.mean())
        figures[f"accuracy_{way}"] = float((likeliest == targets).mean())
        figures[f"f1_{way}"] = f1(likeliest, targets)
        if way != "shuffled":
            by_distance = loss_by_distance(read.nll_NT, distance_NT)
            figures[f"loss_by_distance_{way}"] = by_distance
            # Positions where nothing counts have no loss.
            figures[f"loss_by_position_{way}"] = [
                float(nll_N[counts_N].mean()) if counts_N.any() else None
                for nll_N, counts_N in zip(read.nll_NT.T, counts.T, strict=True)
            ]
    return figures


def f1(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Returns the F1 of each token that occurs as a target, averaged over tokens."""
    size = int(max(predicted.max(), targets.max())) + 1
    count = lambda values: np.bincount(values, minlength=size)
    right = count(targets[predicted == targets])
    total = count(predicted) + count(targets)
    occurs = count(targets) > 0
    return float((2 * right[occurs] / total[occurs]).mean())


def distances(segments: Segments) -> np.ndarray:
    """Returns [N, T]: how many tokens before each target it last came; -1 for never."""
    far_NT = np.empty((len(segments), segments.tokens_NT.shape[1] - 1), np.int64)
    for stream in segments.streams():
        parts = segments.tokens_NT[stream]
        text = np.concatenate([parts[:, :-1].ravel(), parts[-1, -1:]])
        order = np.argsort(text, kind="stable")  # Occurrences of a token, in order.
        again = np.diff(text[order]) == 0
        far = np.full(len(text), -1)
        far[order[1:][again]] = np.diff(order)[again]
        far_NT[stream] = far[1:].reshape(len(stream), -1)
    return far_NT


def loss_by_distance(nll_NT: np.ndarray, far_NT: np.ndarray) -> dict[str, float]:
    """Returns {"lowest-highest distance": mean loss}; "new" is a first occurrence."""
    names = {
        nth: f"{low}-{DISTANCES[nth] - 1 if nth < len(DISTANCES) else ''}"
        for nth, low in enumerate(DISTANCES, 1)
    }
    group_NT = np.digitize(far_NT, DISTANCES)
    return {
        name: float(nll_NT[group_NT == nth].mean())
        for nth, name in (names | {0: "new"}).items()
        if (group_NT == nth).any()
    }
