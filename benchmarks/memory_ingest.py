"""Tokens of a document that a memory takes in for each CPU-second, by mode and size.

python -m benchmarks.memory_ingest

The shape of configs/memory_gpt2.py:laptop with random weights (the time does not depend
on them), one core if it is run under `taskset -c 1`. The memory is full beforehand, so
that every token evicts one. Beside it, the same by `sample`, which searches for each of
the tokens it reads. Medians of the rounds, in which all sides take turns, and lowest
and highest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.alternate import machine
from jaxgpt import backend
from jaxgpt import config as configs
from jaxgpt.systems.memory.documents import Memory
from jaxgpt.systems.memory.ingestion import ingest
from jaxgpt.systems.memory.model import MODES
from jaxgpt.systems.registry import build_system

SIZES = (1024, 16_384, 131_072)
VOCAB, TOKENS, SAMPLED = 1024, 65_536, 1024


class Side:
    """A full memory, and the two ways to read a document into it."""

    def __init__(self, mode: str, size: int):
        changes = {
            "memory.mode": mode,
            "memory.memory_size": str(size),
            "model.vocab_size": str(VOCAB),
        }
        config = configs.load("configs/memory_gpt2.py:laptop", changes)
        self.system = build_system(config)
        self.params = jax.jit(self.system.init)(jax.random.key(0))
        self.memory = Memory.empty(self.system.host)
        text_T = np.random.default_rng(0).integers(0, VOCAB, size + 1, np.int32)
        self.ingest(text_T)

    def ingest(self, text_T: np.ndarray) -> None:
        ingest(self.system.host, self.memory.store, self.params, text_T, 0)

    def sample(self, text_T: np.ndarray) -> None:
        known, key = np.ones((1, len(text_T)), bool), jax.random.key(0)
        arguments = (self.params, text_T[None], known, key)
        self.system.sample(*arguments, memory=self.memory)


def rate(read: Callable[[np.ndarray], None], text_T: np.ndarray) -> float:
    """Returns tokens per CPU-second."""
    began = time.process_time()
    read(text_T)
    return len(text_T) / (time.process_time() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    backend.set_up_jax()
    print(machine())
    print("mode           entries   ingest, tokens/CPU-s    by sample")
    result = {"machine": machine()}
    text_T = np.random.default_rng(1).integers(0, VOCAB, TOKENS, np.int32)
    for mode in MODES:
        for size in SIZES:
            side = Side(mode, size)
            ways = ((side.ingest, text_T), (side.sample, text_T[:SAMPLED]))
            for way in ways:  # Compiles.
                rate(*way)
            rounds = [[rate(*way) for way in ways] for _ in range(args.rounds)]
            ingested, sampled = (
                [*sorted(column)] for column in zip(*rounds, strict=True)
            )
            figures = {"ingest": ingested, "sample": sampled}
            result[f"{mode}, {size}"] = figures
            print(
                f"{mode:12} {size:9,}   {statistics.median(ingested):8,.0f} "
                f"({ingested[0]:,.0f} to {ingested[-1]:,.0f})   "
                f"{statistics.median(sampled):8,.0f} "
                f"({sampled[0]:,.0f} to {sampled[-1]:,.0f})"
            )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
