"""A task from two text files: a sequence per line, whose prompt ends with a TAB."""

from __future__ import annotations

import functools
import pathlib

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.config import user_path
from jaxgpt.data import reading
from jaxgpt.errors import UserError
from jaxgpt.systems.sigma.tasks.base import Task

END = "\n"


class Lines(Task):
    """`task.path` is TRAIN,VAL; lines are filled up to the longest of both."""

    shows = "the rest of a line"
    rule = "the line as it is in the text"
    separator = ""
    distinct = False

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        names = self.config.path.split(",")
        self.check(len(names) == 2, "path", "the names of two texts, TRAIN,VAL")
        self.paths = dict(zip(("train", "val"), map(user_path, names), strict=True))
        every = [line for split in self.paths for line in self.lines(split)]
        self.length = max(map(len, every)) + 1
        self.words = END + "".join(sorted(set("".join(every))))
        self.marker = "\t" if "\t" in self.words else ""

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """Both texts."""
        return tuple(self.paths.values())

    @functools.cache  # noqa: B019 - a task lives as long as its run
    def lines(self, split: str) -> list[str]:
        """Returns the lines of a text; UserError if it cannot be read."""
        path = self.paths[split]
        try:
            lines = list(reading.iter_lines([path], normalize="newlines"))
        except OSError as error:
            raise UserError(f"task.path: '{path}' cannot be read: {error}") from None
        if not any(lines):
            raise UserError(f"task.path: '{path}' has no lines")
        return [line for line in lines if line]

    def read_split(self, split: str) -> np.ndarray:
        """Returns the lines of a split as tokens."""
        rows = [line.ljust(self.length, END) for line in self.lines(split)]
        return np.array([[self.codes[c] for c in row] for row in rows])

    def text(self, tokens_T: np.ndarray) -> str:
        """Returns the characters before the end."""
        return super().text(tokens_T).partition(END)[0]
