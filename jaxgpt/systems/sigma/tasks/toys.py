"""Three distributions that are known: independent bits, one step, a permutation."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.systems.sigma.tasks import pictures
from jaxgpt.systems.sigma.tasks.base import Judgement, Task

# Sequences of the true distribution fail the judge this often.
SIGNIFICANCE = 1e-3


class Toy(Task):
    """Nothing is given; sequences may repeat."""

    distinct = False
    words: Sequence[str] = "01"
    palette: tuple[pictures.Entry, ...] = (
        ("zero", (255, 255, 255), True),
        ("one", (40, 40, 40), True),
    )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.length = self.config.length
        self.check(self.length >= 2, "length", ">= 2")
        self.legend = (*self.palette, *pictures.FRAMES)

    def tiles(self, verdict, tokens_NT, reference_NT) -> list[pictures.Tile]:
        """Returns each sequence as a row of cells."""
        size = max(4, min(pictures.CELL, pictures.WIDEST // (self.length + 3)))
        colours = np.array([colour for _, colour, _ in self.palette])
        cells = colours[self.kinds(tokens_NT)]
        shown = []
        for row, right in enumerate(verdict["accuracy"]):
            words = self.text(tokens_NT[row]).split() if size == pictures.CELL else []
            shown.append(pictures.grid(cells[row, None], right, [words], size))
        return shown

    def kinds(self, tokens_NT: np.ndarray) -> np.ndarray:
        """Returns which entry of `palette` each token has in a picture, [N, T]."""
        return tokens_NT


class Step(Toy):
    """Zeros, and somewhere a run of `task.step_length` ones; every place as likely."""

    shows = "bits that are one run of ones, from nothing"
    rule = "one run of ones, as long as task.step_length says"

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        ones = self.config.step_length
        self.check(ones <= self.length, "step_length", f"<= task.length {self.length}")

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws where the step begins."""
        ones = self.config.step_length
        start = rng.integers(0, self.length - ones + 1, (count, 1))
        index = np.arange(self.length)
        return ((index >= start) & (index < start + ones)).astype(np.int8)

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Is there one run of ones, of the right length."""
        num_runs = (np.diff(tokens_NT, axis=1, prepend=0) == 1).sum(1)
        length = tokens_NT.sum(1) == self.config.step_length
        return {"accuracy": length & (num_runs == 1)}


class Product(Toy):
    """Independent bits, each one with `task.probability`."""

    shows = "independent bits, from nothing"
    rule = "as many ones and runs as independent bits have, but for 1 in 1,000"

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.check(0 < self.config.probability < 1, "probability", "between 0 and 1")

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws every bit."""
        ones = rng.random((count, self.length)) < self.config.probability
        return ones.astype(np.int8)

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Could this be of the distribution: exact tests of the ones and their runs.

        The number of ones under its binomial distribution, and the number of runs
        given it (Wald and Wolfowitz 1940), each two-sided at half of SIGNIFICANCE;
        also the share of ones.
        """
        ones_N = tokens_NT.sum(1)
        runs_N = 1 + (np.diff(tokens_NT, axis=1) != 0).sum(1)
        count_p, runs_p = _p_values(self.length, float(self.config.probability))
        least = SIGNIFICANCE / 2
        right = (count_p[ones_N] >= least) & (runs_p[ones_N, runs_N] >= least)
        return {"accuracy": right, "ones": tokens_NT.mean(1)}


@functools.lru_cache(maxsize=4)
def _p_values(length: int, probability: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns two-sided exact p-values, [L + 1] of ones and [L + 1, L + 1] of runs.

    The p-value of an outcome is the probability of all that are no likelier.
    """
    log_choose = lambda n, k: (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    )
    log_p, log_q = math.log(probability), math.log1p(-probability)
    count = np.exp(
        [
            log_choose(length, k) + k * log_p + (length - k) * log_q
            for k in range(length + 1)
        ]
    )
    runs = np.zeros((length + 1, length + 1))
    for ones in range(length + 1):
        for number in range(1, length + 1):
            # Runs of ones and of zeros take turns; with an odd number either begins.
            halves = number // 2, (number + 1) // 2
            for of_ones, of_zeros in (halves, halves[::-1]):
                runs[ones, number] += (
                    _compositions(ones, of_ones)
                    * _compositions(length - ones, of_zeros)
                    / math.comb(length, ones)
                )

    def p_values(p: np.ndarray) -> np.ndarray:
        return np.array([p[p <= each * (1 + 1e-9)].sum() for each in p])

    return p_values(count), np.array([p_values(row) for row in runs])


def _compositions(total: int, parts: int) -> int:
    """Returns the number of ways to write a total as a sum of `parts` positive ones."""
    if parts == 0 or total < parts:
        return int(total == parts)
    return math.comb(total - 1, parts - 1)


class Permutation(Toy):
    """The numbers 0 .. length - 1, each once."""

    shows = "a permutation of numbers, from nothing"
    rule = "every number is there once"
    palette = (
        ("there once", (205, 225, 250), True),
        ("there more than once", (255, 150, 140), True),
    )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.words = list(map(str, range(self.length)))

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws uniform permutations."""
        numbers = np.arange(self.length, dtype=np.int16)
        return rng.permuted(np.broadcast_to(numbers, (count, self.length)), axis=1)

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Is each number there once; and the share of the numbers that are there."""
        different = 1 + (np.diff(np.sort(tokens_NT, 1), axis=1) != 0).sum(1)
        right = different == self.length
        return {"accuracy": right, "different": different / self.length}

    def kinds(self, tokens_NT: np.ndarray) -> np.ndarray:
        """Tells numbers that are there once from others."""
        often_NT = (tokens_NT[:, :, None] == tokens_NT[:, None]).sum(2)
        return (often_NT > 1).astype(int)
