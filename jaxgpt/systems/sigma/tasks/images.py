"""Images: squares described in words, and handwritten digits."""

from __future__ import annotations

import copy
import functools
import gzip
import itertools
import math
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
# A colour, and relations that it is never in where training may not show all.
HELD_OUT = ("green", ("left", "right", "left_of", "right_of"))


def pair_relations(
    row_a: np.ndarray, column_a: np.ndarray, row_b: np.ndarray, column_b: np.ndarray
) -> list[np.ndarray]:
    """Returns whether each of `PAIRS` is true of places a and b."""
    return [row_a < row_b, row_a > row_b, column_a < column_b, column_a > column_b]


class Picoclvr(Task):
    """A few squares on a grid, after words that are true of them.

    A property is three tokens: a colour, a relation, and another colour or nothing;
    `task.length` of them or fewer are given, for an image that has them all. With
    `task.unseen` those of HELD_OUT are only in validation, where there are no others.
    """

    shows = "images that have given properties"
    rule = "the image has every property below it; red ones it lacks"
    legend = pictures.FRAMES
    can_be_unseen = True

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
        self.properties = self.all_properties()
        most = len(self.properties)
        self.check(
            c.length <= most,
            "length",
            f"<= {most}, all properties of {c.colors} colors",
        )
        self.prompt_length = 3 * c.length
        self.length = self.prompt_length + c.height * c.width

    def for_split(self, split: str) -> Task:
        """See `Task.for_split`."""
        if not self.config.unseen:
            return self
        made, colour = copy.copy(self), self.codes[HELD_OUT[0]]
        sideways = [self.codes[word] for word in HELD_OUT[1]]
        a, relation, b = self.properties.T
        held_out = np.isin(relation, sideways) & ((a == colour) | (b == colour))
        made.properties = self.properties[held_out == (split != "train")]
        return made

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws images, and for each some of all that is true of it.

        Images of which nothing is true are left out.
        """
        c, cells = self.config, self.length - self.prompt_length
        most = min(MOST_SQUARES, c.colors)
        place = rng.random((count, cells)).argsort(1)[:, :most]
        colour = 1 + rng.random((count, c.colors)).argsort(1)[:, :most]
        squares = rng.integers(1, most + 1, (count, 1))
        colour = np.where(np.arange(most) < squares, colour, 0)
        image = np.zeros((count, cells), np.int64)
        np.put_along_axis(image, place, colour, 1)
        every = self.properties
        true_NP = self.holds(image, np.broadcast_to(every, (count, *every.shape)))
        image, true_NP = image[true_NP.any(1)], true_NP[true_NP.any(1)]
        count = len(image)
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
        pairs = pair_relations(ra, ca, rb, cb)
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
        width, start = self.config.width, self.prompt_length
        properties = tokens_T[:start].reshape(-1, 3)
        lines = ["; ".join(self.property_text(p) for p in properties if p[0])]
        image = [self.words[token] for token in tokens_T[start:]]
        cells = ["." if word == "white" else word[:2] for word in image]
        for i in range(0, len(cells), width):
            lines.append(" ".join(f"{cell:2}" for cell in cells[i : i + width]))
        return "\n".join(lines)

    def property_text(self, tokens_3: np.ndarray) -> str:
        """Returns a property in words."""
        return " ".join(self.words[token] for token in tokens_3 if token)

    def tiles(self, verdict, tokens_NT, reference_NT) -> list[pictures.Tile]:
        """Returns the images, below each its properties."""
        c, N, start = self.config, len(tokens_NT), self.prompt_length
        image = tokens_NT[:, start:].reshape(N, c.height, c.width)
        cells = PALETTE[image.clip(0, c.colors)]
        marks = np.where(image > c.colors, "?", "")  # Values that are not cells.
        properties = reference_NT[:, :start].reshape(N, -1, 3)
        true = self.holds(image.reshape(N, -1).clip(0, c.colors), properties)
        shown = list(map(pictures.grid, cells, verdict["accuracy"], marks))
        for tile, each, holds in zip(shown, properties, true, strict=True):
            for words, right in zip(each, holds, strict=True):
                if words[0]:
                    colour = pictures.RIGHT if right else pictures.WRONG
                    tile.notes.append((self.property_text(words), colour))
        return shown


IMAGES = {"train": "train-images-idx3-ubyte", "val": "t10k-images-idx3-ubyte"}
LABELS = {"train": "train-labels-idx1-ubyte", "val": "t10k-labels-idx1-ubyte"}
GREYS, CLASSES = 16, 10
# The share of real images that is typical; how many images the judge compares.
TYPICAL, MOST_COMPARED, MOST_HELD_OUT = 0.95, 10_000, 1000


class MNIST(Task):
    """Handwritten digits, or other images of ten classes, in sixteen greys.

    They are read from the IDX files in the folder `task.path`, compressed or not.
    Nothing is given, or with `task.class_conditional` the class of the image.

    The judge knows the nearest training image, in Euclidean distance. An image is
    typical if it is no further away than TYPICAL of the images held out are from
    theirs; if a class is given, it must be that of the nearest image.
    """

    shows = "images"
    legend = pictures.FRAMES
    distinct = False

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.is_conditional = self.config.class_conditional
        names = [IMAGES, LABELS] if self.is_conditional else [IMAGES]
        self.paths = [{s: self.find(name) for s, name in n.items()} for n in names]
        self.shape = self.images("train").shape[1:]
        self.prompt_length = int(self.is_conditional)
        self.length = self.prompt_length + math.prod(self.shape)
        classes = [f"class{n}" for n in range(CLASSES)] if self.is_conditional else []
        self.words = [*map(str, range(GREYS)), *classes]
        self.rule = "no further from the images learned from than real ones are"
        if self.is_conditional:
            self.shows = "images of a class that is given"
            self.rule = "the nearest image of those learned from is of that class"

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """The IDX files."""
        return tuple(path for paths in self.paths for path in paths.values())

    def find(self, name: str) -> pathlib.Path:
        """Returns the path of a file of the folder; UserError if it is missing."""
        folder = user_path(self.config.path)
        for path in (folder / name, folder / f"{name}.gz"):
            if self.config.path and path.is_file():
                return path
        raise UserError(
            f"task.path '{self.config.path}' must be a folder with {name} or {name}.gz"
        )

    @functools.cache  # noqa: B019 - a task lives as long as its run
    def images(self, split: str) -> np.ndarray:
        """Returns the images of a split, their greys [N, H, W]."""
        return read_idx(self.paths[0][split], 3) // (256 // GREYS)

    @functools.cache  # noqa: B019
    def labels(self, split: str) -> np.ndarray:
        """Returns the classes of a split [N]; UserError unless each image has one."""
        path = self.paths[1][split]
        labels_N, count = read_idx(path, 1), len(self.images(split))
        if len(labels_N) != count or labels_N.max() >= CLASSES:
            raise UserError(
                f"'{path}' must have a class from 0 to {CLASSES - 1} for each of "
                f"{count} images"
            )
        return labels_N

    def read_split(self, split: str) -> np.ndarray:
        """Returns the images of a split as tokens, after their classes if given."""
        images_NHW = self.images(split)
        if images_NHW.shape[1:] != self.shape:
            h, w = self.shape
            raise UserError(f"'{self.paths[0][split]}' has no images of {h} x {w}")
        tokens_NT = images_NHW.reshape(len(images_NHW), -1)
        if self.is_conditional:
            tokens_NT = np.c_[GREYS + self.labels(split), tokens_NT]
        return tokens_NT

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Is the class the given one, or the image typical (accuracy); copies; ink.

        `copy`: it is an image learned from.
        """
        image_NC = tokens_NT[:, self.prompt_length :]
        proper = (image_NC < GREYS).all(1)
        nearest_N, distance_N = self.nearest(image_NC)
        typical = proper & (distance_N <= self.typical_distance)
        right = typical
        if self.is_conditional:
            asked_N = reference_NT[:, 0] - GREYS
            right = proper & (self.labels("train")[nearest_N] == asked_N)
        ink = image_NC.mean(1) / (GREYS - 1)
        return {
            "accuracy": right, "typical": typical, "copy": distance_N == 0, "ink": ink,
        }  # fmt: skip

    def nearest(self, image_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns which training image is nearest, and its squared distance."""
        known_KC = self.images("train")[:MOST_COMPARED].reshape(-1, image_NC.shape[1])
        known_KC, image_NC = known_KC.astype(np.float32), image_NC.astype(np.float32)
        # |a|^2 + |b|^2 - 2 a b: whole numbers, small enough for float32 to be exact.
        square_NK = (image_NC**2).sum(1)[:, None] + (known_KC**2).sum(1)
        square_NK -= 2 * image_NC @ known_KC.T
        return square_NK.argmin(1), square_NK.min(1)

    @functools.cached_property
    def typical_distance(self) -> float:
        """The squared distance that TYPICAL of the held-out images do not exceed."""
        held_out = self.images("val")[:MOST_HELD_OUT]
        _, distance_N = self.nearest(held_out.reshape(len(held_out), -1))
        return float(np.quantile(distance_N, TYPICAL))

    def tiles(self, verdict, tokens_NT, reference_NT) -> list[pictures.Tile]:
        """Returns the images, dark on light; below them the classes, if given."""
        image_NC = tokens_NT[:, self.prompt_length :]
        dark = 255 // (GREYS - 1) * np.minimum(image_NC, GREYS - 1)
        pixels = (255 - dark).reshape(-1, *self.shape, 1).repeat(3, -1)
        size = max(2, min(20, 224 // max(self.shape)))
        shown = [
            pictures.grid(image, right, size=size)
            for image, right in zip(pixels, verdict["accuracy"], strict=True)
        ]
        if self.is_conditional:
            nearest_N, _ = self.nearest(image_NC)
            asked_N = reference_NT[:, 0] - GREYS
            seen_N = self.labels("train")[nearest_N]
            for tile, asked, seen in zip(shown, asked_N, seen_N, strict=True):
                tile.notes.append((f"asked {asked}, judged {seen}", (0, 0, 0)))
        return shown


def read_idx(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """Returns the bytes of an IDX file as an array with this number of dimensions.

    Raises:
      UserError: if it is another file, or truncated.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as stream:
            header = f">{1 + dimensions}i"
            magic, *shape = struct.unpack(header, stream.read(struct.calcsize(header)))
            values = np.frombuffer(stream.read(), np.uint8)
    except (OSError, EOFError, struct.error) as error:
        raise UserError(f"'{path}' is not an IDX file: {error}") from None
    kind = "images" if dimensions == 3 else "labels"
    if magic != 0x800 + dimensions or 0 in shape:
        raise UserError(f"'{path}' is not an IDX file of {kind}")
    if len(values) != math.prod(shape):
        raise UserError(f"'{path}' is truncated: its header says {shape[0]} {kind}")
    return values.reshape(shape)
