"""Images: squares described in words, and handwritten digits."""

from __future__ import annotations

import gzip
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
        if not 2 <= c.colors <= len(COLOURS) - 1:
            raise UserError(
                f"task.colors is 2 .. {len(COLOURS) - 1} for picoclvr: not {c.colors}"
            )
        if c.height * c.width < MOST_SQUARES:
            raise UserError(
                f"a grid of {c.height} x {c.width} has no room for {MOST_SQUARES} "
                "squares: enlarge task.height or task.width"
            )
        # White is the first colour: the background, and no second colour in a property.
        self.words = [*list(COLOURS)[: c.colors + 1], *RELATIONS, *PAIRS]
        self.vocab_size = len(self.words)
        self.first_relation = c.colors + 1
        self.properties = c.length
        if c.length > len(self.all_properties()):
            raise UserError(
                f"task.length {c.length} properties are more than "
                f"{len(self.all_properties())}, which is all that can be said of "
                f"{c.colors} colours"
            )
        self.length = 3 * self.properties + c.height * c.width

    def generate(self, rng: np.random.Generator, count: int, split: str):
        """Draws images, and for each some of all that is true of it."""
        del split
        c, properties = self.config, self.properties
        cells = c.height * c.width
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
        chosen = chance.argsort(1)[:, ::-1][:, :properties]
        asked = rng.integers(1, properties + 1, (count, 1))
        asked = np.minimum(asked, true_NP.sum(1, keepdims=True))
        kept = np.arange(properties) < asked
        caption = np.where(kept[..., None], every[chosen], 0).reshape(count, -1)
        prompt_mask = np.arange(self.length) < np.full((count, 1), 3 * properties)
        return np.concatenate([caption, image], 1), prompt_mask

    def all_properties(self) -> np.ndarray:
        """Returns every property there can be, tokens [P, 3]."""
        colours, first = range(1, self.config.colors + 1), self.first_relation
        alone = [(a, first + r, 0) for a in colours for r in range(len(RELATIONS))]
        pairs = [
            (a, first + len(RELATIONS) + r, b)
            for a in colours
            for b in colours
            if a != b
            for r in range(len(PAIRS))
        ]
        return np.array(alone + pairs)

    def holds(self, image_NC: np.ndarray, properties_NP3: np.ndarray) -> np.ndarray:
        """Returns which properties are true of images, bool [N, P].

        True of each colour that is not there is nothing; of one that is there twice,
        the first square counts.
        """
        c = self.config
        colours = np.arange(c.colors + 1)
        is_colour = image_NC[:, None] == colours[:, None]
        there, place = is_colour.any(2), is_colour.argmax(2)
        row, column = np.divmod(place, c.width)
        a, relation, b = np.moveaxis(properties_NP3, 2, 0)
        of = lambda array, index: np.take_along_axis(array, index, 1)
        ra, ca, rb, cb = of(row, a), of(column, a), of(row, b), of(column, b)
        conditions = [
            np.ones_like(ra, bool),
            ra < c.height // 3,
            ra >= c.height - c.height // 3,
            ca < c.width // 3,
            ca >= c.width - c.width // 3,
            ra < rb,
            ra > rb,
            ca < cb,
            ca > cb,
        ]
        kind = relation - self.first_relation
        true = np.choose(kind.clip(0), conditions)
        return true & of(there, a) & ((b == 0) | of(there, b)) & (a > 0)

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Has the image all properties (accuracy); and what share of them."""
        del prompt_mask_NT
        N, words = len(tokens_NT), 3 * self.properties
        properties = reference_NT[:, :words].reshape(N, self.properties, 3)
        image = tokens_NT[:, words:]
        proper = (image <= self.config.colors).all(1)
        image = np.minimum(image, self.config.colors)
        given = properties[..., 0] > 0
        true = self.holds(
            image, np.where(given[..., None], properties, [1, self.first_relation, 0])
        )
        share = (true & given).sum(1) / given.sum(1)
        return {"accuracy": proper & (share == 1), "properties": share * proper}

    def word(self, token: int) -> str:
        """Returns a colour or a relation."""
        return self.words[token]

    def text(self, tokens_T: np.ndarray) -> str:
        """Returns the properties, then the rows of the image by colours' letters."""
        words = [self.word(token) for token in tokens_T]
        properties = [words[i : i + 3] for i in range(0, 3 * self.properties, 3)]
        said = "; ".join(
            " ".join(w for w in p if w != "white")
            for p in properties
            if p[0] != "white"
        )
        cells = ["." if w == "white" else w[:2] for w in words[3 * self.properties :]]
        width = self.config.width
        rows = [cells[i : i + width] for i in range(0, len(cells), width)]
        return "\n".join([said, *(" ".join(f"{c:2}" for c in row) for row in rows)])

    def draw(self, path: pathlib.Path, tokens_NT, reference_NT, prompt_mask_NT) -> None:
        """Draws the images, in green frames where all properties hold, else red."""
        c, right = self.config, self.judge(tokens_NT, reference_NT, prompt_mask_NT)
        image = tokens_NT[:, 3 * self.properties :].clip(0, c.colors)
        rgb = PALETTE[image].reshape(-1, c.height, c.width, 3)
        frames = np.where(right["accuracy"][:, None], (0, 160, 0), (220, 0, 0))
        pictures.tiles(path, rgb, frames)


FILES = {"train": "train-images-idx3-ubyte", "val": "t10k-images-idx3-ubyte"}
GREYS = 16


class MNIST(Task):
    """Handwritten digits of 28 x 28, in sixteen greys; nothing is given.

    Read from the IDX files in the folder `task.path`, compressed or not.
    """

    vocab_size = GREYS
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
            f"task.path '{self.config.path}' is no folder with {name} or {name}.gz"
        )

    def read(self, split: str):
        """Returns the images of a split as tokens."""
        path = self.paths[split]
        opened = gzip.open if path.suffix == ".gz" else open
        try:
            with opened(path, "rb") as stream:
                magic, count, height, width = struct.unpack(">4i", stream.read(16))
                pixels = np.frombuffer(stream.read(), np.uint8)
        except (OSError, EOFError, struct.error) as error:
            raise UserError(f"'{path}' is no IDX file: {error}") from None
        if (magic, height, width) != (2051, self.side, self.side):
            raise UserError(
                f"'{path}' is no IDX file of {self.side} x {self.side} images"
            )
        if len(pixels) != count * self.length:
            raise UserError(f"'{path}' is truncated: {count} images are announced")
        tokens = pixels.reshape(count, self.length) // (256 // GREYS)
        return tokens, np.zeros(tokens.shape, bool)

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Returns how much ink there is: what a digit is, nobody here can tell."""
        del reference_NT, prompt_mask_NT
        return {"ink": tokens_NT.mean(1) / (GREYS - 1)}

    def draw(self, path: pathlib.Path, tokens_NT, reference_NT, prompt_mask_NT) -> None:
        """Draws the images, dark on light."""
        grey = 255 - tokens_NT.reshape(-1, self.side, self.side, 1) * (
            255 // (GREYS - 1)
        )
        frames = np.full((len(grey), 3), 200)
        pictures.tiles(path, grey.repeat(3, -1), frames, columns=12, scale=2)
