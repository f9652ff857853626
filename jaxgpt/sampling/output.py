"""Generated tokens as text, and as the JSON objects that `jaxgpt.sample` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxgpt.data.tokenizers import Tokenizer
    from jaxgpt.sampling.state import Callback, SamplerOutput


@dataclasses.dataclass(frozen=True)
class Sample:
    """A generated text, what was given included.

    Attributes:
      text: None if the run has no tokenizer.
      tokens: int32 [T].
      log_prob: log-probability of the generated tokens in nats, each given those
        decoded before it; of the model itself, at temperature 1 and without top_k.
      num_forward_passes: of the model, without the one over the prompt.
      num_generated: tokens that were not given.
      tokens_processed: tokens that these passes computed.
    """

    text: str | None
    tokens: np.ndarray
    log_prob: float
    num_forward_passes: int
    num_generated: int
    tokens_processed: int

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `jaxgpt.sample --json=-` prints."""
        calls = self.num_forward_passes
        return {
            "text": self.text,
            "tokens": self.tokens.tolist(),
            "model_calls": calls,
            "accepted_per_call": self.num_generated / calls if calls else 0.0,
            "token_evaluations": self.tokens_processed,
            "log_probability": self.log_prob,
        }


def to_text(tokens: np.ndarray, tokenizer: Tokenizer | None) -> str:
    """Returns the text of tokens [T]; without a tokenizer, their numbers."""
    return tokenizer.decode(tokens) if tokenizer else str(tokens.tolist())


def _continuation(tokens: np.ndarray, tokenizer: Tokenizer | None) -> str:
    """Returns the text of tokens [T] that continue others."""
    return tokenizer.decode_rest(tokens) if tokenizer else str(tokens.tolist())


def pieces(
    tokens_T: np.ndarray, decoded_T: np.ndarray, tokenizer: Tokenizer | None
) -> Iterator[tuple[int, int, str]]:
    """Yields (first token, one past the last, text) of what is decoded of a text.

    Each text has as few tokens as make up whole characters: a token may be a byte, and
    a character up to four of them.
    """
    start = 0
    for t, token in enumerate(tokens_T):
        if not decoded_T[t]:
            start = t + 1
            continue
        if tokenizer is None:
            text = f"{token} "
        else:
            decode = tokenizer.decode_rest if start else tokenizer.decode
            text = decode(tokens_T[start : t + 1])
        more = t + 1 - start < 4 and decoded_T[t + 1 : t + 2].any()
        if text.endswith("\ufffd") and more:
            continue
        yield start, t + 1, text
        start = t + 1


def until(stop: str, given_B: Sequence[int], tokenizer: Tokenizer | None) -> Callback:
    """Returns a callback that ends sampling once every text contains stop.

    Args:
      stop: the text to find.
      given_B: tokens of each text that are given, and not searched; further texts of
        the batch are ignored.
    """

    def unfinished(output: SamplerOutput) -> bool:
        # Left to right, decoded tokens end where the first gap begins.
        ends = [
            int(row.argmin()) if not row.all() else len(row)
            for row in output.decoded_BT
        ]
        rows = zip(output.tokens_BT, given_B, ends, strict=False)
        return not all(
            stop in _continuation(row[given:end], tokenizer) for row, given, end in rows
        )

    return unfinished


def length_with_stop(
    row: np.ndarray, given: int, stop: str, tokenizer: Tokenizer | None
) -> int:
    """Returns how many tokens to show: those up to the first stop after the prompt."""
    if not stop or stop not in _continuation(row[given:], tokenizer):
        return len(row)
    for end in range(given + 1, len(row)):
        if stop in _continuation(row[given:end], tokenizer):
            return end
    return len(row)


def read_output(
    output: SamplerOutput,
    prompt_mask: np.ndarray | Sequence[np.ndarray],
    tokenizer: Tokenizer | None,
    stop: str = "",
    end_of_gap: int = -1,
) -> list[Sample]:
    """Returns the generated texts, cut after stop.

    Args:
      output: of N texts.
      prompt_mask: what is given, [T], [N, T], or N of [T] where lengths differ.
      stop: ends a text.
      end_of_gap: a token to leave out of the texts.
    """
    samples = []
    if isinstance(prompt_mask, np.ndarray):
        prompt_mask = [*np.broadcast_to(prompt_mask, output.tokens_BT.shape)]
    for row, prompt_mask_T in enumerate(prompt_mask):
        T, given = len(prompt_mask_T), int(prompt_mask_T.sum())
        tokens = output.tokens_BT[row, :T]
        end = length_with_stop(tokens, given, stop, tokenizer)
        generated = (output.decoded_BT[row, :T] & ~prompt_mask_T)[:end]
        text = tokens[:end][tokens[:end] != end_of_gap]
        samples.append(
            Sample(
                text=tokenizer.decode(text) if tokenizer else None,
                tokens=text,
                log_prob=float(output.log_p_BT[row, :end].sum()),
                num_forward_passes=int(output.num_forward_passes_B[row]),
                num_generated=int(generated.sum()),
                tokens_processed=int(output.tokens_processed_B[row]),
            )
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
