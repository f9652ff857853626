"""Gaps of unknown length, which end with a token of their own.

A gap of up to N tokens takes N + 1 positions. What fills it is followed by end-of-gap
tokens. The last of these is given: it tells the model that the gap's length is unknown,
and how far it may reach. A gap without it has as many tokens as positions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.model import rng
from jaxgpt.sampling.state import SamplingParams
from jaxgpt.systems.base import Batch
from jaxgpt.systems.scoring import fill, span_nll
from jaxgpt.systems.sigma import orders

OPEN = 0.75  # The share of gaps with text behind them that are of unknown length.
DRAWS = 8  # Fillings of a gap, whose lengths are averaged.


def training_batch(
    key: jax.Array,
    tokens_BT: jax.Array,
    order_BT: jax.Array,
    share: float,
    most: int,
    end_of_gap: int,
) -> Batch:
    """Returns a batch in which a share of the rows are read as `orders.gaps` says.

    Most of the gaps with text behind them (`OPEN`) are of unknown length, followed by 1
    to `most` end-of-gap tokens. All numbers are as likely, so that the N of a template
    tells nothing about the length but that it is no more. The text loses as many tokens
    at its end.

    Args:
      order_BT: of the other rows.
      share: of the rows.
      most: the longest gap of unknown length.

    Returns:
      tokens, order, and the weight [B, T] of each token, in this order: 0 for
      end-of-gap tokens that are given, which tell nothing about the text.
    """
    B, T = tokens_BT.shape
    row_key, gap_key, open_key, count_key = jax.random.split(key, 4)
    given_BT = orders.read_first(gap_key, B, T)
    ends_BT = ~given_BT & jnp.pad(given_BT[:, 1:], ((0, 0), (0, 1)))
    open_BT = ends_BT & (jax.random.uniform(open_key, (B, T)) < OPEN)
    count_BT = jnp.where(open_BT, jax.random.randint(count_key, (B, T), 1, most + 1), 0)
    # Those that do not fit as a whole are left out.
    place = lambda count_BT: jnp.arange(T) + jnp.cumsum(count_BT, 1) - count_BT
    count_BT = jnp.where(place(count_BT) + count_BT < T, count_BT, 0)
    place_BT = place(count_BT)
    # The last token whose place is this position or one before it.
    find = jax.vmap(
        lambda at_T: jnp.searchsorted(at_T, jnp.arange(T), side="right") - 1
    )
    source_BT = find(place_BT)
    pick = lambda array_BT: jnp.take_along_axis(array_BT, source_BT, 1)
    behind_BT = jnp.arange(T) - pick(place_BT)
    last_BT = (behind_BT > 0) & (behind_BT == pick(count_BT))
    gaps_BT = jnp.where(behind_BT > 0, end_of_gap, pick(tokens_BT))
    given_BT = jnp.where(behind_BT > 0, last_BT, pick(given_BT))
    straight_BT = orders.left_to_right(B, T)
    gap_order_BT = orders.prompt_first(straight_BT, given_BT)
    chosen_B1 = jax.random.uniform(row_key, (B, 1)) < share
    scored_BT = jnp.take_along_axis(~last_BT, gap_order_BT, 1)
    return {
        "tokens": jnp.where(chosen_B1, gaps_BT, tokens_BT),
        "order": jnp.where(chosen_B1, gap_order_BT, order_BT),
        "weight": jnp.where(chosen_B1, scored_BT, True).astype(jnp.float32),
    }


def held_out(
    tokens_NT: np.ndarray, most: int, end_of_gap: int, seed: int
) -> dict[str, np.ndarray]:
    """Returns texts with a gap of up to `most` tokens each, and what it holds.

    Its length is uniform in 1 .. `most`; the first token and the last are given.

    Returns:
      tokens [N, T], and gap [N, T], true for its `most` positions; plain [N, T], the
      text as it is, and span [N, T], true for the tokens that the gap holds; read
      [N, T], true for those of the plain text that the other has, and length [N].
    """
    N, T = tokens_NT.shape
    draw = np.random.default_rng((seed, most))
    length_N = draw.integers(1, most + 1, N)
    # Tokens of the plain text that are left: the gap's positions need room.
    kept_N = T - most - 1 + length_N
    start_N = draw.integers(1, kept_N - length_N)
    at_T = np.arange(T)
    column = lambda array_N: array_N[:, None]
    start, length, kept = column(start_N), column(length_N), column(kept_N)
    gap_NT = (at_T >= start) & (at_T < start + most)
    source_NT = np.where(at_T < start + length, at_T, at_T - most - 1 + length)
    inside_NT = (at_T < start + length) | (at_T > start + most)
    picked_NT = np.take_along_axis(tokens_NT, np.clip(source_NT, 0, T - 1), 1)
    return {
        "tokens": np.where(inside_NT, picked_NT, end_of_gap).astype(np.int32),
        "gap": gap_NT,
        "plain": tokens_NT,
        "span": (at_T >= start) & (at_T < start + length),
        "read": at_T < kept,
        "length": length_N,
    }


def score(
    system: Any, params: Any, tokens_NT: np.ndarray, seed: int
) -> dict[str, float]:
    """Returns how well gaps of unknown length are filled, one in each text.

    Returns:
      nll: nats per missing token, those for the length included, given both sides;
      nll_known_length: of the same tokens with the same text around them where the gap
      is as long as they are; length_match: how often a filling, drawn at temperature 1,
      has the right length; length_error: by how many tokens the median length of
      `DRAWS` fillings is wrong on average; match_span: how often greedy filling has all
      tokens right.
    """
    most, end = system.max_gap, system.end_of_gap
    texts = held_out(tokens_NT, most, end, seed)
    tokens_NT, gap_NT, length_N = texts["tokens"], texts["gap"], texts["length"]
    N = len(tokens_NT)
    # The given tokens left to right, then the gap; what is left out comes last.
    read = lambda rank_NT: np.argsort(rank_NT, 1, kind="stable").astype(np.int32)
    open_N = span_nll(system, params, tokens_NT, gap_NT, read(gap_NT))
    plain_NT, span_NT = texts["plain"], texts["span"]
    order_NT = read(span_NT + 2 * ~texts["read"])
    known_N = span_nll(system, params, plain_NT, span_NT, order_NT)

    def filled(draw: int, temperature: float) -> np.ndarray:
        """Returns what fills the gaps, [N, most]."""
        sampling = SamplingParams(order="left-to-right", temperature=temperature)
        key = rng.at(seed, "sample", draw)
        filled_NT = fill(system, params, tokens_NT, ~gap_NT, key, sampling)
        return filled_NT[gap_NT].reshape(-1, most)

    drawn_KNG = np.array([filled(k, 1.0) for k in range(DRAWS)])
    found_KN = (np.cumsum(drawn_KNG == end, -1) == 0).sum(-1)
    right_NG = filled(0, 0.0) == tokens_NT[gap_NT].reshape(N, most)
    return {
        "nll": float(open_N.sum() / length_N.sum()),
        "nll_known_length": float(known_N.sum() / length_N.sum()),
        "length_match": float((found_KN == length_N).mean()),
        "length_error": float(abs(np.median(found_KN, 0) - length_N).mean()),
        "match_span": float(right_NG.all(1).mean()),
    }
