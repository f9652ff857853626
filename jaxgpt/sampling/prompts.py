"""Prompts and templates: texts with tokens that are given and tokens to generate.

Everywhere tokens [T] go with known [T]: true where a token is given, false where it
is to be generated.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from jaxgpt.data import reading
from jaxgpt.data.tokenizers import Tokenizer, UnknownCharacterError
from jaxgpt.errors import UserError, log, require

GAP = re.compile(r"<missing:((?:1-)?\d+)>")
MARKED = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
# What was meant as a gap: <missing>, <missing:-3>, <MISSING:3>, <missing: 3, ...
NEARLY_GAP = re.compile(r"<\s*missing\s*(?:[:=][^<>]*>?|[-+\d\s]*>)", re.IGNORECASE)


def normalize(text: str, how: str) -> str:
    """Returns a text normalized as `data.normalize` says; logs if that changed it."""
    changed = reading.normalized(text, how)
    if changed != text:
        log(f"note: the text is changed as the run's data was (data.normalize={how})")
    return changed


def encode(
    text: str,
    tokenizer: Tokenizer | None,
    special_tokens: bool = False,
    at: int = 0,
) -> np.ndarray:
    """Returns ids [T] of a text, or of the part of a text that begins at `at`.

    Raises:
      UserError: if there is a text but no tokenizer, or a character without a token.
    """
    if tokenizer is None:
        if text:
            raise UserError("this run has no tokenizer: give token ids (--prompt_ids)")
        return np.zeros(0, np.int32)
    encode = tokenizer.encode_rest if at else tokenizer.encode
    try:
        _check_unicode(text)
        return encode(text, special_tokens)
    except UnknownCharacterError as error:
        raise error.moved(at) from None


def _check_unicode(text: str) -> None:
    """Raises UserError for bytes that are not UTF-8, and for half characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        what = "half of a surrogate pair: write the whole character"
        if 0xDC80 <= half <= 0xDCFF:  # How Python holds such a byte.
            what = f"the byte 0x{half & 0xFF:02x}: write the text in UTF-8"
        reason = f"is not a character but {what}"
        raise UnknownCharacterError(text[error.start], error.start, reason) from None


def _integer(word: str) -> int:
    # Python also reads 1_000 and the digits of other scripts.
    if not re.fullmatch(r"\s*-?[0-9]{1,12}\s*", word):
        raise ValueError
    return int(word)


def parse_ids(text: str, vocab_size: int) -> np.ndarray:
    """Reads token ids, "3,1,4", as [T]; UserError if they are not of this model."""
    try:
        ids = np.array([_integer(word) for word in text.split(",")], np.int32)
    except (ValueError, OverflowError):
        shown = text if len(text) <= 200 else f"{text[:200]}..."
        raise UserError(f"--prompt_ids must be like 3,1,4, got {shown!r}") from None
    return read_ids(ids, vocab_size, "--prompt_ids", 1, text)


def read_ids(
    given: Any,
    vocab_size: int,
    name: str,
    ndim: int = 0,
    shown: Any = None,
    least: int = 0,
) -> np.ndarray:
    """Returns token ids, a list or an array, as int32 [T] or [N, T].

    Args:
      name: in the message.
      ndim: 1 or 2; 0 allows both.
      shown: in the message; by default the ids.
      least: the lowest that is allowed.

    Raises:
      UserError: if they are not integers, or not in the vocabulary.
    """
    try:
        ids = np.asarray(given) if len(given) else np.zeros(0, np.int32)
    except (TypeError, ValueError):  # No sequence, or rows of different lengths.
        ids = np.array(None)
    fits = ids.ndim in ((ndim,) if ndim else (1, 2)) and ids.dtype.kind in "iu"
    rule = "token ids [T]" if ndim == 1 else "token ids, in rows of one length"
    require(fits, name, rule, shown or given)
    known = ((ids >= least) & (ids < vocab_size)).all()
    require(bool(known), name, f"in [{least}, {vocab_size - 1}]", shown or ids.tolist())
    return ids.astype(np.int32)


def read_template(
    template: str,
    tokenizer: Tokenizer | None,
    longest: int,
    special_tokens: bool = False,
    max_gap: int = 0,
    end_of_gap: int = -1,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens, known) of a text with gaps, "a <missing:12> b <missing:1-8>".

    Args:
      longest: tokens that it may have, with its gaps.
      special_tokens: as in `encode`.
      max_gap: tokens of the longest gap of unknown length; 0 allows none.
      end_of_gap: the token that is given behind such a gap.

    Raises:
      UserError: if it is empty or too long, or has a gap without a length or of one
        that the model cannot fill.
    """
    if not template:
        raise UserError("--template is empty: write gaps as <missing:12>")
    for nearly in NEARLY_GAP.finditer(template):
        if not GAP.fullmatch(nearly[0]):
            raise UserError(
                f"'<' (at {nearly.start()}) begins {nearly[0]!r}, which is not a gap: "
                "write one of 12 tokens as <missing:12>, one of 1 to 12 as "
                "<missing:1-12>"
            )
    tokens, prompt_mask, total = [np.zeros(0, np.int32)], [np.zeros(0, bool)], 0
    at = 0  # In the template.
    for index, piece in enumerate(GAP.split(template)):
        gap = index % 2 == 1
        if gap and len(piece) > 12:
            raise UserError(
                f"a gap has {len(piece)} digits, but only {longest} tokens fit"
            )
        ids = None if gap else encode(piece, tokenizer, special_tokens, at)
        at += len(f"<missing:{piece}>" if gap else piece)
        unknown = gap and piece.startswith("1-")
        length = int(piece.removeprefix("1-")) if ids is None else len(ids)
        if unknown:
            _check_unknown(piece, length, max_gap)
        total += length + unknown
        if total <= longest:
            tokens.append(np.zeros(length, np.int32) if ids is None else ids)
            prompt_mask.append(np.full(length, not gap))
        if unknown and total <= longest:
            tokens.append(np.array([end_of_gap], np.int32))
            prompt_mask.append(np.array([True]))
    if total > longest:
        raise UserError(
            f"the template makes {total} tokens, but only {longest} fit the model"
        )
    return np.concatenate(tokens), np.concatenate(prompt_mask)


def _check_unknown(piece: str, length: int, max_gap: int) -> None:
    """Raises UserError for a gap of 1 to `length` tokens that cannot be filled."""
    if not max_gap:
        raise UserError(
            f"<missing:{piece}> is of unknown length, which this run is not trained "
            "for: give a length, as <missing:12>, or train with sigma.max_gap"
        )
    rule = f"between 1-1 and 1-{max_gap} for this run (sigma.max_gap)"
    require(1 <= length <= max_gap, f"<missing:{piece}>", rule, piece)


def read_marked(
    text: str, tokenizer: Tokenizer | None, special_tokens: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens, known) of a text with spans to score, "a [[b]] c".

    Raises:
      UserError: if nothing is marked, or a mark has no counterpart.
    """
    pieces = MARKED.split(text)
    tokens, known = [], []
    at = 0  # In the text.
    for index, piece in enumerate(pieces):
        scored = index % 2 == 1
        lone = re.search(r"\[\[" if scored else r"\[\[|\]\]", piece)
        if lone or (scored and not piece):
            where = at + (lone.start() if lone else 0)
            raise UserError(
                f"{(lone[0] if lone else '[[]]')!r} (at {where}) marks nothing: write "
                "what is to be scored as [[text]]"
            )
        ids = encode(piece, tokenizer, special_tokens, at)
        at += len(piece) + 2
        tokens.append(ids)
        known.append(np.full(len(ids), not scored))
    if len(pieces) == 1:
        raise UserError("nothing is marked: write what is to be scored as [[text]]")
    return np.concatenate(tokens), np.concatenate(known)


def start_token(tokenizer: Tokenizer | None) -> int:
    """Returns the token that texts of this vocabulary best begin after."""
    if tokenizer is None:
        return 0
    if tokenizer.start is not None:
        return tokenizer.start
    try:
        return int(tokenizer.encode_rest("\n")[0])
    except (UserError, IndexError):  # There is no token of a newline.
        return 0
