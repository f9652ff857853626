"""Documents read with a memory: what it is worth, where, and for which tokens."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxgpt.data.documents import Segments
from jaxgpt.model import layers
from jaxgpt.systems.memory import model

if TYPE_CHECKING:
    from jaxgpt.systems.memory.system import MemoryLM

# Bounds of distances in tokens; the last group is of tokens new to a document.
DISTANCES = (1, 16, 64, 256, 1024, 4096)


@dataclasses.dataclass(frozen=True)
class Read:
    """What was predicted of each target: arrays [N, T].

    `keep_NT` is the store decision for the token read.
    """

    nll_NT: np.ndarray
    likeliest_NT: np.ndarray
    keep_NT: np.ndarray


@functools.partial(jax.jit, static_argnames=("system", "reading"), donate_argnums=2)
def _segment(system: MemoryLM, params, state, batch, reading: str):
    module = system.model(params)
    tokens = batch["tokens"]
    state = model.begin(state, batch["start"] == 0)
    look = system.look(state, reading)
    read = module.segment(tokens[:, :-1], state["recent"], look)
    nll_BT = layers.cross_entropy(read.logits_BTV, tokens[:, 1:])
    state, keep_BT = model.commit(module, state, read, batch, system.memory, True)
    return state, (nll_BT, read.logits_BTV.argmax(-1), keep_BT)


def read(
    system: MemoryLM, params: dict, segments: Segments, rows: int, reading: str
) -> Read:
    """Reads each document from its beginning, with a memory of its own.

    The training memory is not touched. Documents of like length are read side by side;
    one that has ended waits for the others.

    Args:
      system, params: of the model.
      segments: of documents.
      rows: at most so many documents at a time.
      reading: "on", "off" or "shuffled": the memory of the document beside.
    """
    streams = sorted(segments.streams(), key=len, reverse=True)
    rows = max(min(rows, len(streams)), 2 if reading == "shuffled" else 1)
    parts: list[np.ndarray] = [None] * len(segments)  # type: ignore[list-item]
    for first in range(0, len(streams), rows):
        own = streams[first : first + rows]
        spare = [streams[i % len(streams)] for i in range(rows - len(own))]
        group = own + spare
        store, state = system.fresh(rows)
        for nth in range(len(own[0])):
            index_B = np.array([s[min(nth, len(s) - 1)] for s in group])
            batch = segments.at(index_B)
            state, found = _segment(system, params, state, batch, reading)
            store.follow(state["entries"])
            found = [np.asarray(array) for array in found]
            for row, stream in enumerate(own):
                if nth < len(stream):
                    parts[stream[nth]] = np.stack([a[row] for a in found])
        system.close(store)
    nll, likeliest, keep = np.stack(parts, 1)
    return Read(nll.astype(np.float64), likeliest.astype(np.int32), keep)


def report(
    system: MemoryLM, params: dict, segments: Segments, rows: int
) -> dict[str, Any]:
    """Returns loss, perplexity, accuracy and F1, memory on, off and shuffled.

    And for on and off: the loss by place in a segment and by how far back a token
    last came.
    """
    counts = segments.weight_NT > 0
    targets_NT = segments.tokens_NT[:, 1:]
    far_NT = distances(segments)
    figures: dict[str, Any] = {}
    ways = ["on", "off"] + ["shuffled"] * (len(segments.streams()) > 1)
    for way in ways:
        found = read(system, params, segments, rows, way)
        nll, targets = found.nll_NT[counts], targets_NT[counts]
        likeliest = found.likeliest_NT[counts]
        figures[f"loss_{way}"] = float(nll.mean())
        figures[f"perplexity_{way}"] = math.exp(nll.mean())
        figures[f"accuracy_{way}"] = float((likeliest == targets).mean())
        figures[f"f1_{way}"] = f1(likeliest, targets)
        if way != "shuffled":
            figures[f"loss_by_distance_{way}"] = by_distance(found.nll_NT, far_NT)
            with np.errstate(invalid="ignore"):
                weighted = (found.nll_NT * counts).sum(0) / counts.sum(0)
            # Of places where nothing counts there is no loss.
            figures[f"loss_by_position_{way}"] = [
                None if math.isnan(value) else float(value) for value in weighted
            ]
    return figures


def f1(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean F1 of the tokens that occur as target, each token once."""
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
        last: dict[int, int] = {}
        far = np.empty(len(text), np.int64)
        for place, token in enumerate(text.tolist()):
            far[place] = place - last[token] if token in last else -1
            last[token] = place
        far_NT[stream] = far[1:].reshape(len(stream), -1)
    return far_NT


def by_distance(nll_NT: np.ndarray, far_NT: np.ndarray) -> dict[str, float]:
    """Returns {"lowest-highest distance": mean loss}; "new" is a first occurrence."""
    found = {}
    for low, high in zip(DISTANCES, (*DISTANCES[1:], 1 << 60), strict=True):
        chosen = (far_NT >= low) & (far_NT < high)
        name = f"{low}-{high - 1}" if high < 1 << 60 else f"{low}-"
        if chosen.any():
            found[name] = float(nll_NT[chosen].mean())
    if (far_NT < 0).any():
        found["new"] = float(nll_NT[far_NT < 0].mean())
    return found
