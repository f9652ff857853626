"""Scores of an evaluation: mean losses, loss by text length, infilling."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.data.arrays import batched
from jaxgpt.errors import UserError, require
from jaxgpt.model import rng
from jaxgpt.sampling.state import Draws, SamplingParams
from jaxgpt.systems.base import System

ROWS = 64  # Texts that are scored or filled at a time.


def mean_losses(nll: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns {"loss" + suffix: mean} of `System.eval_nll`."""
    return {f"loss{suffix}": float(array.mean()) for suffix, array in nll.items()}


def parse_lengths(text: str, block: int) -> list[int]:
    """Reads lengths in tokens, or as multiples of the block: "256,512" or "1x,2x".

    Raises:
      UserError: for anything else.
    """
    lengths = []
    for word in text.split(","):
        number = word.strip().removesuffix("x")
        digits = number.isascii() and number.isdigit() and len(number) < 8
        rule = "token counts or multiples of the block, like 256,512 or 1x,2x"
        fits = digits and 1 <= int(number) < 1 << 20
        require(fits, "--eval_lengths", rule, text)
        lengths.append(int(number) * (block if word.strip().endswith("x") else 1))
    return sorted(set(lengths))


def losses_by_length(
    system: System, params: dict, data: Any, split: str, lengths: list[int]
) -> dict[str, float]:
    """Returns {length: mean nats per token} over the same tokens at every length.

    A split is cut into windows of the longest length, and those into pieces of each:
    the shorter a piece, the less its tokens have before them, and nothing else differs
    (except for the end of a window, if a length does not divide the longest).

    Raises:
      UserError: if the model cannot read so far, or the split is shorter.
    """
    if system.extra_tokens != 1:
        raise UserError(
            "--eval_lengths is for causal models, which read past their block"
        )
    windows_NT = data.eval_windows(split, max(lengths) + 1)
    score = jax.jit(system.nll)
    block, rows = system.model_config.block_size, system.config.batch_size
    found = {}
    for length in lengths:
        starts = range(0, max(lengths) - length + 1, length)
        pieces = [windows_NT[:, start : start + length + 1] for start in starts]
        pieces_NT = np.concatenate(pieces)
        # As many tokens at a time as in training, so that they fit into memory.
        size = min(max(1, rows * block // length), len(pieces_NT))
        total = 0.0
        for batch, count in batched({"tokens": pieces_NT}, size):
            total += np.asarray(score(params, batch), float)[:count].sum()
        found[str(length)] = total / (len(pieces_NT) * length)
    return found


def infill_spans(N: int, T: int, ratio: float, seed: int) -> np.ndarray:
    """Returns where tokens are missing [N, T]: one span of ratio T each.

    The first token is always given.
    """
    length = min(max(1, round(ratio * T)), T - 1)
    key = rng.at(seed, "eval_order", round(1000 * ratio) + 1)
    start_N = np.asarray(jax.random.randint(key, (N,), 1, T - length + 1))
    index_T = np.arange(T)
    return (index_T >= start_N[:, None]) & (index_T < start_N[:, None] + length)


def span_nll(
    system: System,
    params: dict,
    tokens_NT: np.ndarray,
    missing_NT: np.ndarray,
    order_NT: np.ndarray,
) -> np.ndarray:
    """Returns the nats [N] of each text's missing tokens, read in an order."""
    score = jax.jit(lambda tokens, order: system.score(params, tokens, order)[1])
    wanted_NT = np.take_along_axis(missing_NT, order_NT, 1)
    arrays = {"tokens": tokens_NT, "order": order_NT}
    parts = [
        np.asarray(score(**batch), np.float64)[:count]
        for batch, count in batched(arrays, min(ROWS, len(tokens_NT)))
    ]
    nll_NT = np.concatenate(parts)
    # The first token read may have no likelihood, and is never missing.
    return (nll_NT * wanted_NT[:, -nll_NT.shape[1] :]).sum(1)


def fill(
    system: System,
    params: dict,
    tokens_NT: np.ndarray,
    prompt_mask_NT: np.ndarray,
    key: jax.Array,
    sampling: SamplingParams,
) -> np.ndarray:
    """Returns texts [N, T] with what is not of the prompt filled."""
    parts = []
    for at in range(0, len(tokens_NT), ROWS):
        rows = np.arange(at, min(at + ROWS, len(tokens_NT)), dtype=np.int32)
        prompt_mask_BT = prompt_mask_NT[rows]
        blank_BT = np.where(prompt_mask_BT, tokens_NT[rows], 0).astype(np.int32)
        draws = Draws(jnp.broadcast_to(key, len(rows)), rows)
        filled = system.sample(params, blank_BT, prompt_mask_BT, draws, sampling)
        parts.append(filled.tokens_BT)
    return np.concatenate(parts)


def score_infilling(
    system: System, params: dict, tokens_NT: np.ndarray, ratio: float, seed: int
) -> dict[str, float]:
    """Returns how well spans of a share of each text are filled.

    Returns:
      nll_prefix, given the text before the span, and for a model that reads in any
      order nll, given both sides: nats per missing token. match: share of the missing
      tokens that greedy filling gets right, given both sides if it can use them;
      match_span: share of the spans it gets right as a whole.
    """
    N, T = tokens_NT.shape
    missing_NT = infill_spans(N, T, ratio, seed)
    straight_NT = np.broadcast_to(np.arange(T, dtype=np.int32), (N, T))
    count = missing_NT.sum()
    prefix_N = span_nll(system, params, tokens_NT, missing_NT, straight_NT)
    found = {"nll_prefix": prefix_N.sum() / count}
    any_order = system.model_config.any_order
    if any_order:
        # The given tokens left to right, then the span left to right.
        order_NT = np.argsort(missing_NT, 1, kind="stable").astype(np.int32)
        nll_N = span_nll(system, params, tokens_NT, missing_NT, order_NT)
        found["nll"] = nll_N.sum() / count
        prompt_mask_NT = ~missing_NT
    else:
        prompt_mask_NT = np.cumsum(missing_NT, 1) == 0
    sampling = SamplingParams(order="left-to-right", temperature=0.0)
    key = jax.random.key(0)
    filled_NT = fill(system, params, tokens_NT, prompt_mask_NT, key, sampling)
    right_NT = (filled_NT == tokens_NT) | ~missing_NT
    return found | {
        "match": float(right_NT[missing_NT].mean()),
        "match_span": float(right_NT.all(1).mean()),
    }
