"""Texts longer than the block: gaps are filled through windows that move over the text.

One gap after another, each in its own window with as much known text as fits on both
sides: what was given, and what earlier windows have filled. Other gaps in the window
stay open: they are not filled there, and the model does not see them.

A gap longer than half a block is filled in pieces of that length, left to right, so
that each has the text before it in view; a gap at the beginning of the text, right to
left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxgpt.sampling.decoding import SampleRequest
from jaxgpt.sampling.state import SamplerOutput


class Piece(NamedTuple):
    """What a window fills: the missing ones of the positions first .. end.

    The window begins at `start`.
    """

    start: int
    first: int
    end: int


def plan(known_T: np.ndarray, block: int) -> list[Piece]:
    """Returns the pieces in the order in which they are filled.

    A text that fits the block is one piece, whatever gaps it has.

    Args:
      known_T: true where a token is given.
    """
    known_T, T = known_T.copy(), len(known_T)
    if block >= T:
        return [Piece(0, 0, T)]
    pieces, most = [], max(1, block // 2)
    while not known_T.all():
        first = int(known_T.argmin())
        after = known_T[first:]
        end = first + int(after.argmax()) if after.any() else T
        if first == 0 and end < T:
            first = max(0, end - most)
        end = min(end, first + most)
        pieces.append(Piece(_best_start(known_T, first, end, block), first, end))
        known_T[first:end] = True
    return pieces


def _best_start(known_T: np.ndarray, first: int, end: int, block: int) -> int:
    """Returns where the window of a piece begins.

    It maximises (1 + known tokens before) (1 + known tokens behind): many of them, and
    as many on either side unless one has few.
    """
    starts = np.arange(max(0, end - block), min(first, len(known_T) - block) + 1)
    count = np.concatenate([[0], np.cumsum(known_T)])
    before = count[first] - count[starts]
    behind = count[starts + block] - count[end]
    return int(starts[((1 + before) * (1 + behind)).argmax()])


def fill(
    fill_window: Callable[[SampleRequest], SamplerOutput],
    block: int,
    request: SampleRequest,
) -> SamplerOutput:
    """Fills texts of any length through windows of a block.

    Args:
      block: tokens of a window, less than T.
      request: the texts. Its draws are those of the first window; later ones have
        others, by their number.
    """
    known_BT, length_B = request.prompt_mask_BT, request.length_B
    B, T = known_BT.shape
    inside_BT = np.arange(T) < length_B[:, None]
    plans = [plan(known_BT[b, : length_B[b]], block) for b in range(B)]
    nothing_B = np.zeros(B, np.int32)
    done = SamplerOutput(
        tokens_BT=np.where(known_BT, request.tokens_BT, 0).astype(np.int32),
        decoded_BT=known_BT & inside_BT,
        log_p_BT=np.zeros((B, T), np.float32),
        decode_step_BT=np.zeros((B, T), np.int32),
        rank_BT=np.where(known_BT, np.cumsum(known_BT, 1) - 1, 0).astype(np.int32),
        num_forward_passes_B=nothing_B,
        tokens_processed_B=nothing_B,
    )
    for number in range(max(map(len, plans))):
        # Rows have different numbers of pieces: one that is done gets an empty piece.
        pieces = [p[number] if number < len(p) else Piece(0, 0, 0) for p in plans]
        start_B, first_B, end_B = np.array(pieces).T
        at_BW = start_B[:, None] + np.arange(block)
        window = lambda array_BT, at_BW=at_BW: np.take_along_axis(array_BT, at_BW, 1)
        decoded_BW = window(done.decoded_BT)
        wanted_BW = (at_BW >= first_B[:, None]) & (at_BW < end_B[:, None])
        stopped = False

        def joined(part, before=done, at_BW=at_BW, given_BW=decoded_BW):
            return _joined(before, part, at_BW, part.decoded_BT & ~given_BW)

        def show(part, joined=joined):
            nonlocal stopped
            assert request.callback
            stopped = not request.callback(joined(part))
            return not stopped

        part = fill_window(
            request.replace(
                tokens_BT=window(done.tokens_BT),
                prompt_mask_BT=decoded_BW,
                open_BT=~decoded_BW & ~wanted_BW,
                length_B=np.minimum(length_B, block),
                draws=request.draws.fold_in(number) if number else request.draws,
                callback=show if request.callback else None,
            )
        )
        done = joined(part)
        if stopped:
            break
    return done


def _joined(
    before: SamplerOutput, part: SamplerOutput, at_BW: np.ndarray, new_BW: np.ndarray
) -> SamplerOutput:
    """Returns the texts with what a window has decoded.

    Args:
      at_BW: its positions in the texts.
      new_BW: true for what it has decoded.
    """
    b, w = np.nonzero(new_BW)
    t = at_BW[b, w]
    had_B = before.decoded_BT.sum(1) - (part.decoded_BT & ~new_BW).sum(1)

    def put(name: str, offset_B: np.ndarray | None = None) -> np.ndarray:
        array_BT = getattr(before, name).copy()
        new = getattr(part, name)[b, w]
        array_BT[b, t] = new if offset_B is None else new + offset_B[b]
        return array_BT

    decoded_BT = before.decoded_BT.copy()
    decoded_BT[b, t] = True
    passes_B = before.num_forward_passes_B
    return dataclasses.replace(
        before,
        tokens_BT=put("tokens_BT"),
        decoded_BT=decoded_BT,
        log_p_BT=put("log_p_BT"),
        decode_step_BT=put("decode_step_BT", passes_B),
        rank_BT=put("rank_BT", had_B),
        num_forward_passes_B=passes_B + part.num_forward_passes_B,
        tokens_processed_B=before.tokens_processed_B + part.tokens_processed_B,
    )
