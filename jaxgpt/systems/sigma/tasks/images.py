"""Images: squares described in words, and handwritten digits."""

from __future__ import annotations

import gzip
import itertools
import pathlib
import struct

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.config import user_path
from jaxgpt.errors import UserError
from jaxgpt.systems.sigma.tasks import pictures
from jaxgpt.systems.sigma.tasks.base import Judgement, Task

COLOURS = {
    "white": (255, 255, 255),
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (140, 50, 170),
    "orange": (250, 140, 30),
    "cyan": (60, 200, 210),
    "brown": (130, 80, 40),
    "black": (20, 20, 20),
}
PALETTE = np.array(list(COLOURS.values()))
RELATIONS = ("there", "top", "bottom", "left", "right")
PAIRS = ("above", "below", "left_of", "right_of")
MOST_SQUARES = 5


class Picoclvr(Task):
    """A few squares on a grid, after words that are true of them.

    A property is three tokens: a colour, a relation, and another colour or nothing;
    `task.length` of them or fewer are given. Asked for is an image that has them all.
    """

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        c = self.config
        most = len(COLOURS) - 1
        self.check(2 <= c.colors <= most, "colors", f"from 2 to {most}")
        if c.height * c.width < MOST_SQUARES:
            raise UserError(
                f"a grid of {c.height} x {c.width} has no room for {MOST_SQUARES} "
                "squares: enlarge task.height or task.width"
            )
        # White is the first colour: the background, and in a property no second colour.
        self.words = [*list(COLOURS)[: c.colors + 1], *RELATIONS, *PAIRS]
        self.first_relation = c.colors + 1
        most = len(self.all_properties())
        self.check(
            c.length <= most,
            "length",
            f"<= {most}, all properties of {c.colors} colors",
        )
        self.prompt_length = 3 * c.length
        self.length = self.prompt_length + c.height * c.width

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws images, and for each some of all that is true of it."""
        c, cells = self.config, self.length - self.prompt_length
        most = min(MOST_SQUARES, c.colors)
        place = rng.random((count, cells)).argsort(1)[:, :most]
        colour = 1 + rng.random((count, c.colors)).argsort(1)[:, :most]
        squares = rng.integers(1, most + 1, (count, 1))
        colour = np.where(np.arange(most) < squares, colour, 0)
        image = np.zeros((count, cells), np.int64)
        np.put_along_axis(image, place, colour, 1)
        every = self.all_properties()
        true_NP = self.holds(image, np.broadcast_to(every, (count, *every.shape)))
        chance = np.where(true_NP, rng.random(true_NP.shape), -1)
        chosen = chance.argsort(1)[:, ::-1][:, : c.length]
        asked = rng.integers(1, c.length + 1, (count, 1))
        asked = np.minimum(asked, true_NP.sum(1, keepdims=True))
        kept = np.arange(c.length) < asked
        caption = np.where(kept[..., None], every[chosen], 0).reshape(count, -1)
        return np.concatenate([caption, image], 1)

    def all_properties(self) -> np.ndarray:
        """Returns every property there can be, tokens [P, 3]."""
        colours, first = range(1, self.config.colors + 1), self.first_relation
        alone = [(a, first + r, 0) for a in colours for r in range(len(RELATIONS))]
        first += len(RELATIONS)
        two = itertools.permutations(colours, 2)
        pairs = [(a, first + r, b) for a, b in two for r in range(len(PAIRS))]
        return np.array(alone + pairs)

    def holds(self, image_NC: np.ndarray, properties_NP3: np.ndarray) -> np.ndarray:
        """Returns which properties are true of images, bool [N, P].

        Nothing is true of a colour that is absent; of one that is there twice, the
        first square counts.
        """
        c = self.config
        colours = np.arange(c.colors + 1)
        is_colour = image_NC[:, None] == colours[:, None]
        there, place = is_colour.any(2), is_colour.argmax(2)
        row, column = np.divmod(place, c.width)
        a, relation, b = np.moveaxis(properties_NP3, 2, 0)
        of = lambda array, index: np.take_along_axis(array, index, 1)
        ra, ca, rb, cb = of(row, a), of(column, a), of(row, b), of(column, b)
        h, w = c.height, c.width
        alone = [ra < h // 3, ra >= h - h // 3, ca < w // 3, ca >= w - w // 3]
        pairs = [ra < rb, ra > rb, ca < cb, ca > cb]
        kind = relation - self.first_relation
        true = np.choose(kind.clip(0), [np.ones_like(ra, bool), *alone, *pairs])
        return true & of(there, a) & ((b == 0) | of(there, b)) & (a > 0)

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Has the image all properties (accuracy); and what share of them."""
        prompt = slice(0, self.prompt_length)
        properties = reference_NT[:, prompt].reshape(len(tokens_NT), -1, 3)
        image = tokens_NT[:, self.prompt_length :]
        proper = (image <= self.config.colors).all(1)
        image = np.minimum(image, self.config.colors)
        given = properties[..., 0] > 0
        true = self.holds(
            image, np.where(given[..., None], properties, [1, self.first_relation, 0])
        )
        share = (true & given).sum(1) / given.sum(1)
        return {"accuracy": proper & (share == 1), "properties": share * proper}

    def text(self, tokens_T: np.ndarray) -> str:
        """Returns the properties, then the rows of the image by colours' letters."""
        words, width = [self.words[token] for token in tokens_T], self.config.width
        properties = [words[i : i + 3] for i in range(0, self.prompt_length, 3)]
        lines = [
            "; ".join(
                " ".join(w for w in p if w != "white")
                for p in properties
                if p[0] != "white"
            )
        ]
        cells = ["." if w == "white" else w[:2] for w in words[self.prompt_length :]]
        for i in range(0, len(cells), width):
            lines.append(" ".join(f"{cell:2}" for cell in cells[i : i + width]))
        return "\n".join(lines)

    def plot(self, path: pathlib.Path, tokens_NT, reference_NT, prompt_mask_NT) -> None:
        """Plots the images, in green frames where all properties hold, else red."""
        c, verdict = self.config, self.judge(tokens_NT, reference_NT, prompt_mask_NT)
        image = tokens_NT[:, self.prompt_length :].clip(0, c.colors)
        rgb = PALETTE[image].reshape(-1, c.height, c.width, 3)
        pictures.tiles(path, rgb, pictures.frames(verdict["accuracy"]))


FILES = {"train": "train-images-idx3-ubyte", "val": "t10k-images-idx3-ubyte"}
GREYS = 16


class MNIST(Task):
    """Handwritten digits of 28 x 28, in sixteen greys; nothing is given.

    Read from the IDX files in the folder `task.path`, compressed or not.
    """

    words = tuple(map(str, range(GREYS)))
    side = 28
    length = side * side
    distinct = False

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.paths = {split: self.find(name) for split, name in FILES.items()}

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """Both IDX files."""
        return tuple(self.paths.values())

    def find(self, name: str) -> pathlib.Path:
        """Returns the path of a file of the folder; UserError where it is missing."""
        folder = user_path(self.config.path)
        for path in (folder / name, folder / f"{name}.gz"):
            if self.config.path and path.is_file():
                return path
        raise UserError(
            f"task.path '{self.config.path}' must be a folder with {name} or {name}.gz"
        )

    def read_split(self, split: str) -> np.ndarray:
        """Returns the images of a split as tokens."""
        path = self.paths[split]
        opened = gzip.open if path.suffix == ".gz" else open
        try:
            with opened(path, "rb") as stream:
                magic, count, height, width = struct.unpack(">4i", stream.read(16))
                pixels = np.frombuffer(stream.read(), np.uint8)
        except (OSError, EOFError, struct.error) as error:
            raise UserError(f"'{path}' is not an IDX file: {error}") from None
        if (magic, height, width) != (2051, self.side, self.side):
            raise UserError(
                f"'{path}' is not an IDX file of {self.side} x {self.side} images"
            )
        if len(pixels) != count * self.length:
            raise UserError(f"'{path}' is truncated: its header says {count} images")
        return pixels.reshape(count, self.length) // (256 // GREYS)

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Returns the share of ink: nothing here can tell what a digit is."""
        return {"ink": tokens_NT.mean(1) / (GREYS - 1)}

    def plot(self, path: pathlib.Path, tokens_NT, reference_NT, prompt_mask_NT) -> None:
        """Plots the images, dark on light."""
        ink = tokens_NT.reshape(-1, self.side, self.side, 1) * (255 // (GREYS - 1))
        frames = np.full((len(ink), 3), 200)
        pictures.tiles(path, (255 - ink).repeat(3, -1), frames, columns=12, scale=2)
