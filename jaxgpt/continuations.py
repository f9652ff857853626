"""Continues texts of a split: sample --split, prompt and continuation printed apart."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np

from jaxgpt import cli
from jaxgpt.config import UserError
from jaxgpt.core import random
from jaxgpt.systems import Sampling

if TYPE_CHECKING:
    from jaxgpt.run import Run


def prompts(run: Run, split: str, count: int, seed: int) -> np.ndarray:
    """Returns int32 [count, block // 2]: places of a split that the seed draws."""
    length = max(1, run.system.model_config.block_size // 2)
    return run.open_data().batch_at(seed, split, 0, count, length)


def command(run: Run, args: argparse.Namespace, how: Sampling, longest: int) -> None:
    """Prints what follows on prompts from `args.split`, or one JSON object.

    Args:
      run: a restored run, whose data is still where it was.
      args: of jaxgpt.sample.
      how: to sample.
      longest: tokens that prompt and continuation may make.

    Raises:
      UserError: where they are longer, or there is no such split.
    """
    given_NT = prompts(run, args.split, args.num_samples, args.seed)
    N, given = given_NT.shape
    block = run.system.model_config.block_size
    new = block - given if args.max_new_tokens is None else args.max_new_tokens
    if given + new > longest:
        raise UserError(
            f"a prompt of {given} and --max_new_tokens={new} make {given + new} "
            f"tokens: {longest} fit the model"
        )
    known_NT = np.tile(np.arange(given + new) < given, (N, 1))
    began = time.perf_counter()
    filled = run.system.sample(
        run.params,
        np.pad(given_NT, ((0, 0), (0, new))),
        known_NT,
        random.stream(args.seed, "sample"),
        how,
    )
    seconds = time.perf_counter() - began
    show = lambda ids: run.tokenizer.decode(ids) if run.tokenizer else str(ids.tolist())
    samples = [
        {
            "text": show(row),
            "prompt": show(row[:given]),
            "continuation": show(row[given:]),
            "tokens": row.tolist(),
            "model_calls": int(calls),
            "accepted_per_call": new / int(calls) if calls else 0.0,
        }
        for row, calls in zip(filled.tokens_BT, filled.calls_B, strict=True)
    ]
    if args.json:
        cli.print_json({"samples": samples, "seconds": seconds})
        return
    for index, sample in enumerate(samples, 1):
        print(f"--- prompt {index}, from the {args.split} split")
        print(sample["prompt"])
        print(f"--- continuation {index}")
        print(sample["continuation"])
    cli.say(f"{N * new} tokens in {seconds:.2f} s, compilation included")
