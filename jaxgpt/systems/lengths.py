"""How a causal model predicts texts longer than those it was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxgpt.errors import UserError

if TYPE_CHECKING:
    from jaxgpt.systems import System


def parse(text: str, block: int) -> list[int]:
    """Reads lengths in tokens, or as multiples of the block: "256,512" or "1x,2x".

    Raises:
      UserError: for anything else.
    """
    lengths = []
    for word in text.split(","):
        number = word.strip().removesuffix("x")
        if not (number.isascii() and number.isdigit() and 1 <= int(number) < 1 << 20):
            raise UserError(
                f"--eval_lengths are token counts or multiples of the block, like "
                f"256,512 or 1x,2x: not '{text}'"
            )
        lengths.append(int(number) * (block if word.strip().endswith("x") else 1))
    return sorted(set(lengths))


def losses(
    system: System, params: dict, data: Any, split: str, lengths: list[int]
) -> dict[str, float]:
    """Returns {length: mean nats per token} over the same tokens at every length.

    A split is cut into windows of the longest length, and those into pieces of each:
    the shorter a piece, the less its tokens have before them, and nothing else differs
    (but for the end of a window, where a length does not divide the longest).

    Args:
      system: a causal one.
      params: of its model.
      data: as `System.open_data`.
      split: of the data.
      lengths: in tokens.

    Raises:
      UserError: where the model cannot read so far, or the split is shorter.
    """
    if system.extra_tokens != 1:
        raise UserError("--eval_lengths are for causal models, which read on and on")
    windows_NT = data.fixed(split, max(lengths) + 1)
    score = jax.jit(system.nll)
    block, rows = system.model_config.block_size, system.config.batch_size
    found = {}
    for length in lengths:
        starts = range(0, max(lengths) - length + 1, length)
        pieces = [windows_NT[:, start : start + length + 1] for start in starts]
        pieces_NT = np.concatenate(pieces)
        # As many tokens at a time as in training, so that memory suffices.
        count = min(max(1, rows * block // length), len(pieces_NT))
        total = 0.0
        for first in range(0, len(pieces_NT), count):
            index = np.arange(first, first + count) % len(pieces_NT)
            nll_BT = np.asarray(score(params, {"tokens": pieces_NT[index]}), float)
            total += nll_BT[: len(pieces_NT) - first].sum()
        found[str(length)] = total / (len(pieces_NT) * length)
    return found
