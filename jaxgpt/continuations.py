"""Prompts from a split, and their continuations shown apart from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgpt.errors import UserError

if TYPE_CHECKING:
    from jaxgpt.run import Run


def prompts(
    run: Run, split: str, count: int, new: int | None, seed: int, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens [count, T], known [T]): half a block of a split, then a gap.

    Args:
      run: whose data is still where it was.
      split: of that data.
      count: prompts, at places that the seed draws.
      new: tokens of the gap; None fills the block.
      seed: of the places.
      longest: tokens that prompt and gap may make.

    Raises:
      UserError: where they make more, or there is no such split.
    """
    block = run.system.model_config.block_size
    given = block // 2
    new = block - given if new is None else new
    if given + new > longest:
        raise UserError(
            f"a prompt of {given} and --max_new_tokens={new} make {given + new} "
            f"tokens: {longest} fit the model"
        )
    given_NT = run.open_data().batch_at(seed, split, 0, count, given)
    return np.pad(given_NT, ((0, 0), (0, new))), np.arange(given + new) < given


def tell_apart(run: Run, samples: list[dict[str, Any]], given: int) -> None:
    """Adds prompt and continuation to each of sample's JSON objects."""
    for sample in samples:
        for name, ids in (
            ("prompt", sample["tokens"][:given]),
            ("continuation", sample["tokens"][given:]),
        ):
            sample[name] = run.tokenizer.decode(np.array(ids)) if run.tokenizer else ids


def show(samples: list[dict[str, Any]], split: str) -> None:
    """Prints them for a reader."""
    for index, sample in enumerate(samples, 1):
        print(f"--- prompt {index}, from the {split} split")
        print(sample["prompt"])
        print(f"--- continuation {index}")
        print(sample["continuation"])
