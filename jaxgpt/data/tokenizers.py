"""Text to token ids and back; a tokenizer is saved as JSON inside the run."""

from __future__ import annotations

import base64
import binascii
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

from jaxgpt.data.config import TOKENIZERS
from jaxgpt.errors import UserError

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
            return SentencePieceTokenizer.from_base64(model)
    raise UserError(f"a tokenizer is of kind {', '.join(TOKENIZERS)}, with its data")


def load_tokenizer(path: pathlib.Path) -> Tokenizer:
    """Reads a tokenizer file; raises UserError naming it where it is damaged."""
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"tokenizer file '{path}' cannot be used: {error}") from None


def save_tokenizer(tokenizer: Tokenizer, path: pathlib.Path) -> None:
    """Writes a tokenizer file, atomically."""
    temporary = path.with_suffix(".tmp")
    text = json.dumps(tokenizer.to_json(), ensure_ascii=False) + "\n"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


WORDS = re.compile(r"[ \n]+[^ \n]*|[^ \n]+")

# Longer lines would be left out of training without a word.
LONGEST_LINE = 1 << 24


class SentencePieceTokenizer:
    """A SentencePiece model, saved with the run whole."""

    def __init__(self, model: bytes):
        """Raises ValueError where these bytes are no model."""
        import sentencepiece

        if not model:
            raise ValueError("it is empty")
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"no SentencePiece model ({error})") from None
        self.vocab_size = self._processor.get_piece_size()

    def encode(self, text: str) -> np.ndarray:
        """Returns ids [T]; raises UserError at text that has no piece.

        Word by word: no piece spans two, and the sums by which SentencePiece finds the
        best pieces are float32, which a long text would round away.
        """
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
        """Returns the text of ids; ids beyond the vocabulary have none."""
        known = [int(i) for i in ids if i < self.vocab_size]
        return self._processor.decode(known)

    def to_json(self) -> dict:
        """Returns the kind and the model, in base64."""
        model = base64.b64encode(self.model).decode("ascii")
        return {"kind": "sentencepiece", "model": model}

    @classmethod
    def from_base64(cls, model: str) -> SentencePieceTokenizer:
        """Returns the tokenizer of `to_json`'s model; UserError where it is none."""
        try:
            return cls(base64.b64decode(model, validate=True))
        except (binascii.Error, ValueError) as error:
            raise UserError(f"its SentencePiece model is damaged: {error}") from None


def read_sentencepiece(path: pathlib.Path, vocab_size: int) -> SentencePieceTokenizer:
    """Reads a .model file.

    Raises:
      UserError: where it is none, or has not vocab_size tokens (0 takes any number).
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
    """Trains a model that gives every text of these characters back unchanged.

    Args:
      lines: of the text, without their ends; a newline is a token of its own.
      characters: all that occur.
      vocab_size: tokens, the unknown one among them.
      kind: "unigram" or "bpe".

    Raises:
      UserError: where they are too few for the characters, or too many for the text.
    """
    import sentencepiece

    if vocab_size <= len(characters):
        raise UserError(
            f"data.vocab_size {vocab_size} is too small for a text of "
            f"{len(characters)} different characters: set it higher, like 512"
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
            num_threads=1,  # The same text makes the same model.
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split()).rpartition("] ")[2]
        raise UserError(
            f"no SentencePiece model of data.vocab_size={vocab_size} tokens can be "
            f"trained on this text: {reason}"
        ) from None
    return SentencePieceTokenizer(model.getvalue())
