"""Lines of characters with a question and its only answer."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.systems.sigma.tasks.base import Task

LONGEST_NUMBER = 18  # Digits that an int64 holds.


def digits_of(numbers_N: np.ndarray, count: int) -> np.ndarray:
    """Returns the decimal digits [N, count] of numbers, the most significant first."""
    return numbers_N[:, None] // 10 ** np.arange(count - 1, -1, -1) % 10


class Addition(Task):
    """Two numbers of `task.digits` digits, leading zeros included, then their sum."""

    shows = "the sum of two numbers"
    rule = "the sum"
    words, separator, marker = "0123456789+=", "", "="

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        digits = self.config.digits
        self.check(digits <= LONGEST_NUMBER, "digits", f"<= {LONGEST_NUMBER}")
        self.length = 3 * digits + 3

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws both numbers uniformly."""
        n = self.config.digits
        a, b = rng.integers(0, 10**n, (2, count))
        total = digits_of(a + b, n + 1)
        return self.join(digits_of(a, n), "+", digits_of(b, n), "=", total)


class TwoTargets(Task):
    """Digits, two of them between signs, then these two."""

    shows = "the two digits between signs"
    rule = "both digits"
    words, separator, marker = "0123456789-+|", "", "|"

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.check(self.config.length >= 8, "length", ">= 8")
        self.length = self.config.length + 5

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Puts the first pair anywhere, and the second where it does not touch it."""
        places = np.arange(self.config.length - 2)
        first = rng.integers(0, len(places), (count, 1))
        chance = rng.random((count, len(places)))
        chance[abs(places - first) < 3] = -1
        second = chance.argmax(1)[:, None]
        text = rng.integers(0, 10, (count, self.config.length))
        row = np.arange(count)[:, None]
        for sign, place in (("-", first), ("+", second)):
            text[row, place] = text[row, place + 2] = self.codes[sign]
        targets = [text[row, place + 1] for place in (first, second)]
        return self.join(text, "|", targets[0], "|", targets[1], "|")


class ByHeart(Task):
    """A hundred sentences, the same in both splits: the beginning, then the end."""

    shows = "the ends of sentences that are known by heart"
    rule = "the end that was learned"
    words, separator, marker = "0123456789|", "", "|"
    distinct = False
    length = 17

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws from the sentences."""
        sentences = self.constants().integers(0, 10, (100, self.length))
        sentences[:, 8] = self.codes["|"]
        return sentences[rng.integers(0, len(sentences), count)]


class LearnOperator(Task):
    """Maps that copy six digits to nine places, always the same ones.

    The number of a map, of `task.digits` digits, and six digits, then what the map
    makes of them.
    """

    shows = "what a map, given by number, makes of six digits"
    rule = "every digit"
    words, separator, marker = "0123456789|>", "", ">"

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.check(self.config.digits <= 4, "digits", "<= 4")
        self.length = self.config.digits + 1 + 6 + 1 + 9

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws a map's number, and six different digits."""
        digits = self.config.digits
        maps = self.constants().integers(0, 6, (10**digits, 9))
        number = rng.integers(0, len(maps), count)
        source = rng.random((count, 10)).argsort(1)[:, :6]
        result = np.take_along_axis(source, maps[number], 1)
        return self.join(digits_of(number, digits), "|", source, ">", result)


class GuessOperator(Task):
    """A map shown once on different digits, then applied to others.

    It copies `task.digits` digits to `task.length` places.
    """

    shows = "what a map, shown once, makes of other digits"
    rule = "every digit"
    words, separator, marker = "0123456789>|~", "", "~"

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        digits = self.config.digits
        self.check(2 <= digits <= 10, "digits", "from 2 to 10")
        self.length = 2 * (digits + 1 + self.config.length) + 1

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws a map for every sequence."""
        digits, places = self.config.digits, self.config.length
        maps = rng.integers(0, digits, (count, places))
        shown = rng.random((count, 10)).argsort(1)[:, :digits]
        source = rng.integers(0, 10, (count, digits))
        apply = lambda numbers: np.take_along_axis(numbers, maps, 1)
        return self.join(shown, ">", apply(shown), "|", source, "~", apply(source))


class Recall(Task):
    """Letters, a few of them in brackets, which are to be repeated later."""

    shows = "the letters that were in brackets"
    rule = "every letter"
    words, separator = "[]<>abcdefghij", ""
    longest = 5

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.check(self.config.length >= 16, "length", ">= 16")
        self.length = self.config.length
        self.asked_at = self.length - self.longest - 2

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws a pattern of one to five letters, and its place."""
        longest, asked_at = self.longest, self.asked_at
        tokens_NT = rng.integers(4, 14, (count, self.length))
        size = rng.integers(1, longest + 1, (count, 1))
        place = rng.integers(0, asked_at - longest - 1, (count, 1))
        pattern = rng.integers(4, 14, (count, longest))
        row, index = np.arange(count)[:, None], np.arange(longest)
        for start, brackets in ((place, "[]"), (np.full_like(place, asked_at), "<>")):
            inside = start + 1 + index
            tokens_NT[row, inside] = np.where(
                index < size, pattern, tokens_NT[row, inside]
            )
            for where, bracket in zip((start, start + 1 + size), brackets, strict=True):
                tokens_NT[row, where] = self.codes[bracket]
        return tokens_NT

    def prompt_mask(self, tokens_NT: np.ndarray) -> np.ndarray:
        """Asks for what follows "<", up to its ">"."""
        t, end = np.arange(self.length), (tokens_NT == self.codes[">"]).argmax(1)
        return (t <= self.asked_at) | (t > end[:, None])
