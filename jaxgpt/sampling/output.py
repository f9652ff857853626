"""Generated tokens as text, and as the JSON objects that `jaxgpt.sample` prints."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.sampling.state import Callback, SamplerOutput


def to_text(tokens: np.ndarray, tokenizer: Tokenizer | None) -> str:
    """Returns the text of tokens [T]; without a tokenizer, their numbers."""
    return tokenizer.decode(tokens) if tokenizer else str(tokens.tolist())


def _continuation(tokens: np.ndarray, tokenizer: Tokenizer | None) -> str:
    """Returns the text of tokens [T] that go on from others."""
    return tokenizer.decode_rest(tokens) if tokenizer else str(tokens.tolist())


def until(stop: str, prompt_length: int, tokenizer: Tokenizer | None) -> Callback:
    """Returns a callback that ends sampling once every text contains stop."""

    def unfinished(output: SamplerOutput) -> bool:
        # Left to right, decoded tokens end where the first gap begins.
        ends = [
            int(row.argmin()) if not row.all() else len(row)
            for row in output.decoded_BT
        ]
        rows = zip(output.tokens_BT, ends, strict=True)
        return not all(
            stop in _continuation(row[prompt_length:end], tokenizer)
            for row, end in rows
        )

    return unfinished


def _length_with_stop(
    row: np.ndarray, given: int, stop: str, tokenizer: Tokenizer | None
) -> int:
    """Returns how many tokens to keep: those up to stop, sought after the prompt."""
    if not stop or stop not in _continuation(row[given:], tokenizer):
        return len(row)
    for end in range(given + 1, len(row)):
        if stop in _continuation(row[given:end], tokenizer):
            return end
    return len(row)


def describe(
    output: SamplerOutput,
    prompt_mask: np.ndarray,
    tokenizer: Tokenizer | None,
    stop: str = "",
) -> list[dict[str, Any]]:
    """Returns a JSON object for each sample, cut after stop; known is [T] or [N, T]."""
    samples = []
    prompt_mask_BT = np.broadcast_to(prompt_mask, output.tokens_BT.shape)
    for row, tokens in enumerate(output.tokens_BT):
        prompt_mask_T, given = prompt_mask_BT[row], int(prompt_mask_BT[row].sum())
        end = _length_with_stop(tokens, given, stop, tokenizer)
        calls = int(output.num_forward_passes_B[row])
        made = int((output.decoded_BT[row] & ~prompt_mask_T).sum())
        samples.append(
            {
                "text": tokenizer.decode(tokens[:end]) if tokenizer else None,
                "tokens": tokens[:end].tolist(),
                "model_calls": calls,
                "accepted_per_call": made / calls if calls else 0.0,
                "token_evaluations": int(output.tokens_processed_B[row]),
                "log_probability": float(output.log_p_BT[row, :end].sum()),
            }
        )
    return samples


def split_continuations(
    samples: list[dict[str, Any]], prompt_length: int, tokenizer: Tokenizer | None
) -> None:
    """Adds prompt and continuation to the JSON object of each sample."""
    for sample in samples:
        given, new = np.split(np.array(sample["tokens"], int), [prompt_length])
        sample["prompt"] = tokenizer.decode(given) if tokenizer else given.tolist()
        sample["continuation"] = (
            tokenizer.decode_rest(new) if tokenizer else new.tolist()
        )
