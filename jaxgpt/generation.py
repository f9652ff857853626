"""Generation as a command asks for it, and what is said of its samples."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from jaxgpt.core import random
from jaxgpt.systems import Sampling

if TYPE_CHECKING:
    from jaxgpt.live import Screen
    from jaxgpt.run import Run
    from jaxgpt.systems import Filled, Watch
    from jaxgpt.systems.memory.session import Memory

STOP_EVERY = 32  # Calls between looks for the stop text: a look waits for the device.


def show(run: Run, tokens: np.ndarray) -> str:
    """Returns the text of tokens [T]; without a tokenizer, their numbers."""
    return run.tokenizer.decode(tokens) if run.tokenizer else str(tokens.tolist())


def _stop_at(run: Run, row: np.ndarray, given: int, stop: str) -> int:
    """Returns how many tokens to keep: those up to stop, sought after the prompt."""
    if not stop or stop not in show(run, row[given:]):
        return len(row)
    for end in range(given + 1, len(row)):
        if stop in show(run, row[given:end]):
            return end
    return len(row)


def _watch(
    run: Run, args: argparse.Namespace, given: int, screen: Screen | None
) -> tuple[Watch | None, int]:
    """Returns what looks on while a run generates, and how many calls it waits."""
    if screen:
        return screen.show, 1
    if not args.stop:
        return None, 1

    def unfinished(filled: Filled) -> bool:
        # Left to right, what is settled ends where the first gap begins.
        ends = [
            int(row.argmin()) if not row.all() else len(row)
            for row in filled.settled_BT
        ]
        rows = zip(filled.tokens_BT, ends, strict=True)
        return not all(args.stop in show(run, row[given:end]) for row, end in rows)

    return unfinished, STOP_EVERY


def _how(args: argparse.Namespace) -> Sampling:
    return Sampling(
        sampler=args.sampler,
        order=args.order,
        temperature=args.temperature,
        top_k=args.top_k or 0,
        top_p=args.top_p,
        num_orders=args.num_orders or 0,
        block_length=args.block_length or 0,
    )


def generate(
    run: Run,
    args: argparse.Namespace,
    tokens: np.ndarray,
    known: np.ndarray,
    screen: Screen | None = None,
    memory: Memory | None = None,
) -> Filled:
    """Returns `args.num_samples` fillings of a text [T], or of so many [N, T].

    known is [T] or [N, T].
    """
    given = int(known.sum()) if known.ndim == 1 else 0
    watch, every = _watch(run, args, given, screen)
    return run.system.sample(
        run.params,
        np.broadcast_to(tokens, (args.num_samples, tokens.shape[-1])),
        np.broadcast_to(known, (args.num_samples, known.shape[-1])),
        random.stream(args.seed, "sample"),
        dataclasses.replace(_how(args), memory=memory, document=args.document),
        watch,
        every,
    )


def describe(run: Run, filled: Filled, known: np.ndarray, stop: str) -> list[dict]:
    """Returns the contract's JSON object of each sample; known is [T] or [N, T]."""
    samples = []
    known_BT = np.broadcast_to(known, filled.tokens_BT.shape)
    for row, tokens in enumerate(filled.tokens_BT):
        known, given = known_BT[row], int(known_BT[row].sum())
        end = _stop_at(run, tokens, given, stop)
        calls = int(filled.calls_B[row])
        made = int((filled.settled_BT[row] & ~known).sum())
        samples.append(
            {
                "text": run.tokenizer.decode(tokens[:end]) if run.tokenizer else None,
                "tokens": tokens[:end].tolist(),
                "model_calls": calls,
                "accepted_per_call": made / calls if calls else 0.0,
                "token_evaluations": int(filled.evaluations_B[row]),
                "log_probability": float(filled.log_p_BT[row, :end].sum()),
            }
        )
    return samples
