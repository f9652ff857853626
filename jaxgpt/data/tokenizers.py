"""Text to token ids and back; a tokenizer is saved as JSON inside the run."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import pathlib
import pkgutil
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import sentencepiece
import tiktoken
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

from jaxgpt.data.config import TOKENIZERS
from jaxgpt.errors import UserError, atomic_write, log, require

MERGES = pathlib.Path(__file__).parents[2] / "data" / "gpt2_merges.bpe"

MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"

# The pattern of GPT-2's tokenizer, as published with tiktoken.
GPT2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"
    r"|\s++$|\s+(?!\S)|\s"
)

END_OF_TEXT, END_OF_TEXT_TOKEN = 50256, "<|endoftext|>"
# SentencePiece sums scores in float32, in which the last words of a long text would be
# rounded away: longer texts are encoded in parts.
LONGEST_PART = 1 << 15
LONGEST_LINE = 1 << 22  # Characters; SentencePiece leaves out lines of 16 MiB.
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # How SentencePiece writes one.
# What SentencePiece keeps for itself, or drops at the end of a line: learned as others.
UNLEARNABLE = f"\0\r\x1f{SPACE}\N{LOWER FIVE EIGHTHS BLOCK}"
PRIVATE_USE = range(0xF0000, 0xFFFFE)


class UnknownCharacterError(UserError):
    """A character that a text cannot have; `at` is its place in the text."""

    def __init__(self, character: str, at: int, reason: str):
        super().__init__(f"character {shown(character)} (at {at}) {reason}")
        self.character, self.at, self.reason = character, at, reason

    def moved(self, by: int) -> UnknownCharacterError:
        """Returns the error for a text with so many more characters before it."""
        return UnknownCharacterError(self.character, self.at + by, self.reason)

    def located(self, place: str) -> UserError:
        """Returns the error for a text whose places have names."""
        return UserError(f"{place}: character {shown(self.character)} {self.reason}")


def shown(character: str) -> str:
    """Returns a character in quotes; an invisible one by its code point and name."""
    if unicodedata.category(character)[0] in "LNPS":
        return repr(character)
    name = unicodedata.name(character, repr(character))
    return f"U+{ord(character):04X} {name}"


class Tokenizer(Protocol):
    """Text to int32 ids [T] and back.

    Some tokenizers put a space before a text and take it away again when they decode:
    text that goes on from tokens before it has methods of its own.
    """

    vocab_size: int
    start: int | None = None  # The token that texts begin after, if there is one.

    def encode(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """Returns token ids.

        Args:
          text: from its beginning.
          special_tokens: whether those that are written out are read as such, or as
            plain text.

        Raises:
          UnknownCharacterError: for text outside the vocabulary.
          UserError: for special tokens of a vocabulary that has none.
        """

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text; ids of a model's padded vocabulary have none."""

    def to_json(self) -> dict:
        """Returns what `from_json` reads."""

    def encode_rest(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """Returns the ids of text that goes on from other tokens."""
        return self.encode(text, special_tokens)

    def decode_rest(self, ids: np.ndarray) -> str:
        """Returns the text of ids that go on from other tokens."""
        return self.decode(ids)

    def encode_pieces(
        self, pieces: Iterable[str], special_tokens: bool = False
    ) -> Iterator[np.ndarray]:
        """Yields the ids of a text that `reading.iter_chunks` has cut into pieces."""
        at = 0
        for piece in pieces:
            try:
                yield self.encode(piece, special_tokens)
            except UnknownCharacterError as error:
                raise error.moved(at) from None
            at += len(piece)


def _no_special_tokens(asked: bool, vocabulary: str) -> None:
    if asked:
        raise UserError(
            f"{vocabulary} have no special tokens: leave special_tokens out"
        )


class CharTokenizer(Tokenizer):
    """One token per character; nanoGPT has them in order of code points."""

    def __init__(self, characters: str):
        self.characters = characters
        self.vocab_size = len(characters)
        points = np.frombuffer(characters.encode("utf-32-le"), np.uint32)
        self._ids = np.full(int(points.max(initial=0)) + 2, -1, np.int32)
        self._ids[points] = np.arange(len(points))

    def encode(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """Returns ids [len(text)]; see `Tokenizer.encode`."""
        _no_special_tokens(special_tokens, "characters")
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = self._ids[np.minimum(points, len(self._ids) - 1)]
        if (ids < 0).any():
            at = int((ids < 0).argmax())
            raise UnknownCharacterError(
                text[at],
                at,
                f"is not in the vocabulary of {self.vocab_size} characters: leave it "
                "out",
            )
        return ids

    def decode(self, ids: np.ndarray) -> str:
        """Returns their characters."""
        return "".join(self.characters[i] for i in ids if i < self.vocab_size)

    def to_json(self) -> dict:
        """Holds the characters."""
        return {"kind": "char", "characters": self.characters}


class GPT2Tokenizer(Tokenizer):
    """GPT-2's byte-pair encoding, from the merges in data/: no network is needed."""

    vocab_size, start = 50257, END_OF_TEXT

    def __init__(self) -> None:
        self._encoding = _gpt2_encoding()

    def encode(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """Returns ids [T]; the only special token is <|endoftext|>."""
        allowed = self._encoding.special_tokens_set if special_tokens else set()
        ids = self._encoding.encode(
            text, allowed_special=allowed, disallowed_special=()
        )
        return np.array(ids, np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text; bytes that are not UTF-8 become U+FFFD."""
        return self._encoding.decode([int(i) for i in ids if i < self.vocab_size])

    def to_json(self) -> dict:
        """Holds no merges: they are in the repository."""
        return {"kind": "gpt2"}


@functools.cache
def _gpt2_encoding():
    vocabulary, _ = gpt2_vocabulary()
    letters = byte_letters()
    del vocabulary[END_OF_TEXT_TOKEN]
    return tiktoken.Encoding(
        "gpt2",
        pat_str=GPT2_PATTERN,
        mergeable_ranks={
            bytes(letters[letter] for letter in token): i
            for token, i in vocabulary.items()
        },
        special_tokens={END_OF_TEXT_TOKEN: END_OF_TEXT},
        explicit_n_vocab=GPT2Tokenizer.vocab_size,
    )


def gpt2_vocabulary() -> tuple[dict[str, int], list[list[str]]]:
    """Returns ({token: id}, merges) of GPT-2, which write bytes as printable letters.

    Raises:
      UserError: where the merges in data/ are missing, or others.
    """
    try:
        content = MERGES.read_bytes()
    except OSError:
        raise UserError(
            f"GPT-2's merges are missing: save its vocab.bpe as '{MERGES}'"
        ) from None
    if hashlib.sha256(content).hexdigest() != MERGES_SHA256:
        raise UserError(f"'{MERGES}' is not GPT-2's vocab.bpe: its sha256 differs")
    merges = [line.split(" ") for line in content.decode().splitlines()[1:] if line]
    tokens = [*byte_letters(), *map("".join, merges), END_OF_TEXT_TOKEN]
    return {token: i for i, token in enumerate(tokens)}, merges


def byte_letters() -> dict[str, int]:
    """Returns {printable letter: the byte it stands for}, in the order of ids."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    letters = {chr(b): b for b in printable}
    return letters | {chr(256 + i): b for i, b in enumerate(others)}


def from_json(saved: Any) -> Tokenizer:
    """Returns the tokenizer of `to_json`'s value, or of nanoGPT's meta as JSON.

    Raises:
      UserError: for anything else.
    """
    match saved:
        case {"kind": "char", "characters": str(characters)} if characters:
            return CharTokenizer(characters)
        case {"kind": "gpt2"}:
            return GPT2Tokenizer()
        case {"kind": "huggingface", "tokenizer": dict(file)}:
            return _huggingface(file, saved.get("named", {}))
        case {"model": dict()}:
            return _huggingface(saved, {})
        case {"kind": "sentencepiece", "model": str(model)}:
            return _sentencepiece_from_json(model, saved)
        case list():
            return CharTokenizer(_characters_of_meta({"itos": saved}))
        case {"stoi": _} | {"itos": _} | {"chars": _}:
            return CharTokenizer(_characters_of_meta(saved))
        case dict() if saved and all(isinstance(i, int) for i in saved.values()):
            return CharTokenizer(_characters_of_meta({"stoi": saved}))
    raise UserError(f"it holds no tokenizer of kind {', '.join(TOKENIZERS)}")


def _huggingface(file: dict[str, Any], named: dict[str, str]) -> Tokenizer:
    # By its name, as that module imports this one.
    kind = pkgutil.resolve_name("jaxgpt.data.huggingface:HuggingFaceTokenizer")
    return kind(file, named)


def _characters_of_meta(meta: dict[str, Any]) -> str:
    """Returns the characters, in the order of their ids, of nanoGPT's meta as JSON.

    That is {"stoi": {character: id}, "itos": {"id": character}, "vocab_size": count} or
    a part of it; lists are in the order of ids.
    """
    tables = []
    for name in sorted({"stoi", "itos", "chars"} & meta.keys()):
        table = meta[name]
        if not isinstance(table, dict):
            table = dict(enumerate(table))
        elif name == "stoi":
            table = [(i, letter) for letter, i in table.items()]
        pairs = table.items() if isinstance(table, dict) else table
        tables.append(sorted((int(str(i)), letter) for i, letter in pairs))
    ids, letters = zip(*tables[0], strict=True) if tables[0] else ((), ())
    count = meta.get("vocab_size", len(ids))
    faults = {
        "its tables contradict each other": any(t != tables[0] for t in tables),
        "its ids are not one after another, from 0 on": ids != (*range(len(ids)),),
        "a token is not one character": any(len(letter) != 1 for letter in letters),
        "it has a character twice": len({*letters}) < len(letters),
        f"its vocab_size {count} is not its {len(ids)} characters": count != len(ids),
        "it is empty": not ids,
    }
    if found := next((fault for fault, holds in faults.items() if holds), ""):
        raise UserError(f"it is not a vocabulary of characters: {found}")
    return "".join(letters)


def load_tokenizer(path: pathlib.Path) -> Tokenizer:
    """Reads a tokenizer file; UserError where it is damaged."""
    refused = f"tokenizer file '{path}' cannot be used"
    try:
        text = path.read_text(encoding="utf-8-sig")
        return from_json(json.loads(text))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{refused}: it is not JSON, as a tokenizer.json or meta.json is ({error})"
        ) from None
    except (OSError, ValueError, TypeError, UserError) as error:
        raise UserError(f"{refused}: {error}") from None


def save_tokenizer(tokenizer: Tokenizer, path: pathlib.Path) -> None:
    """Writes a tokenizer file."""
    with atomic_write(path) as stream:
        stream.write(json.dumps(tokenizer.to_json(), ensure_ascii=False) + "\n")


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int32), *parts])


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model.

    Args:
      model: a serialised ModelProto.
      stand_ins: {letter of the model: the character that it stands for}.

    Raises:
      ValueError: where these bytes are not a model.
    """

    def __init__(self, model: bytes, stand_ins: dict[str, str] | None = None):
        if not model:
            raise ValueError("it is empty")
        self.model, self.stand_ins = model, stand_ins or {}
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            # Of text that goes on: a message that follows overrides fields of the
            # first, here normalizer_spec.add_dummy_prefix.
            self._rest = sentencepiece.SentencePieceProcessor(
                model_proto=model + b"\x1a\x02\x18\x00"
            )
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model ({error})") from None
        self.vocab_size = self._processor.get_piece_size()
        self._to_model = {ord(v): k for k, v in self.stand_ins.items()}
        self._from_model = {ord(k): v for k, v in self.stand_ins.items()}
        # They would come back as others.
        self._reserved = ({*self.stand_ins} | {SPACE}) - {*self.stand_ins.values()}

    @property
    def adds_a_space(self) -> bool:
        """Whether texts are read as if a space were before them."""
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
        """Yields the ids of a text, whatever its pieces are."""
        _no_special_tokens(special_tokens, "SentencePiece models")
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
        """Pairs of characters, as in pieces: no token reaches over any other pair."""
        return {
            piece[i : i + 2].replace(SPACE, " ")
            for piece in map(self._processor.id_to_piece, range(self.vocab_size))
            for i in range(len(piece) - 1)
        }

    def _end_of_part(self, text: str) -> int:
        """Returns where a text that is too long is cut; 0 where it need not be yet."""
        # Where depends on the text before alone, not on how it was read.
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
            # No piece before it is a byte: with those nothing is unknown.
            known = processor.encode_as_pieces(read)[: ids.index(processor.unk_id())]
            wrong.append(len("".join(known)) - (begins and self.adds_a_space))
        if wrong:
            first = min(*wrong, len(text) - 1)
            raise UnknownCharacterError(
                text[first],
                at + first,
                f"is not in the vocabulary of {self.vocab_size} SentencePiece tokens: "
                "leave it out",
            )
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


def _sentencepiece_from_json(model: str, saved: dict) -> SentencePieceTokenizer:
    try:
        tokenizer = SentencePieceTokenizer(
            base64.b64decode(model, validate=True), saved.get("stand_ins")
        )
    except ValueError as error:
        raise UserError(f"its SentencePiece model is damaged: {error}") from None
    if tokenizer.adds_a_space and "adds_a_space" not in saved:
        log(
            "note: this run was trained with a space too many before every word, as "
            "its SentencePiece model was then read: train it anew"
        )
    return tokenizer


def _fields(message: bytes) -> dict[int, Any]:
    """Returns {number: value} of a serialised protocol buffer, parts of one joined."""
    found: dict[int, Any] = {}
    for field in UnknownFieldSet(Empty.FromString(message)):
        joined = isinstance(field.data, bytes) and field.field_number in found
        before = found[field.field_number] if joined else b""
        found[field.field_number] = before + field.data if joined else field.data
    return found


def _changes(model: bytes) -> list[str]:
    """Returns why texts would not come back from a SentencePiece model unchanged.

    The numbers are those of fields in sentencepiece_model.proto.
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


def read_sentencepiece(path: pathlib.Path, vocab_size: int) -> SentencePieceTokenizer:
    """Reads a .model file.

    Raises:
      UserError: where it is not one, would change texts, or is not of vocab_size
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
        reason = " ".join(str(error).split()).rpartition("] ")[2]
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
    """Yields lines as SentencePiece leaves none of them out."""
    for line in lines:
        # It leaves out lines with the name of its unknown token.
        for part in line.translate(to_model).replace("<unk>", "<un\nk>").split("\n"):
            for start in range(0, len(part), LONGEST_LINE):
                yield part[start : start + LONGEST_LINE]
