"""Text to token ids and back; a tokenizer is saved as JSON inside the run."""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from typing import Protocol

import numpy as np

from jaxgpt.errors import UserError
from jaxgpt.fields import TOKENIZERS

MERGES = pathlib.Path(__file__).parents[2] / "data" / "gpt2_merges.bpe"
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
# The pattern of GPT-2's tokenizer, as published with tiktoken.
GPT2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"
    r"|\s++$|\s+(?!\S)|\s"
)
END_OF_TEXT = 50256


class Tokenizer(Protocol):
    """What every tokenizer does; ids are int32 arrays [T]."""

    vocab_size: int

    def encode(self, text: str) -> np.ndarray:
        """Returns token ids; raises UserError for text outside the vocabulary."""

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of token ids."""

    def to_json(self) -> dict:
        """Returns what `from_json` needs."""


class CharTokenizer:
    """One token per character, ids in order of code points, as nanoGPT's."""

    def __init__(self, characters: str):
        self.characters = characters
        self.vocab_size = len(characters)
        points = np.frombuffer(characters.encode("utf-32-le"), np.uint32)
        self._ids = np.full(int(points.max(initial=0)) + 2, -1, np.int32)
        self._ids[points] = np.arange(len(points))

    def encode(self, text: str) -> np.ndarray:
        """Returns ids [len(text)]; raises UserError at the first unknown character."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = self._ids[np.minimum(points, len(self._ids) - 1)]
        if (ids < 0).any():
            at = int((ids < 0).argmax())
            raise UserError(
                f"character {text[at]!r} (at {at}) is not in the vocabulary of "
                f"{self.vocab_size} characters: leave it out"
            )
        return ids

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of ids."""
        return "".join(self.characters[i] for i in ids)

    def to_json(self) -> dict:
        """Returns the kind and the characters."""
        return {"kind": "char", "characters": self.characters}


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding, built from the shipped merges without the network."""

    vocab_size = 50257

    def __init__(self) -> None:
        self._encoding = _gpt2_encoding()

    def encode(self, text: str) -> np.ndarray:
        """Returns ids [T]; special tokens in the text are read as plain text."""
        return np.array(self._encoding.encode_ordinary(text), np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of ids; bytes that are no UTF-8 become U+FFFD.

        Ids beyond the vocabulary, of models that pad theirs, have no text.
        """
        return self._encoding.decode([int(i) for i in ids if i < self.vocab_size])

    def to_json(self) -> dict:
        """Returns the kind: the merges are part of the package."""
        return {"kind": "gpt2"}


@functools.cache
def _gpt2_encoding():
    import tiktoken

    try:
        merges = MERGES.read_bytes()
    except OSError:
        raise UserError(
            f"GPT-2's merges are missing: put vocab.bpe at '{MERGES}'"
        ) from None
    if hashlib.sha256(merges).hexdigest() != MERGES_SHA256:
        raise UserError(f"'{MERGES}' is not GPT-2's vocab.bpe: its sha256 differs")
    return tiktoken.Encoding(
        "gpt2",
        pat_str=GPT2_PATTERN,
        mergeable_ranks=_ranks(merges.decode()),
        special_tokens={"<|endoftext|>": END_OF_TEXT},
        explicit_n_vocab=GPT2Tokenizer.vocab_size,
    )


def _ranks(merges: str) -> dict[bytes, int]:
    """Reads {token bytes: id} from merges, which name bytes by printable letters."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    letters = {chr(b): b for b in printable}
    letters |= {chr(256 + i): b for i, b in enumerate(others)}
    ranks = {bytes([b]): i for i, b in enumerate(printable + others)}
    for line in merges.splitlines()[1:]:
        pair = line.replace(" ", "")
        if pair:
            ranks[bytes(letters[letter] for letter in pair)] = len(ranks)
    return ranks


def from_json(saved: dict) -> Tokenizer:
    """Builds a tokenizer from `to_json`'s value; raises UserError for another kind."""
    match saved:
        case {"kind": "char", "characters": str(characters)} if characters:
            return CharTokenizer(characters)
        case {"kind": "gpt2"}:
            return GPT2Tokenizer()
        case {"kind": "sentencepiece", "model": str(model)}:
            from jaxgpt.data import sentencepiece

            return sentencepiece.SentencePieceTokenizer.from_base64(model)
    raise UserError(f"a tokenizer is of kind {', '.join(TOKENIZERS)}, with its data")


def load(path: pathlib.Path) -> Tokenizer:
    """Reads a tokenizer file; raises UserError naming it where it is damaged."""
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"tokenizer file '{path}' cannot be used: {error}") from None


def save(tokenizer: Tokenizer, path: pathlib.Path) -> None:
    """Writes a tokenizer file, atomically."""
    temporary = path.with_suffix(".tmp")
    text = json.dumps(tokenizer.to_json(), ensure_ascii=False) + "\n"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
