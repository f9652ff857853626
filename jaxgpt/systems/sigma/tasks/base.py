"""A task: sequences, the prompt of each, a judge, and a picture."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.errors import UserError, require
from jaxgpt.systems.sigma.tasks import pictures

Judgement = dict[str, np.ndarray]
KINDS: tuple[pictures.Entry, ...] = (
    ("given", (0, 0, 0), True),
    ("generated, right", pictures.RIGHT, True),
    ("generated, wrong", pictures.WRONG, True),
)


class Task:
    """What a σ-GPT learns other than text.

    Attributes:
      shows: what its pictures show, as their title.
      rule: what is right.
      legend: what the colours of its pictures mean.
      words: what each token is called.
      separator: between words, in `text`.
      length: tokens of a sequence, prompt included.
      marker: the word whose first occurrence ends the prompt.
      prompt_length: without a marker, how many tokens are given.
      distinct: whether no sequence may come twice, in either split.
      can_be_unseen: whether `task.unseen` makes its splits differ, by `for_split`.
    """

    shows: str
    rule: str
    legend: Sequence[pictures.Entry] = KINDS
    words: Sequence[str]
    separator = " "
    length: int
    marker = ""
    prompt_length = 0
    distinct = True
    can_be_unseen = False

    def __init__(self, config: ConfigDict):
        """Takes what it needs of `config.task`; UserError for impossible values."""
        self.config = config.task
        self.check(self.can_be_unseen or not self.config.unseen, "unseen", "false")

    def check(self, condition: bool, field: str, rule: str) -> None:
        """Raises UserError unless a condition on `task.FIELD` holds."""
        c = self.config
        require(condition, f"task.{field} of {c.name}", rule, c[field])

    @property
    def vocab_size(self) -> int:
        """The number of different tokens."""
        return len(self.words)

    @functools.cached_property
    def codes(self) -> dict[str, int]:
        """The token of each word."""
        return {word: token for token, word in enumerate(self.words)}

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """The files that its sequences are read from."""
        return ()

    def constants(self) -> np.random.Generator:
        """Returns a generator of what both splits share."""
        return np.random.default_rng((self.config.data_seed, 1))

    def for_split(self, split: str) -> Task:
        """Returns the task that samples a split: with `task.unseen` one for each."""
        del split
        return self

    def sample(
        self, rng: np.random.Generator, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns tokens [count, T], integers, and their prompt_mask."""
        tokens_NT = self.sample_tokens(rng, count)
        return tokens_NT, self.prompt_mask(tokens_NT)

    def collect(
        self, draw: Callable[[], np.ndarray], count: int, tries: int, failure: str
    ) -> np.ndarray:
        """Returns [count, ...], the rows of as many draws as it takes.

        Raises:
          UserError: with the message `failure`, if so many tries do not suffice.
        """
        parts: list[np.ndarray] = []
        for _ in range(tries):
            parts.append(draw())
            if sum(map(len, parts)) >= count:
                return np.concatenate(parts)[:count]
        raise UserError(failure)

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Returns tokens [count, T], integers."""
        raise NotImplementedError

    def prompt_mask(self, tokens_NT: np.ndarray) -> np.ndarray:
        """Returns bool [N, T], true where a token is given."""
        end = np.full((len(tokens_NT), 1), self.prompt_length)
        if self.marker:
            is_marker = tokens_NT == self.codes[self.marker]
            end = np.where(is_marker.any(1), is_marker.argmax(1) + 1, 0)[:, None]
        return np.arange(self.length) < end

    def read_split(self, split: str) -> np.ndarray | None:
        """Returns all tokens [N, T] of a split, if they come from files."""
        del split
        return None

    def join(self, *parts: np.ndarray | str) -> np.ndarray:
        """Returns [N, T]: arrays [N, t], and words that are the same in every row."""
        count = next(len(part) for part in parts if not isinstance(part, str))
        column = lambda word: np.full((count, 1), self.codes[word])
        return np.concatenate(
            [column(p) if isinstance(p, str) else p for p in parts], 1
        )

    def judge(
        self,
        tokens_NT: np.ndarray,
        reference_NT: np.ndarray,
        prompt_mask_NT: np.ndarray,
    ) -> Judgement:
        """Returns {name: [N]} about generated sequences; "accuracy" is the main one.

        By default: whether each row equals the reference, and the share of its
        generated tokens that do.
        """
        right_NT = (tokens_NT == reference_NT) | prompt_mask_NT
        num_missing_N = np.maximum((~prompt_mask_NT).sum(1), 1)
        num_wrong_N = (~right_NT).sum(1)
        return {
            "accuracy": num_wrong_N == 0,
            "token_accuracy": 1 - num_wrong_N / num_missing_N,
        }

    def text(self, tokens_T: np.ndarray) -> str:
        """Returns a sequence in words."""
        return self.separator.join(self.words[token] for token in tokens_T)

    def plot(
        self,
        path: pathlib.Path,
        tokens_NT: np.ndarray,
        reference_NT: np.ndarray,
        prompt_mask_NT: np.ndarray,
    ) -> None:
        """Writes a PNG of generated sequences: `tiles`, or words by `KINDS`.

        Every word that is generated counts as right in a row that the judge accepts.
        """
        verdict = self.judge(tokens_NT, reference_NT, prompt_mask_NT)
        if shown := self.tiles(verdict, tokens_NT, reference_NT):
            return pictures.tiles(path, shown, self.caption(verdict))
        right_NT = (tokens_NT == reference_NT) | verdict["accuracy"][:, None]
        kind_NT = np.where(prompt_mask_NT, 0, np.where(right_NT, 1, 2))
        rows = [
            [(self.words[t], KINDS[kind][1]) for t, kind in zip(*row, strict=True)]
            for row in zip(tokens_NT, kind_NT, strict=True)
        ]
        return pictures.words(path, rows, self.caption(verdict))

    def tiles(
        self, verdict: Judgement, tokens_NT: np.ndarray, reference_NT: np.ndarray
    ) -> list[pictures.Tile]:
        """Returns a picture of each sequence; none to have its words shown."""
        del verdict, tokens_NT, reference_NT
        return []

    def caption(self, verdict: Judgement) -> pictures.Caption:
        """Returns the caption of a picture of judged sequences."""
        right_N = verdict["accuracy"]
        about = f"{int(right_N.sum())} of {len(right_N)} right: {self.rule}."
        title = f"{self.config.name}: {self.shows}"
        return pictures.Caption(title, about, self.legend)
