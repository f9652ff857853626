"""What a text begins with, or is written around: prompts and templates."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

import numpy as np

from jaxgpt.data import tokenizer as tok
from jaxgpt.errors import UserError

if TYPE_CHECKING:
    from jaxgpt.run import Run

# Of texts that go on past the block, which a causal model can.
LONGEST = 1 << 16
GAP = re.compile(r"<missing:(\d+)>")


def known_text(run: Run, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens [T], known [T]): what is given and where it stands.

    Raises:
      UserError: where it does not fit the block, or a character is unknown.
    """
    block = run.system.model_config.block_size
    if args.template is not None:
        tokens, known = _read_template(run, args.template, block)
    else:
        prompt = _prompt_ids(run, args)
        room = run.system.capacity(len(prompt)) - len(prompt)
        new = room if args.max_new_tokens is None else args.max_new_tokens
        if room < 0:
            raise UserError(
                f"the prompt has {len(prompt)} tokens: {block} fit the model"
            )
        total = len(prompt) + new
        most = longest(run)
        if total > most:
            raise UserError(
                f"prompt and --max_new_tokens={new} make {total} tokens: "
                f"{most} fit the model"
            )
        tokens = np.concatenate([prompt, np.zeros(new, np.int32)])
        known = np.arange(total) < len(prompt)
    if not len(tokens):
        raise UserError("nothing is given and nothing asked for: raise the length")
    return tokens, known


def longest(run: Run) -> int:
    """Returns how many tokens a text may have."""
    if run.system.goes_past_block:
        return LONGEST
    return run.system.model_config.block_size


def _read_template(
    run: Run, template: str, block: int
) -> tuple[np.ndarray, np.ndarray]:
    if not template:
        raise UserError("--template is empty: write gaps as <missing:12>")
    tokens, known, total = [np.zeros(0, np.int32)], [np.zeros(0, bool)], 0
    for index, piece in enumerate(GAP.split(template)):
        gap = index % 2 == 1
        if gap and len(piece) > 12:
            raise UserError(f"a gap of {len(piece)} digits: {block} tokens fit")
        ids = None if gap else _encode(run, piece)
        length = int(piece) if ids is None else len(ids)
        total += length
        if total <= block:
            tokens.append(np.zeros(length, np.int32) if ids is None else ids)
            known.append(np.full(length, not gap))
    if total > block:
        raise UserError(f"the template makes {total} tokens: {block} fit the model")
    return np.concatenate(tokens), np.concatenate(known)


def _prompt_ids(run: Run, args: argparse.Namespace) -> np.ndarray:
    if args.prompt_ids is None:
        return _encode(run, args.prompt or "")
    try:
        ids = np.array([int(i) for i in args.prompt_ids.split(",") if i], np.int32)
    except (ValueError, OverflowError):
        raise UserError(
            f"--prompt_ids are like 3,1,4: not '{args.prompt_ids}'"
        ) from None
    size = run.system.model_config.vocab_size
    if ((ids < 0) | (ids >= size)).any():
        raise UserError(f"--prompt_ids are 0 .. {size - 1}: not '{args.prompt_ids}'")
    return ids


def _encode(run: Run, text: str) -> np.ndarray:
    if run.tokenizer is None and text:
        raise UserError("this run has no tokenizer: give --prompt_ids")
    return run.tokenizer.encode(text) if run.tokenizer else np.zeros(0, np.int32)


def start_token(run: Run) -> int:
    """Returns the token that texts of this vocabulary best begin after."""
    if isinstance(run.tokenizer, tok.GPT2Tokenizer):
        return tok.END_OF_TEXT
    try:
        return int(_encode(run, "\n")[0])
    except UserError:  # There is no tokenizer, or it knows no newline.
        return 0
