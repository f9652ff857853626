"""Text to token ids and back: characters, words, and GPT-2's byte-pair encoding."""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import tiktoken

from jaxgpt.config import shipped
from jaxgpt.errors import UserError, shorten

MERGES = shipped("data/gpt2_merges.bpe")
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"

# The pattern of GPT-2's tokenizer, as published with tiktoken.
GPT2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"
    r"|\s++$|\s+(?!\S)|\s"
)

END_OF_TEXT, END_OF_TEXT_TOKEN = 50256, "<|endoftext|>"


# Letters, digits and _ together, and each other character alone.
WORD = re.compile(r"\w+|\W")


class UnknownCharacterError(UserError):
    """A character or a word outside the vocabulary; `at` is its place in the text."""

    def __init__(self, character: str, at: int, reason: str):
        super().__init__(f"{shown(character)} (at {at}) {reason}")
        self.character, self.at, self.reason = character, at, reason

    def moved(self, by: int) -> UnknownCharacterError:
        """Returns the error for the text with `by` more characters before it."""
        return UnknownCharacterError(self.character, self.at + by, self.reason)

    def located(self, place: str) -> UserError:
        """Returns the error with file, line and column."""
        return UserError(f"{place}: {shown(self.character)} {self.reason}")


def shown(text: str) -> str:
    """Returns a character or word in quotes; code point and name if it is invisible."""
    if len(text) > 1:
        return f"word {shorten(repr(text), 60)}"
    if unicodedata.category(text)[0] in "LNPS":
        return f"character {text!r}"
    name = unicodedata.name(text, repr(text))
    return f"character U+{ord(text):04X} {name}"


class Tokenizer(Protocol):
    """Text to int32 ids [T] and back.

    Some tokenizers put a space before a text and remove it when they decode: the
    methods with _rest are for text that continues earlier tokens.
    """

    vocab_size: int
    start: int | None = None  # The token before a text, if there is one.

    def encode(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """Returns token ids.

        Args:
          text: from its beginning.
          special_tokens: read special tokens that are written out as tokens.

        Raises:
          UnknownCharacterError: for text outside the vocabulary.
          UserError: for special tokens of a vocabulary that has none.
        """

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text; ids of padding in a model's vocabulary have none."""

    def to_json(self) -> dict:
        """Returns what `tokenizer_files.from_json` reads."""

    def encode_rest(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """Returns the ids of text that continues other tokens."""
        return self.encode(text, special_tokens)

    def decode_rest(self, ids: np.ndarray) -> str:
        """Returns the text of ids that continue other tokens."""
        return self.decode(ids)

    def cut_after(self, text: str, at: int) -> int:
        """Returns the first place at or after `at` where a text can be cut."""
        del text
        return at

    def encode_pieces(
        self, pieces: Iterable[str], special_tokens: bool = False
    ) -> Iterator[np.ndarray]:
        """Yields the ids of a text in pieces, from `reading.iter_chunks`."""
        encode, at = self.encode, 0
        for piece in pieces:
            try:
                yield encode(piece, special_tokens)
            except UnknownCharacterError as error:
                raise error.moved(at) from None
            encode, at = self.encode_rest, at + len(piece)


def refuse_special_tokens(special_tokens: bool, vocabulary: str) -> None:
    """Raises UserError if a vocabulary without special tokens should read them."""
    if special_tokens:
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
        refuse_special_tokens(special_tokens, "characters")
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = self._ids[np.minimum(points, len(self._ids) - 1)]
        if (ids < 0).any():
            at = int((ids < 0).argmax())
            reason = f"is not in the vocabulary of {self.vocab_size} characters"
            raise UnknownCharacterError(text[at], at, f"{reason}: leave it out")
        return ids

    def decode(self, ids: np.ndarray) -> str:
        """Returns their characters."""
        return "".join(self.characters[i] for i in ids if i < self.vocab_size)

    def to_json(self) -> dict:
        """Holds the characters."""
        return {"kind": "char", "characters": self.characters}


class WordTokenizer(Tokenizer):
    """One token per word, and per character between words: see `WORD`."""

    def __init__(self, words: list[str]):
        self.words, self.vocab_size = words, len(words)
        self._ids = {word: i for i, word in enumerate(words)}

    def encode(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """Returns ids [T]; see `Tokenizer.encode`."""
        refuse_special_tokens(special_tokens, "words")
        ids = np.array([self._ids.get(w, -1) for w in WORD.findall(text)], np.int32)
        if (ids < 0).any():
            nth = int((ids < 0).argmax())
            word = list(WORD.finditer(text))[nth]
            reason = f"is not in the vocabulary of {self.vocab_size} words"
            raise UnknownCharacterError(
                word[0], word.start(), f"{reason}: leave it out"
            )
        return ids

    def decode(self, ids: np.ndarray) -> str:
        """Returns their text."""
        return "".join(self.words[i] for i in ids if i < self.vocab_size)

    def cut_after(self, text: str, at: int) -> int:
        """Returns the end of the word that `at` is in."""
        end = WORD.match(text, at)
        inside = 0 < at < len(text) and WORD.fullmatch(text[at - 1 : at + 1])
        return end.end() if inside and end else at

    def to_json(self) -> dict:
        """Holds the words."""
        return {"kind": "word", "words": self.words}


class GPT2Tokenizer(Tokenizer):
    """GPT-2's byte-pair encoding, from the merges in data/, without a network."""

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
        """Has no merges, which come with jaxgpt."""
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
    """Returns GPT-2's ({token: id}, merges), with bytes as printable letters.

    Raises:
      UserError: if the merges in data/ are missing or differ.
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
