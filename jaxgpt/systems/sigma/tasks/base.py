"""A task: sequences, what is given of each, a judge, and a picture."""

from __future__ import annotations

import pathlib

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.systems.sigma.tasks import pictures

Judgement = dict[str, np.ndarray]


def after(tokens_NT: np.ndarray, marker: int) -> np.ndarray:
    """Returns true behind the first marker of each row, [N, T]."""
    seen = tokens_NT == marker
    return np.cumsum(seen, 1) - seen > 0


class Task:
    """What a σ-GPT learns beside text.

    Attributes:
      vocab_size: different tokens.
      length: tokens of a sequence, given ones included.
      distinct: whether no sequence may come twice, in either split.
    """

    vocab_size: int
    length: int
    distinct = True

    def __init__(self, config: ConfigDict):
        """Takes what it needs of `config.task`; UserError for what cannot be."""
        self.config = config.task

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """The files that its sequences are read from."""
        return ()

    def constants(self) -> np.random.Generator:
        """Returns what draws all that both splits share."""
        return np.random.default_rng((self.config.data_seed, 1))

    def generate(
        self, rng: np.random.Generator, count: int, split: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws sequences.

        Returns:
          (tokens [count, T], integers; known [count, T], true where a token is given).
        """
        raise NotImplementedError

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns all sequences of a split, where they come from files."""
        del split
        return None

    def judge(
        self,
        tokens_NT: np.ndarray,
        reference_NT: np.ndarray,
        prompt_mask_NT: np.ndarray,
    ) -> Judgement:
        """Returns {name: [N]} about generated sequences; "accuracy" is the main one.

        Unless a task knows better: is each row what the reference is, and the share of
        its generated tokens that are.
        """
        right_NT = (tokens_NT == reference_NT) | prompt_mask_NT
        asked_N = np.maximum((~prompt_mask_NT).sum(1), 1)
        wrong_N = (~right_NT).sum(1)
        return {"accuracy": wrong_N == 0, "token_accuracy": 1 - wrong_N / asked_N}

    def text(self, tokens_T: np.ndarray) -> str:
        """Returns a sequence to read."""
        return " ".join(self.word(token) for token in tokens_T)

    def word(self, token: int) -> str:
        """Returns a token to read."""
        return str(token)

    def draw(
        self,
        path: pathlib.Path,
        tokens_NT: np.ndarray,
        reference_NT: np.ndarray,
        prompt_mask_NT: np.ndarray,
    ) -> None:
        """Writes a PNG of generated sequences: given black, right green, wrong red.

        All that was generated of a row is right where the judge says so.
        """
        verdict = self.judge(tokens_NT, reference_NT, prompt_mask_NT)
        wrong_NT = (tokens_NT != reference_NT) & ~verdict["accuracy"][:, None]
        rows = []
        for tokens_T, wrong_T, prompt_mask_T in zip(
            tokens_NT, wrong_NT, prompt_mask_NT, strict=True
        ):
            colours = np.where(
                prompt_mask_T, "black", np.where(wrong_T, "red", "green")
            )
            words = [self.word(token) for token in tokens_T]
            rows.append(list(zip(words, colours, strict=True)))
        pictures.words(path, rows)


class CharacterTask(Task):
    """A task whose tokens are characters."""

    alphabet: str

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """As many as the alphabet has."""
        return len(self.alphabet)

    def word(self, token: int) -> str:
        """Returns the character."""
        return self.alphabet[token]

    def text(self, tokens_T: np.ndarray) -> str:
        """Returns the characters in a row."""
        return "".join(self.alphabet[token] for token in tokens_T)
