"""Problems in a line of characters whose answer is the only one there is."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.errors import UserError
from jaxgpt.systems.sigma.tasks.base import CharacterTask, after

LONGEST_NUMBER = 18  # Digits that an int64 holds.


def digits_of(numbers_N: np.ndarray, count: int) -> np.ndarray:
    """Returns the decimal digits [N, count] of numbers, the first ones first."""
    return numbers_N[:, None] // 10 ** np.arange(count - 1, -1, -1) % 10


def column(value: int, count: int) -> np.ndarray:
    """Returns [count, 1] of a marker."""
    return np.full((count, 1), value)


class Addition(CharacterTask):
    """Two numbers of `task.digits` digits and, asked for, their sum."""

    alphabet = "0123456789+="

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        digits = self.config.digits
        if digits > LONGEST_NUMBER:
            raise UserError(f"task.digits is at most {LONGEST_NUMBER}: not {digits}")
        self.length = 3 * digits + 3

    def generate(self, rng: np.random.Generator, count: int, split: str):
        """Draws both numbers uniformly; zeros stand before short ones."""
        del split
        digits = self.config.digits
        a, b = rng.integers(0, 10**digits, (2, count))
        parts = [digits_of(a, digits), column(10, count), digits_of(b, digits)]
        parts += [column(11, count), digits_of(a + b, digits + 1)]
        tokens_NT = np.concatenate(parts, 1)
        return tokens_NT, ~after(tokens_NT, 11)


class TwoTargets(CharacterTask):
    """Digits, two of them between signs; which these are is asked for."""

    alphabet = "0123456789-+|"

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        if self.config.length < 8:
            raise UserError(
                f"task.length is at least 8 for twotargets: not {self.config.length}"
            )
        self.length = self.config.length + 5

    def generate(self, rng: np.random.Generator, count: int, split: str):
        """Puts the first pair anywhere, and the second where it does not touch it."""
        del split
        places = np.arange(self.config.length - 2)
        first = rng.integers(0, len(places), (count, 1))
        chance = rng.random((count, len(places)))
        chance[abs(places - first) < 3] = -1
        second = chance.argmax(1)[:, None]
        text = rng.integers(0, 10, (count, self.config.length))
        row, answers = np.arange(count)[:, None], []
        for sign, place in ((10, first), (11, second)):
            text[row, place], text[row, place + 2] = sign, sign
            answers += [column(12, count), text[row, place + 1]]
        tokens_NT = np.concatenate([text, *answers, column(12, count)], 1)
        return tokens_NT, ~after(tokens_NT, 12)


class ByHeart(CharacterTask):
    """A hundred sentences, each with one end: given the beginning, which is it."""

    alphabet = "0123456789|"
    distinct = False
    length = 17

    def generate(self, rng: np.random.Generator, count: int, split: str):
        """Draws among the sentences; both splits have the same."""
        del split
        sentences = self.constants().integers(0, 10, (100, self.length))
        sentences[:, 8] = 10
        tokens_NT = sentences[rng.integers(0, len(sentences), count)]
        return tokens_NT, ~after(tokens_NT, 10)


class LearnOperator(CharacterTask):
    """Maps that copy six digits to nine places, always the same ones.

    Given the number of a map, of `task.digits` digits, and what it is applied to; asked
    for is what comes of it.
    """

    alphabet = "0123456789|>"
    most_digits = 4

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        digits = self.config.digits
        if digits > self.most_digits:
            raise UserError(
                f"task.digits is at most {self.most_digits} for learnop: not {digits}"
            )
        self.length = digits + 1 + 6 + 1 + 9

    def generate(self, rng: np.random.Generator, count: int, split: str):
        """Draws a map's number, and six different digits."""
        del split
        digits = self.config.digits
        maps = self.constants().integers(0, 6, (10**digits, 9))
        number = rng.integers(0, len(maps), count)
        source = rng.random((count, 10)).argsort(1)[:, :6]
        result = np.take_along_axis(source, maps[number], 1)
        parts = [digits_of(number, digits), column(10, count), source]
        tokens_NT = np.concatenate([*parts, column(11, count), result], 1)
        return tokens_NT, ~after(tokens_NT, 11)


class GuessOperator(CharacterTask):
    """A map shown once, on different digits; it is to be applied to others.

    It copies `task.digits` digits to `task.length` places.
    """

    alphabet = "0123456789>|~"

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        digits, places = self.config.digits, self.config.length
        if not 2 <= digits <= 10:
            raise UserError(f"task.digits is 2 .. 10 for guessop: not {digits}")
        self.length = 2 * (digits + 1 + places) + 1

    def generate(self, rng: np.random.Generator, count: int, split: str):
        """Draws a map for every sequence."""
        del split
        digits, places = self.config.digits, self.config.length
        maps = rng.integers(0, digits, (count, places))
        shown = rng.random((count, 10)).argsort(1)[:, :digits]
        source = rng.integers(0, 10, (count, digits))
        apply = lambda numbers: np.take_along_axis(numbers, maps, 1)
        parts = [shown, column(10, count), apply(shown), column(11, count)]
        parts += [source, column(12, count), apply(source)]
        tokens_NT = np.concatenate(parts, 1)
        return tokens_NT, ~after(tokens_NT, 12)


class Memory(CharacterTask):
    """Letters, a few of them in brackets; later these are asked for again."""

    alphabet = "[]<>abcdefghij"
    longest = 5

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        if self.config.length < 16:
            raise UserError(
                f"task.length is at least 16 for memory: not {self.config.length}"
            )
        self.length = self.config.length

    def generate(self, rng: np.random.Generator, count: int, split: str):
        """Draws a pattern of one to five letters and where it stands."""
        del split
        T, longest = self.length, self.longest
        asked_at = T - longest - 2
        tokens_NT = rng.integers(4, 14, (count, T))
        size = rng.integers(1, longest + 1, (count, 1))
        place = rng.integers(0, asked_at - longest - 1, (count, 1))
        pattern = rng.integers(4, 14, (count, longest))
        row, index = np.arange(count)[:, None], np.arange(longest)
        for start, opening, closing in ((place, 0, 1), (asked_at, 2, 3)):
            where = np.broadcast_to(start, (count, 1)) + 1 + index
            inside = index < size
            kept = np.where(inside, pattern, tokens_NT[row, where])
            tokens_NT[row, where] = kept
            tokens_NT[row, start], tokens_NT[row, start + 1 + size] = opening, closing
        t = np.arange(T)
        asked_NT = (t > asked_at) & (t <= asked_at + 1 + size)
        return tokens_NT, ~asked_NT
