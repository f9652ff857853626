"""What the tasks' pictures have in common."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave

SHOWN = 48  # Generated sequences in a picture, at most.
LONGEST_LINE = 150
RIGHT, WRONG = (0, 160, 0), (220, 0, 0)


def frames(right_N: np.ndarray) -> np.ndarray:
    """Returns a colour [N, 3] for each sequence: green where it is right, else red."""
    return np.where(right_N[:, None], RIGHT, WRONG)


def tiles(
    path: pathlib.Path,
    images_NHWC: np.ndarray,
    frames_NC: np.ndarray,
    columns: int = 8,
    scale: int = 6,
) -> None:
    """Writes RGB images [N, H, W, 3], 0 .. 255, side by side in coloured frames."""
    N, H, W, _ = images_NHWC.shape
    rows = -(-N // columns)
    columns = min(columns, N)
    h, w = (H + 2) * scale, (W + 2) * scale
    sheet = np.full((rows * h, columns * w, 3), 255, np.uint8)
    for n, (image, frame) in enumerate(zip(images_NHWC, frames_NC, strict=True)):
        top, left = n // columns * h, n % columns * w
        inner = slice(scale // 2, -(scale // 2))
        cell = sheet[top : top + h, left : left + w]
        cell[inner, inner] = frame
        big = image.astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
        cell[scale:-scale, scale:-scale] = big
    imsave(path, sheet)


def episodes(
    path: pathlib.Path, grids_NSHW: np.ndarray, palette_VC: np.ndarray, right_N
) -> None:
    """Writes the grids [S, H, W] of each sequence in a row, framed green where right.

    A gap ends a sequence; short ones share a line. Values that the palette [V, 3] lacks
    take its last colour.
    """
    N, S, H, W = grids_NSHW.shape
    images = palette_VC[np.minimum(grids_NSHW, len(palette_VC) - 1)]
    images = np.concatenate([images, np.full((N, 1, H, W, 3), 255)], 1)
    framed = frames(right_N)[:, None].repeat(S, 1)
    framed = np.concatenate([framed, np.full((N, 1, 3), 255)], 1)
    columns = (S + 1) * max(1, 12 // (S + 1))
    tiles(path, images.reshape(-1, H, W, 3), framed.reshape(-1, 3), columns)


def figure(
    rows: int, columns: int, figsize: tuple[float, float], **grid: Any
) -> tuple[Any, np.ndarray]:
    """Returns a figure and its axes [rows, columns], without ticks or frames."""
    drawn = Figure(figsize=figsize, layout="constrained")
    axes = drawn.subplots(rows, columns, squeeze=False, gridspec_kw=grid)
    for each in axes.flat:
        each.set(xticks=[], yticks=[])
        each.spines[:].set_visible(False)
    return drawn, axes


def words(path: pathlib.Path, rows: list[list[tuple[str, str]]]) -> None:
    """Writes rows of (word, colour) as lines of text."""
    lines: list[list[tuple[int, str, str]]] = []
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
    character, height = 0.085, 0.18  # Inches, of the 10 point monospaced font.
    size = (character * wide + 0.4, height * len(lines) + 0.4)
    drawn = Figure(figsize=size)
    for number, line in enumerate(lines):
        y = 1 - (0.2 + height * (number + 0.8)) / size[1]
        for column, word, colour in line:
            x = (0.2 + character * column) / size[0]
            drawn.text(x, y, word, color=colour, family="monospace", size=10)
    drawn.savefig(path, dpi=100)
