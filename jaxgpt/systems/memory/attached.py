"""Texts scored with a memory that does not change, and without it."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.data.arrays import batched
from jaxgpt.data.documents import Segments
from jaxgpt.errors import log
from jaxgpt.model import layers
from jaxgpt.systems.memory.documents import Memory
from jaxgpt.systems.memory.ingestion import recent
from jaxgpt.systems.memory.modes import neighbours
from jaxgpt.systems.memory.runtime import MemoryRuntime

# What `tune` tries of memory.mode=output.
RESULTS = (1, 2, 4, 8, 16, 32, 64)
TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
WEIGHTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)


class Neighbours(NamedTuple):
    """The nearest entries of a memory of mode output for P predictions.

    Attributes:
      nll_P: of the model alone, in nats.
      distance_PM: of `modes.neighbours`, nearest first; infinite for none.
      right_PM: whether the entry's token is the target.
    """

    nll_P: np.ndarray
    distance_PM: np.ndarray
    right_PM: np.ndarray

    def nll(self, results: int, temperature: float, weight: float) -> np.ndarray:
        """Returns nats [P] with the memory, as `modes.KNNLM` predicts."""
        distance_PM = self.distance_PM[:, :results]
        found_P = np.isfinite(distance_PM[:, 0])
        nearest_P1 = np.where(found_P, distance_PM[:, 0], 0)[:, None]
        p_PM = np.exp((nearest_P1 - distance_PM) / temperature)
        p_P = (p_PM * self.right_PM[:, :results]).sum(1)
        p_P /= np.maximum(p_PM.sum(1), 1e-300)
        mixed_P = (1 - weight) * np.exp(-self.nll_P) + weight * p_P
        return np.where(found_P, -np.log(np.maximum(mixed_P, 1e-300)), self.nll_P)


class Setting(NamedTuple):
    """How mode output reads, and the mean loss with it."""

    num_search_results: int
    temperature: float
    weight: float
    loss: float


def tune(found: Neighbours) -> Setting:
    """Returns the setting of the least mean loss, of all that are tried."""
    tried = itertools.product(RESULTS, TEMPERATURES, WEIGHTS)
    settings = (Setting(*one, float(found.nll(*one).mean())) for one in tried)
    return min(settings, key=lambda setting: setting.loss)


def losses(
    memory: Memory, params: dict, segments: Segments, rows: int
) -> dict[str, np.ndarray]:
    """Returns {"on", "off"}: float64 nats of every prediction that counts.

    Segments are read `rows` at a time and not written to the memory, which has one row.
    """
    _warn_of_known(memory, segments)
    counts_NT = segments.weight_NT > 0
    found = {}
    for reading in ("on", "off"):
        score = functools.partial(_score, memory.runtime, reading=reading)
        parts = _in_batches(memory, params, segments, rows, score)
        found[reading] = np.concatenate([nll for (nll,) in parts]).astype(np.float64)
        found[reading] = found[reading][counts_NT]
    return found


def find_neighbours(
    memory: Memory, params: dict, segments: Segments, rows: int
) -> Neighbours:
    """Returns the neighbours in a memory of mode output; arguments as of `losses`."""
    _warn_of_known(memory, segments)
    find = functools.partial(_find, memory.runtime)
    parts = _in_batches(memory, params, segments, rows, find)
    counts_NT = segments.weight_NT > 0
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    nll, distance, right = (array[counts_NT] for array in joined)
    return Neighbours(nll.astype(np.float64), distance.astype(np.float64), right)


def _in_batches(memory: Memory, params: dict, segments: Segments, rows: int, function):
    """Returns the results of function(params, state, tokens), batch by batch."""
    W = memory.runtime.format.context
    before_NW = np.full((len(segments), W), -1, np.int32)
    for stream in segments.streams():
        for earlier, nth in itertools.pairwise(stream):
            # A segment's last token is the first of the next.
            before_NW[nth] = recent(segments.tokens_NT[earlier, :-1], W)
    arrays = {"tokens": segments.tokens_NT, "recent": before_NW}
    parts: list[Any] = []
    for batch, count in batched(arrays, rows):
        state = {"entries": memory.store.entries, "recent": batch["recent"]}
        found = function(params, state, batch["tokens"])
        parts.append([np.asarray(array)[:count] for array in found])
    return parts


@functools.partial(jax.jit, static_argnames=("runtime", "reading"))
def _score(runtime: MemoryRuntime, params, state, tokens_BT, reading: str):
    lookup = runtime.lookup(state, reading)
    read = runtime.model(params).read(tokens_BT[:, :-1], state["recent"], lookup)
    return (layers.cross_entropy(read.logits_BTV, tokens_BT[:, 1:]),)


@functools.partial(jax.jit, static_argnames="runtime")
def _find(runtime: MemoryRuntime, params, state, tokens_BT):
    module, targets_BT = runtime.model(params), tokens_BT[:, 1:]
    off = runtime.lookup(state, "off")
    read = module.read(tokens_BT[:, :-1], state["recent"], off)
    slot_BTM, distance_BTM = neighbours(read.x_BTD, runtime.lookup(state, "on"))
    token_BTM = state["entries"]["token"][0][jnp.maximum(slot_BTM, 0)]
    right_BTM = token_BTM == targets_BT[..., None]
    nll_BT = layers.cross_entropy(read.logits_BTV, targets_BT)
    return nll_BT, distance_BTM, right_BTM


def _warn_of_known(memory: Memory, segments: Segments) -> None:
    """Logs if the memory holds one of the texts that are scored."""
    length = segments.tokens_NT.shape[1]
    known = {
        text[:length].tobytes(): memory.names[n] for n, text in enumerate(memory.texts)
    }
    for stream in segments.streams():
        name = known.get(segments.tokens_NT[stream[0]].astype(np.int32).tobytes())
        if name:
            log(f"warning: the memory holds '{name}', one of the texts to be scored")
            return


def of_text(tokens_T: np.ndarray, block: int) -> Segments:
    """Returns the segments of a text of two tokens or more; the last is padded."""
    start_N = np.arange(0, len(tokens_T) - 1, block, dtype=np.int32)
    padded = np.pad(tokens_T, (0, block))
    place_NT = start_N[:, None] + np.arange(block + 1)
    weight_NT = (place_NT[:, 1:] < len(tokens_T)).astype(np.float32)
    tokens_NT = padded[place_NT].astype(np.int32)
    return Segments(tokens_NT, np.zeros(len(start_N), np.int32), start_N, weight_NT)


def summary(nll: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the loss with the memory, and without it, as figures to print."""
    with_it, without = (float(nll[reading].mean()) for reading in ("on", "off"))
    return {
        "loss": with_it,
        "perplexity": math.exp(with_it),
        "bits_per_token": with_it / math.log(2),
        "tokens": nll["on"].size,
        "loss_without": without,
        "perplexity_without": math.exp(without),
    }
