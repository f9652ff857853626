"""Three laws of which all is known: independent bits, one step, a permutation."""

from __future__ import annotations

import functools
import math
import pathlib

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.errors import UserError
from jaxgpt.systems.sigma.tasks import pictures
from jaxgpt.systems.sigma.tasks.base import Judgement, Task

# Sequences of the law itself fail the judge this often.
SIGNIFICANCE = 1e-3
BLACK, RED = "black", "red"


class Toy(Task):
    """Nothing is given; sequences may repeat."""

    distinct = False
    vocab_size = 2

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.length = self.config.length
        if self.length < 2:
            raise UserError(f"task.length is at least 2: not {self.length}")

    def generate(self, rng: np.random.Generator, count: int, split: str):
        """Draws from the law."""
        del split
        tokens_NT = self.sequences(rng, count)
        return tokens_NT, np.zeros(tokens_NT.shape, bool)

    def sequences(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Returns tokens [count, T]."""
        raise NotImplementedError

    def draw(self, path: pathlib.Path, tokens_NT, reference_NT, prompt_mask_NT) -> None:
        """Draws each sequence as a line: black where it is right, else red."""
        right_N = self.judge(tokens_NT, reference_NT, prompt_mask_NT)["accuracy"]
        shown = min(len(tokens_NT), pictures.SHOWN)
        rows = -(-shown // 6)
        figure, axes = pictures.figure(rows, 6, figsize=(10, 0.6 * rows + 0.4))
        for each, tokens_T, right in zip(
            axes.flat, tokens_NT[:shown], right_N, strict=False
        ):
            colour = BLACK if right else RED
            each.stairs(tokens_T, color=colour, lw=1, baseline=None)
            each.set_ylim(-0.2, 1.2)
        figure.savefig(path, dpi=100)


class Step(Toy):
    """Zeros, and somewhere a run of `task.step_length` ones; every place as likely."""

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        if self.config.step_length > self.length:
            raise UserError(
                f"task.step_length {self.config.step_length} is longer than "
                f"task.length {self.length}"
            )

    def sequences(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws where the step begins."""
        ones = self.config.step_length
        start = rng.integers(0, self.length - ones + 1, (count, 1))
        index = np.arange(self.length)
        return ((index >= start) & (index < start + ones)).astype(np.int8)

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Is there one run of ones, as long as it must be."""
        del reference_NT, prompt_mask_NT
        begins = np.diff(tokens_NT, axis=1, prepend=0) == 1
        length = tokens_NT.sum(1) == self.config.step_length
        return {"accuracy": length & (begins.sum(1) == 1)}


class Product(Toy):
    """Independent bits, each one with `task.probability`."""

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        if not 0 < self.config.probability < 1:
            raise UserError(
                f"task.probability is between 0 and 1: not {self.config.probability}"
            )

    def sequences(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws every bit."""
        return (rng.random((count, self.length)) < self.config.probability).astype(
            np.int8
        )

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Could this be of the law: an exact test of the ones, and of their runs.

        The number of ones against its binomial law, and the number of runs given it
        (Wald and Wolfowitz 1940), each two-sided at half of SIGNIFICANCE; also the
        share of ones.
        """
        del reference_NT, prompt_mask_NT
        ones_N = tokens_NT.sum(1)
        runs_N = 1 + (np.diff(tokens_NT, axis=1) != 0).sum(1)
        count_p, runs_p = _p_values(self.length, float(self.config.probability))
        least = SIGNIFICANCE / 2
        right = (count_p[ones_N] >= least) & (runs_p[ones_N, runs_N] >= least)
        return {"accuracy": right, "ones": tokens_NT.mean(1)}

    def draw(self, path: pathlib.Path, tokens_NT, reference_NT, prompt_mask_NT) -> None:
        """Draws the ones of each sequence, and below how often each place has one."""
        right_N = self.judge(tokens_NT, reference_NT, prompt_mask_NT)["accuracy"]
        shown = min(len(tokens_NT), pictures.SHOWN)
        figure, axes = pictures.figure(2, 1, figsize=(8, 7), height_ratios=[3, 1])
        for row in range(shown):
            places = np.flatnonzero(tokens_NT[row])
            colour = BLACK if right_N[row] else RED
            axes[0, 0].scatter(places, np.full(len(places), row), 6, colour)
        axes[0, 0].set(xlim=(-1, self.length), ylim=(shown, -1), ylabel="sequences")
        axes[1, 0].bar(range(self.length), tokens_NT.mean(0), 1, color="0.4")
        axes[1, 0].axhline(self.config.probability, color=RED)
        share = tokens_NT.mean()
        axes[1, 0].set(
            xlim=(-1, self.length),
            xlabel=f"share of ones at each place: {share:.3f} on average, the law's "
            f"{self.config.probability} in red",
        )
        figure.savefig(path, dpi=100)


@functools.lru_cache(maxsize=4)
def _p_values(length: int, probability: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns two-sided exact p-values, [L + 1] of ones and [L + 1, L + 1] of runs.

    The p-value of an outcome is the probability of all that are no likelier.
    """
    log_choose = lambda n, k: (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    )
    count = np.exp(
        [
            log_choose(length, k)
            + k * math.log(probability)
            + (length - k) * math.log1p(-probability)
            for k in range(length + 1)
        ]
    )
    runs = np.zeros((length + 1, length + 1))
    for ones in range(length + 1):
        zeros = length - ones
        for number in range(1, length + 1):
            # Runs of ones and of zeros take turns; with an odd number either begins.
            pairs = {(number // 2, (number + 1) // 2), ((number + 1) // 2, number // 2)}
            factor = 2 if number % 2 == 0 else 1
            for of_ones, of_zeros in pairs:
                runs[ones, number] += factor * (
                    _compositions(ones, of_ones) * _compositions(zeros, of_zeros)
                    / math.comb(length, ones)
                )  # fmt: skip

    def p_values(p: np.ndarray) -> np.ndarray:
        return np.array([p[p <= each * (1 + 1e-9)].sum() for each in p])

    return p_values(count), np.array([p_values(row) for row in runs])


def _compositions(total: int, parts: int) -> int:
    """Returns in how many ways a total is a sum of so many positive numbers."""
    if parts == 0:
        return int(total == 0)
    return math.comb(total - 1, parts - 1) if total >= parts else 0


class Permutation(Toy):
    """The numbers 0 .. length - 1, each once."""

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """As many as the sequence has."""
        return self.config.length

    def sequences(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws uniform permutations."""
        numbers = np.arange(self.length, dtype=np.int16)
        return rng.permuted(np.broadcast_to(numbers, (count, self.length)), axis=1)

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Is each number there once; and the share of the numbers that are there."""
        del reference_NT, prompt_mask_NT
        ordered = np.sort(tokens_NT, 1)
        different = 1 + (np.diff(ordered, axis=1) != 0).sum(1)
        right = different == self.length
        return {"accuracy": right, "different": different / self.length}

    def draw(self, path: pathlib.Path, tokens_NT, reference_NT, prompt_mask_NT) -> None:
        """Draws how often each number stands at each place, and how many differ."""
        verdict = self.judge(tokens_NT, reference_NT, prompt_mask_NT)
        L = self.length
        counts = np.zeros((L, L), int)
        np.add.at(
            counts, (tokens_NT, np.broadcast_to(np.arange(L), tokens_NT.shape)), 1
        )
        different = np.sort(verdict["different"])[::-1] * L
        figure, axes = pictures.figure(1, 2, figsize=(11, 5))
        left, right = axes[0]
        left.imshow(counts, cmap="binary", origin="lower", aspect="auto")
        left.set(title=f"counts over {len(tokens_NT)} sequences", xlabel="place")
        left.set(ylabel="number")
        colours = np.where(different == L, BLACK, RED)
        right.bar(range(len(different)), different, 1, color=colours)
        right.set(title=f"different numbers in each, of {L}", xlabel="sequences")
        right.set(ylim=(0, L * 1.05), yticks=[0, L // 2, L])
        figure.savefig(path, dpi=100)
