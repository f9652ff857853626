"""What the tasks' pictures have in common: a caption, and tiles, axes or words."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import patches
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

SHOWN = 16  # Generated sequences in a picture, at most.
CELL = 24  # Pixels of a cell of a grid.
NARROWEST, WIDEST = 620, 1600  # Pixels; one tile may be wider.
LONGEST_LINE = 130
RIGHT, WRONG, GREY = (0, 160, 0), (220, 0, 0), (120, 120, 120)

Colour = Sequence[float]  # Red, green and blue, 0 .. 255.
Entry = tuple[str, Colour, bool]  # Of a legend; true is a filled square, false a frame.
FRAMES: tuple[Entry, ...] = (("right", RIGHT, False), ("wrong", WRONG, False))
DPI, MARGIN, GAP, FRAME = 100, 16, 14, 5


@dataclasses.dataclass(frozen=True)
class Caption:
    """What stands above a picture: what is shown, what is right, what colours mean."""

    title: str
    about: str = ""
    legend: Sequence[Entry] = ()


@dataclasses.dataclass
class Tile:
    """A sequence of a sheet.

    Attributes:
      pixels: RGB, 0 .. 255, [h, w, 3].
      frame: its colour.
      labels: text in it, centred at (x, y) in pixels.
      notes: lines below it, each with a colour.
    """

    pixels: np.ndarray
    frame: Colour
    labels: list[tuple[float, float, str]] = dataclasses.field(default_factory=list)
    notes: list[tuple[str, Colour]] = dataclasses.field(default_factory=list)


def grid(cells_HWC: np.ndarray, right: bool, words: Any = (), size: int = CELL) -> Tile:
    """Returns a tile of cells [H, W, 3], `size` pixels wide, with words [H, W]."""
    pixels = np.asarray(cells_HWC, np.uint8).repeat(size, 0).repeat(size, 1)
    if size >= CELL:
        lines = pixels[::size], pixels[:, ::size]
        for line in lines:
            line[:] = line * 0.85
    made = Tile(pixels, RIGHT if right else WRONG)
    for (row, column), word in np.ndenumerate(words):
        made.labels.append(((column + 0.5) * size, (row + 0.5) * size, str(word)))
    return made


def strip(parts: Sequence[Tile]) -> Tile:
    """Returns tiles of one size as one, in rows that are no wider than WIDEST."""
    h, w, _ = parts[0].pixels.shape
    columns = min(len(parts), max(1, WIDEST // (w + FRAME)))
    rows = -(-len(parts) // columns)
    size = rows * (h + FRAME) - FRAME, columns * (w + FRAME) - FRAME, 3
    joined = Tile(np.empty(size, np.uint8), parts[0].frame)
    joined.pixels[:] = joined.frame
    for n, part in enumerate(parts):
        top, left = n // columns * (h + FRAME), n % columns * (w + FRAME)
        joined.pixels[top : top + h, left : left + w] = part.pixels
        joined.labels += [(left + x, top + y, word) for x, y, word in part.labels]
    return joined


def tiles(path: pathlib.Path, shown: Sequence[Tile], caption: Caption) -> None:
    """Writes tiles of one size side by side, in their frames, notes below each."""
    h, w, _ = shown[0].pixels.shape
    notes = max(len(tile.notes) for tile in shown) * _height(8)
    note = max((_width(text, 8) for tile in shown for text, _ in tile.notes), default=0)
    step_x, step_y = max(w + 2 * FRAME, note) + GAP, h + 2 * FRAME + notes + GAP
    rows = -(-len(shown) // max(1, (WIDEST - 2 * MARGIN) // step_x))
    columns = -(-len(shown) // rows)
    width, height = columns * step_x - GAP, rows * step_y - GAP
    drawn, top = _page(width, height, caption)
    W, H = drawn.get_size_inches() * DPI
    for n, tile in enumerate(shown):
        x = MARGIN + n % columns * step_x
        y = top + n // columns * step_y
        framed = np.empty((h + 2 * FRAME, w + 2 * FRAME, 3), np.uint8)
        framed[:] = tile.frame
        framed[FRAME:-FRAME, FRAME:-FRAME] = tile.pixels
        # From the lower left corner, where the first row of the array is the lowest.
        drawn.figimage(framed[::-1], x, round(H) - y - len(framed), origin="lower")
        for left, up, word in tile.labels:
            dark = tile.pixels[int(up) - 9, int(left) - 9].mean() < 140
            place = (x + FRAME + left) / W, 1 - (y + FRAME + up) / H
            ink = "white" if dark else "black"
            drawn.text(*place, word, color=ink, size=9, ha="center", va="center")
        for line, (text, colour) in enumerate(tile.notes):
            down = y + len(framed) + _height(8) * line
            _write(drawn, x, down, text, 8, colour)
    drawn.savefig(path, dpi=DPI)


def axes(
    count: int, columns: int, size: tuple[int, int], caption: Caption
) -> tuple[Figure, list[Any]]:
    """Returns a figure and `count` axes of `size` pixels, in `columns` or fewer."""
    rows = -(-count // columns)
    columns = -(-count // rows)
    height = rows * size[1]
    drawn, top = _page(columns * size[0], height, caption)
    H = drawn.get_size_inches()[1] * DPI
    drawn.set_layout_engine("constrained", rect=(0.01, 0, 0.98, 1 - top / H))
    return drawn, [drawn.add_subplot(rows, columns, n + 1) for n in range(count)]


def words(
    path: pathlib.Path, rows: list[list[tuple[str, Colour]]], caption: Caption
) -> None:
    """Writes rows of (word, colour) as lines of text."""
    lines: list[list[tuple[int, str, Colour]]] = []
    for row in rows:
        column = 0
        lines.append([])
        gap = int(any(len(word) > 1 for word, _ in row))
        for word, colour in row:
            if column + len(word) > LONGEST_LINE:
                column = 4
                lines.append([])
            lines[-1].append((column, word, colour))
            column += len(word) + gap
    wide = max((c + len(w) for line in lines for c, w, _ in line), default=1)
    character, height = 8.4, 18  # Pixels, of the 10 point monospaced font.
    drawn, top = _page(character * wide, height * len(lines), caption)
    for number, line in enumerate(lines):
        for column, word, colour in line:
            x, y = MARGIN + character * column, top + height * number
            _write(drawn, x, y, word, 10, colour, family="monospace")
    drawn.savefig(path, dpi=DPI)


def _page(width: float, height: float, caption: Caption) -> tuple[Figure, int]:
    """Returns a figure with its caption, and at how many pixels the rest begins.

    That is `width` x `height` pixels and has margins; the figure is no narrower than
    NARROWEST.
    """
    room = max(width, NARROWEST - 2 * MARGIN)
    W = int(room) + 2 * MARGIN
    lines: list[list[tuple[Entry | None, str, int]]] = []
    for text, size in ((caption.title, 12), (caption.about, 10)):
        lines += [[(None, line, size)] for line in _wrap(text, size, room)]
    if caption.legend:
        lines.append([])
    left = 0.0
    for entry in caption.legend:
        needed = 22 + _width(entry[0], 9) + GAP
        if left and left + needed - GAP > room:
            lines.append([])
            left = 0
        lines[-1].append((entry, entry[0], 9))
        left += needed
    top = MARGIN + sum(_height(line[0][2]) for line in lines) + GAP
    H = top + int(height) + MARGIN
    drawn = Figure(figsize=(W / DPI, H / DPI), dpi=DPI)
    y = float(MARGIN)
    for line in lines:
        left = MARGIN
        for mark, text, size in line:
            if mark:
                _, colour, filled = mark
                rgb = np.divide(colour, 255)
                square = patches.Rectangle(
                    (left / W, 1 - (y + 14) / H), 14 / W, 14 / H, lw=1.5,
                    transform=drawn.transFigure,
                    facecolor=rgb if filled else "none",
                    edgecolor="0.6" if filled else rgb,
                )  # fmt: skip
                drawn.add_artist(square)
                left += 22
            _write(drawn, left, y, text, size, (0, 0, 0))
            left += _width(text, size) + GAP
        y += _height(line[0][2])
    return drawn, top


def _write(
    drawn: Figure, x: float, y: float, text: str, size: float, colour: Colour, **font
) -> None:
    """Writes a line of text that begins at pixel (x, y), its upper left corner."""
    W, H = drawn.get_size_inches() * DPI
    place = x / W, 1 - (y + 1.45 * size) / H
    # "$" is text, not mathematics.
    rgb = np.divide(colour, 255)
    drawn.text(*place, text, size=size, color=rgb, parse_math=False, **font)


def _height(size: float) -> int:
    """Returns the pixels of a line of text."""
    return round(size * 2)


def _width(text: str, size: float) -> float:
    """Returns the pixels that text takes."""
    font = FontProperties(size=size)
    points, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(points) * DPI / 72


def _wrap(text: str, size: float, room: float) -> list[str]:
    """Returns text in lines that are no wider than `room` pixels."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _width(longer, size) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
