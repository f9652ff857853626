"""SentencePiece models: read, trained, and kept whole by a run."""

from __future__ import annotations

import base64
import functools
import io
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import sentencepiece
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

from jaxgpt.data.tokenizers import (
    Tokenizer,
    UnknownCharacterError,
    refuse_special_tokens,
)
from jaxgpt.errors import UserError, log, one_line, require

# Longer texts are encoded in parts: SentencePiece sums scores in float32, which would
# round the last words of a long text away.
LONGEST_PART = 1 << 15
LONGEST_LINE = 1 << 22  # Characters: SentencePiece skips lines of 16 MiB.
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # How SentencePiece writes one.
# Characters that SentencePiece reserves, or drops at the end of a line: it learns
# stand-ins for them.
UNLEARNABLE = f"\0\r\x1f{SPACE}\N{LOWER FIVE EIGHTHS BLOCK}"
PRIVATE_USE = range(0xF0000, 0xFFFFE)


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int32), *parts])


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model.

    Args:
      model: a serialised ModelProto.
      stand_ins: {letter of the model: the character that it stands for}.

    Raises:
      ValueError: if these bytes are not a model.
    """

    def __init__(self, model: bytes, stand_ins: dict[str, str] | None = None):
        if not model:
            raise ValueError("it is empty")
        self.model, self.stand_ins = model, stand_ins or {}
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            # For text that continues: an appended message overrides fields of the
            # first, here normalizer_spec.add_dummy_prefix.
            self._rest = sentencepiece.SentencePieceProcessor(
                model_proto=model + b"\x1a\x02\x18\x00"
            )
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model ({error})") from None
        self.vocab_size = self._processor.get_piece_size()
        self._to_model = {ord(v): k for k, v in self.stand_ins.items()}
        self._from_model = {ord(k): v for k, v in self.stand_ins.items()}
        # Characters that would be decoded as others.
        self._reserved = ({*self.stand_ins} | {SPACE}) - {*self.stand_ins.values()}

    @property
    def adds_a_space(self) -> bool:
        """Whether texts are read with a space before them."""
        return self._processor.normalize("a") != "a"

    def encode(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """Returns SentencePiece's own ids [T]; see `Tokenizer.encode`."""
        return _joined(self.encode_pieces([text], special_tokens))

    def encode_rest(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """See `Tokenizer.encode_rest`."""
        return _joined(self.encode_pieces([text], special_tokens, begins=False))

    def encode_pieces(
        self,
        pieces: Iterable[str],
        special_tokens: bool = False,
        begins: bool = True,
    ) -> Iterator[np.ndarray]:
        """Yields the ids of a text, the same however it was cut."""
        refuse_special_tokens(special_tokens, "SentencePiece models")
        at, rest = 0, ""
        for piece in pieces:
            rest += piece
            while cut := self._end_of_part(rest):
                yield self._encode_part(rest[:cut], at, begins and not at)
                at, rest = at + cut, rest[cut:]
        if rest:
            yield self._encode_part(rest, at, begins and not at)

    @functools.cached_property
    def _neighbours(self) -> set[str]:
        """The pairs of adjacent characters in tokens: no token spans any other pair."""
        return {
            piece[i : i + 2].replace(SPACE, " ")
            for piece in map(self._processor.id_to_piece, range(self.vocab_size))
            for i in range(len(piece) - 1)
        }

    def _end_of_part(self, text: str) -> int:
        """Returns where to cut a text that is too long; 0 if it is not."""
        # Depends only on the text before the cut, so that other pieces give the same.
        for cut in range(LONGEST_PART, len(text)):
            if text[cut - 1 : cut + 1] not in self._neighbours:
                return cut
        return 0

    def _encode_part(self, text: str, at: int, begins: bool) -> np.ndarray:
        processor = self._processor if begins else self._rest
        read = text.translate(self._to_model)
        ids = processor.encode(read)
        wrong = [text.find(letter) for letter in self._reserved if letter in text]
        if self._processor.unk_id() in ids:
            # No token before it is a byte: with byte tokens nothing is unknown.
            known = processor.encode_as_pieces(read)[: ids.index(processor.unk_id())]
            wrong.append(len("".join(known)) - (begins and self.adds_a_space))
        if wrong:
            first = min(*wrong, len(text) - 1)
            vocabulary = f"the vocabulary of {self.vocab_size} SentencePiece tokens"
            remedy = "leave it out"
            if text[first] == "\n":  # As in a model trained on lines.
                remedy = "train the model with --byte_fallback"
            reason = f"is not in {vocabulary}: {remedy}"
            raise UnknownCharacterError(text[first], at + first, reason)
        return np.array(ids, np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of the pieces."""
        return self._decode(self._processor, ids)

    def decode_rest(self, ids: np.ndarray) -> str:
        """See `Tokenizer.decode_rest`."""
        return self._decode(self._rest, ids)

    def _decode(self, processor: Any, ids: np.ndarray) -> str:
        text = processor.decode([int(i) for i in ids if i < self.vocab_size])
        return text.translate(self._from_model)

    def to_json(self) -> dict:
        """Holds the model in base64."""
        model = base64.b64encode(self.model).decode("ascii")
        saved: dict[str, Any] = {"kind": "sentencepiece", "model": model}
        if self.stand_ins:
            saved["stand_ins"] = self.stand_ins
        if self.adds_a_space:
            saved["adds_a_space"] = True
        return saved


def from_json(saved: dict[str, Any]) -> SentencePieceTokenizer:
    """Returns the tokenizer of `to_json`'s value; UserError if it is damaged."""
    try:
        model = base64.b64decode(saved["model"], validate=True)
        tokenizer = SentencePieceTokenizer(model, saved.get("stand_ins"))
    except ValueError as error:
        raise UserError(f"its SentencePiece model is damaged: {error}") from None
    if tokenizer.adds_a_space and "adds_a_space" not in saved:
        log(
            "note: an old version trained this run with an extra space before every "
            "word: train it again"
        )
    return tokenizer


def _fields(message: bytes) -> dict[int, Any]:
    """Returns {number: value} of a serialised protocol buffer, with parts joined."""
    found: dict[int, Any] = {}
    for field in UnknownFieldSet(Empty.FromString(message)):
        joined = isinstance(field.data, bytes) and field.field_number in found
        before = found[field.field_number] if joined else b""
        found[field.field_number] = before + field.data if joined else field.data
    return found


def _changes(model: bytes) -> list[str]:
    """Returns why a SentencePiece model would not decode texts unchanged.

    The numbers are field numbers in sentencepiece_model.proto.
    """
    fields = _fields(model)
    trainer, normalizer, denormalizer = (_fields(fields.get(n, b"")) for n in (2, 3, 5))
    adds_a_space, removes_spaces, escapes = (normalizer.get(n, 1) for n in (3, 4, 5))
    rule = normalizer.get(1, b"").decode(errors="replace")
    suffix = trainer.get(24, 0) and adds_a_space
    reasons = {
        f"its normalization rule {rule} changes characters": normalizer.get(2),
        "it removes repeated spaces (remove_extra_whitespaces)": removes_spaces,
        "it adds a space at the end (treat_whitespace_as_suffix)": suffix,
        "it does not mark spaces (escape_whitespaces)": not escapes,
        "its denormalization rule changes characters": denormalizer.get(2),
    }
    return [reason for reason, holds in reasons.items() if holds]


def read(path: pathlib.Path, vocab_size: int = 0) -> SentencePieceTokenizer:
    """Reads a .model file.

    Raises:
      UserError: if it is not one, would change texts, or is not of vocab_size
        tokens (0 takes any number).
    """
    try:
        tokenizer = SentencePieceTokenizer(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"SentencePiece model '{path}' cannot be used: {error}"
        ) from None
    if reasons := _changes(tokenizer.model):
        raise UserError(
            f"SentencePiece model '{path}' would change the text: "
            f"{', and '.join(reasons)}: train it with "
            "--normalization_rule_name=identity --remove_extra_whitespaces=false, or "
            "leave it out to train one here"
        )
    if vocab_size not in (0, tokenizer.vocab_size):
        raise UserError(
            f"SentencePiece model '{path}' has {tokenizer.vocab_size} tokens, not "
            f"data.vocab_size={vocab_size}: set that to 0 to take the file's"
        )
    return tokenizer


def train(
    lines: Iterable[str], characters: set[str], vocab_size: int, kind: str = "unigram"
) -> SentencePieceTokenizer:
    """Trains a model that decodes every text of these characters unchanged.

    Args:
      lines: of the text, without newlines: a newline is a token.
      characters: all that occur.
      vocab_size: tokens, including the unknown one.
      kind: "unigram" or "bpe".

    Raises:
      UserError: for too few tokens for the characters, or too many for the text.
    """
    unlearnable = sorted(characters & {*UNLEARNABLE})
    free = (chr(point) for point in PRIVATE_USE if chr(point) not in characters)
    stand_ins = dict(zip(free, unlearnable, strict=False))
    to_model = {ord(character): letter for letter, character in stand_ins.items()}
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
            sentence_iterator=_sentences(lines, to_model),
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
            max_sentence_length=4 * LONGEST_LINE,
            num_threads=1,  # So that the same text makes the same model.
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = one_line(error, 1000).rpartition("] ")[2]
        raise UserError(
            f"cannot train a SentencePiece model of data.vocab_size={vocab_size} "
            f"tokens on this text: {reason}"
        ) from None
    tokenizer = SentencePieceTokenizer(model.getvalue(), stand_ins)
    every = "".join(sorted(characters))
    if tokenizer.decode(tokenizer.encode(every)) != every:
        raise UserError(
            "SentencePiece changes characters of this text: use another data.tokenizer"
        )
    return tokenizer


def _sentences(lines: Iterable[str], to_model: dict[int, str]) -> Iterator[str]:
    """Yields lines in parts none of which SentencePiece skips."""
    for line in lines:
        # It skips lines that contain its unknown token, written out.
        for part in line.translate(to_model).replace("<unk>", "<un\nk>").split("\n"):
            for start in range(0, len(part), LONGEST_LINE):
                yield part[start : start + LONGEST_LINE]
