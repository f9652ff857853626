"""SentencePiece: a vocabulary of pieces of words, trained on the text or given."""

from __future__ import annotations

import base64
import binascii
import io
import itertools
import pathlib
import re
from collections.abc import Iterable

import numpy as np

from jaxgpt.errors import UserError

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


def read(path: pathlib.Path, vocab_size: int) -> SentencePieceTokenizer:
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


def train(
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
