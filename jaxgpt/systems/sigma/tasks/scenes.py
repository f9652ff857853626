"""Statements about objects on a grid, true or false."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.systems.sigma.tasks import pictures
from jaxgpt.systems.sigma.tasks.base import Task
from jaxgpt.systems.sigma.tasks.images import COLOURS, PAIRS, pair_relations

SHAPES = ("circle", "square", "triangle", "diamond")
MOST_OBJECTS = 4  # The smallest grid, of 2 x 2, has room for them.


class Scene(Task):
    """A grid with objects on it, then statements, each with whether it is true.

    A cell is empty or has an object, a colour with a shape; no two are the same. A
    statement is two objects and a relation, then its answer: true as often as false.
    There are `task.length` statements.
    """

    shows = "which statements about a grid are true"
    rule = "every answer, below the grid; wrong ones are red"
    legend = (
        *((f"{shape[0].upper()}: {shape}", (255, 255, 255), True) for shape in SHAPES),
        *pictures.FRAMES,
    )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        c = self.config
        most = len(COLOURS) - 1
        self.check(1 <= c.colors <= most, "colors", f"from 1 to {most}")
        self.cells = c.height * c.width
        self.length = self.cells + 4 * c.length
        colours = list(COLOURS)[1 : c.colors + 1]
        objects = [f"{colour}-{shape}" for colour in colours for shape in SHAPES]
        self.words = [*objects, ".", *PAIRS, "false", "true"]

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws objects, and statements whose truth is drawn first."""
        c, each = self.config, np.arange(count)
        draw = lambda n: rng.random((count, n)).argsort(1)[:, :MOST_OBJECTS]
        kind, cell = draw(c.colors * len(SHAPES)), draw(self.cells)
        row, column = np.divmod(cell, c.width)
        number = rng.integers(2, MOST_OBJECTS + 1, count)
        there = np.arange(MOST_OBJECTS) < number[:, None]
        grid = np.full((count, self.cells), self.codes["."])
        np.put_along_axis(grid, cell, np.where(there, kind, self.codes["."]), 1)
        parts = [grid]
        for _ in range(c.length):
            a = rng.integers(0, number)
            b = (a + rng.integers(1, number)) % number
            places = (axis[each, x] for x in (a, b) for axis in (row, column))
            holds = np.stack(pair_relations(*places), 1)
            truth = rng.random(count) < 0.5
            # Of objects in two cells some relation holds, and its converse does not.
            fits = holds == truth[:, None]
            relation = self.codes[PAIRS[0]] + (fits * rng.random(fits.shape)).argmax(1)
            answer = self.codes["false"] + truth
            parts.append(np.stack([kind[each, a], relation, kind[each, b], answer], 1))
        return np.concatenate(parts, 1)

    def prompt_mask(self, tokens_NT: np.ndarray) -> np.ndarray:
        """Asks for the last token of each statement."""
        t = np.arange(self.length) - self.cells
        return np.broadcast_to((t < 0) | (t % 4 < 3), tokens_NT.shape)

    def tiles(self, verdict, tokens_NT, reference_NT) -> list[pictures.Tile]:
        """Returns the objects by colour and the first letter of their shape."""
        c, shown = self.config, []
        for n, tokens_T in enumerate(tokens_NT):
            colours = np.full((self.cells, 3), 255)
            letters = np.full(self.cells, "")
            objects, true = self.parts(reference_NT[n])
            for cell, word in enumerate(objects):
                if word != ".":
                    colour, _, shape = word.partition("-")
                    colours[cell], letters[cell] = COLOURS[colour], shape[0].upper()
            grid = colours.reshape(c.height, c.width, 3)
            letters = letters.reshape(c.height, c.width)
            tile = pictures.grid(grid, verdict["accuracy"][n], letters)
            for ours, theirs in zip(self.parts(tokens_T)[1], true, strict=True):
                ink = pictures.RIGHT if ours == theirs else pictures.WRONG
                tile.notes.append((f"{' '.join(ours[:3])}: {ours[3]}", ink))
            shown.append(tile)
        return shown

    def parts(self, tokens_T: np.ndarray) -> tuple[list[str], list[list[str]]]:
        """Returns the cells and the statements of a sequence, in words."""
        words, end = [self.words[token] for token in tokens_T], self.cells
        return words[:end], [words[i : i + 4] for i in range(end, len(words), 4)]
