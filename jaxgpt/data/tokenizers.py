"""Text to token ids and back; a tokenizer is saved as JSON inside the run."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import itertools
import json
import pathlib
import re
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import sentencepiece
import tiktoken

from jaxgpt.data.config import TOKENIZERS
from jaxgpt.errors import UserError, atomic_write, require

MERGES = pathlib.Path(__file__).parents[2] / "data" / "gpt2_merges.bpe"

MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"

# The pattern of GPT-2's tokenizer, as published with tiktoken.
GPT2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"
    r"|\s++$|\s+(?!\S)|\s"
)

END_OF_TEXT = 50256
WORDS = re.compile(r"[ \n]+[^ \n]*|[^ \n]+")
LONGEST_LINE = 1 << 24  # SentencePiece leaves longer ones out of training silently.


class Tokenizer(Protocol):
    """Text to int32 ids [T] and back."""

    vocab_size: int

    def encode(self, text: str) -> np.ndarray:
        """Returns token ids; raises UserError for text outside the vocabulary."""

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text; ids of a model's padded vocabulary have none."""

    def to_json(self) -> dict:
        """Returns what `from_json` reads."""


class CharTokenizer:
    """One token per character, ids in order of code points, as in nanoGPT."""

    def __init__(self, characters: str):
        self.characters = characters
        self.vocab_size = len(characters)
        points = np.frombuffer(characters.encode("utf-32-le"), np.uint32)
        self._ids = np.full(int(points.max(initial=0)) + 2, -1, np.int32)
        self._ids[points] = np.arange(len(points))

    def encode(self, text: str) -> np.ndarray:
        """Returns ids [len(text)]; UserError names the first unknown character."""
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
        """Returns their characters."""
        return "".join(self.characters[i] for i in ids)

    def to_json(self) -> dict:
        """Holds the characters."""
        return {"kind": "char", "characters": self.characters}


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding, from the merges in data/: no network is needed."""

    vocab_size = 50257

    def __init__(self) -> None:
        self._encoding = _gpt2_encoding()

    def encode(self, text: str) -> np.ndarray:
        """Returns ids [T]; special tokens in the text are plain text."""
        return np.array(self._encoding.encode_ordinary(text), np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text; bytes that are not UTF-8 become U+FFFD."""
        return self._encoding.decode([int(i) for i in ids if i < self.vocab_size])

    def to_json(self) -> dict:
        """Holds no merges: they are in the repository."""
        return {"kind": "gpt2"}


@functools.cache
def _gpt2_encoding():
    try:
        merges = MERGES.read_bytes()
    except OSError:
        raise UserError(
            f"GPT-2's merges are missing: save its vocab.bpe as '{MERGES}'"
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
    """Returns {token bytes: id} of merges, which write bytes as printable letters."""
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
    """Returns the tokenizer of `to_json`'s value; UserError for anything else."""
    match saved:
        case {"kind": "char", "characters": str(characters)} if characters:
            return CharTokenizer(characters)
        case {"kind": "gpt2"}:
            return GPT2Tokenizer()
        case {"kind": "sentencepiece", "model": str(model)}:
            try:
                return SentencePieceTokenizer(base64.b64decode(model, validate=True))
            except ValueError as error:
                raise UserError(
                    f"its SentencePiece model is damaged: {error}"
                ) from None
    raise UserError(f"it holds no tokenizer of kind {', '.join(TOKENIZERS)}")


def load_tokenizer(path: pathlib.Path) -> Tokenizer:
    """Reads a tokenizer file; UserError where it is damaged."""
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"tokenizer file '{path}' cannot be used: {error}") from None


def save_tokenizer(tokenizer: Tokenizer, path: pathlib.Path) -> None:
    """Writes a tokenizer file."""
    with atomic_write(path) as stream:
        stream.write(json.dumps(tokenizer.to_json(), ensure_ascii=False) + "\n")


class SentencePieceTokenizer:
    """A SentencePiece model."""

    def __init__(self, model: bytes):
        """Raises ValueError where these bytes are not a model."""
        if not model:
            raise ValueError("it is empty")
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model ({error})") from None
        self.vocab_size = self._processor.get_piece_size()

    def encode(self, text: str) -> np.ndarray:
        """Returns ids [T]; UserError names text that has no piece."""
        # Word by word, as no piece spans two: SentencePiece finds the best pieces by
        # sums in float32, in which a long text's last words would be rounded away.
        words = WORDS.findall(text)
        encoded = self._processor.encode(words)
        unknown = self._processor.unk_id()
        for word, ids in zip(words, encoded, strict=True):
            if unknown in ids:
                first = self._processor.encode_as_pieces(word)[ids.index(unknown)]
                raise UserError(
                    f"{first.strip('▁')[:20]!r} is not in the vocabulary of "
                    f"{self.vocab_size} SentencePiece tokens: leave it out"
                )
        return np.fromiter(itertools.chain.from_iterable(encoded), np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of the pieces."""
        return self._processor.decode([int(i) for i in ids if i < self.vocab_size])

    def to_json(self) -> dict:
        """Holds the model in base64."""
        model = base64.b64encode(self.model).decode("ascii")
        return {"kind": "sentencepiece", "model": model}


def read_sentencepiece(path: pathlib.Path, vocab_size: int) -> SentencePieceTokenizer:
    """Reads a .model file.

    Raises:
      UserError: where it is not one, or not of vocab_size tokens (0 takes any number).
    """
    try:
        tokenizer = SentencePieceTokenizer(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.sentencepiece_model '{path}' cannot be used: {error}"
        ) from None
    if vocab_size not in (0, tokenizer.vocab_size):
        raise UserError(
            f"data.sentencepiece_model '{path}' has {tokenizer.vocab_size} tokens, not "
            f"data.vocab_size={vocab_size}: set that to 0 to take the file's"
        )
    return tokenizer


def train_sentencepiece(
    lines: Iterable[str], characters: set[str], vocab_size: int, kind: str = "unigram"
) -> SentencePieceTokenizer:
    """Trains a model that decodes every text of these characters unchanged.

    Args:
      lines: of the text, without their ends; a newline is a token of its own.
      characters: all that occur.
      vocab_size: tokens, including the unknown one.
      kind: "unigram" or "bpe".

    Raises:
      UserError: for too few tokens for the characters, or too many for the text.
    """
    require(
        vocab_size > len(characters),
        "data.vocab_size",
        f"> {len(characters)}, the number of different characters",
        vocab_size,
        "set it higher, like 512",
    )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(line for line in lines if line),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=kind,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            user_defined_symbols=["\n"],
            bos_id=-1,
            eos_id=-1,
            max_sentence_length=LONGEST_LINE,
            num_threads=1,  # So that the same text makes the same model.
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split()).rpartition("] ")[2]
        raise UserError(
            f"cannot train a SentencePiece model of data.vocab_size={vocab_size} "
            f"tokens on this text: {reason}"
        ) from None
    return SentencePieceTokenizer(model.getvalue())
