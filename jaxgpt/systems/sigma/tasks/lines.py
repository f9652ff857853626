"""A task from two text files: a sequence a line, given what stands before a TAB."""

from __future__ import annotations

import functools
import pathlib

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.config import user_path
from jaxgpt.errors import UserError
from jaxgpt.systems.sigma.tasks.base import CharacterTask

END = "\n"


class Lines(CharacterTask):
    """`task.path` is TRAIN,VAL; lines are filled up to the longest of both."""

    distinct = False

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        names = self.config.path.split(",")
        if len(names) != 2:
            raise UserError(
                "task.path of file names two texts, TRAIN,VAL: not "
                f"'{self.config.path}'"
            )
        self.paths = {
            split: user_path(name)
            for split, name in zip(("train", "val"), names, strict=True)
        }
        every = [line for split in self.paths for line in self.lines(split)]
        self.length = max(map(len, every)) + 1
        self.alphabet = END + "".join(sorted(set("".join(every))))

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """Both texts."""
        return tuple(self.paths.values())

    @functools.cache  # noqa: B019 - a task lives as long as its run
    def lines(self, split: str) -> list[str]:
        """Returns the lines of a text; UserError where it cannot be read."""
        path = self.paths[split]
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"task.path: '{path}' cannot be read: {error}") from None
        if not any(lines):
            raise UserError(f"task.path: '{path}' has no lines")
        return [line for line in lines if line]

    def read(self, split: str):
        """Returns the lines of a split as tokens; given is up to the first TAB."""
        codes = {character: i for i, character in enumerate(self.alphabet)}
        lines = self.lines(split)
        tokens = np.zeros((len(lines), self.length), np.int64)
        prompt_mask = np.zeros(tokens.shape, bool)
        for row, line in enumerate(lines):
            tokens[row, : len(line)] = [codes[c] for c in line]
            prompt_mask[row, : line.find("\t") + 1] = True
        return tokens, prompt_mask

    def text(self, tokens_T: np.ndarray) -> str:
        """Returns the characters before the end."""
        return super().text(tokens_T).partition(END)[0]
