"""The style of all figures, and labels that do not overlap."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from math import isfinite
from statistics import fmean
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from jaxgpt.errors import atomic_write

# Okabe and Ito's, which the colour-blind can tell apart; without yellow, which is too
# pale for a line on white.
BLUE, ORANGE, GREEN, PINK, AMBER, SKY = COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
)  # fmt: skip
DARK, GREY, PALE = "0.2", "0.45", "0.75"
LEADER = {"arrowstyle": "-", "lw": 0.8, "shrinkA": 1, "shrinkB": 2}
WIDTH = 8.0  # Inches. A README shows a figure 800 pixels wide: 10 points are 14 pixels.
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "0.6",
    "axes.grid": True,
    "axes.labelcolor": DARK,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "font.size": 10,
    "grid.color": "0.92",
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "text.color": DARK,
    "xtick.color": "0.6",
    "xtick.labelcolor": DARK,
    "ytick.color": "0.6",
    "ytick.labelcolor": DARK,
}


class Picture(Figure):
    """A figure whose labels are placed once the layout of its axes is known."""

    def __init__(self, height: float):
        super().__init__(figsize=(WIDTH, height))
        self.placed_last: list[Callable[[], None]] = []

    def save(self, path: pathlib.Path) -> None:
        """Writes a PNG."""
        engine = self.get_layout_engine()
        assert engine, "STYLE has one"
        engine.execute(self)
        self.set_layout_engine("none")  # Labels do not move the axes any more.
        for place in self.placed_last:
            place()
        with atomic_write(path, "wb") as stream:
            self.savefig(stream, format="png")


@contextlib.contextmanager
def picture(path: pathlib.Path, height: float) -> Iterator[Picture]:
    """Yields a figure of this height in inches, and writes it as a PNG at the end."""
    with matplotlib.rc_context(STYLE):
        figure = Picture(height)
        yield figure
        figure.save(path)


def write_record(record: dict[str, Any], picture: pathlib.Path) -> None:
    """Writes the data of a picture as JSON next to it."""
    with atomic_write(picture.with_suffix(".json")) as stream:
        stream.write(json.dumps(record, indent=1) + "\n")


def heading(figure: Figure, text: str) -> None:
    """Puts a title above all panels, at the left."""
    figure.suptitle(text, x=0.01, ha="left")


def log_scale(axes: Any, side: str, ticks: Sequence[float] = ()) -> None:
    """Makes "x" or "y" logarithmic, with numbers instead of powers at the ticks."""
    axes.set(**{f"{side}scale": "log"})
    axis = getattr(axes, f"{side}axis")
    axis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def label_ends(axes: Any, lines: Sequence[Any], texts: Sequence[str]) -> None:
    """Writes a text to the right of each line's last point, in the line's colour.

    Texts that would touch are moved apart, and each is joined to its point.
    """
    written = [
        axes.annotate(
            text,
            (1, 0),
            (1.03, 0),
            xycoords="axes fraction",
            color=line.get_color(),
            va="center",
            annotation_clip=False,
            arrowprops=LEADER | {"color": line.get_color(), "relpos": (0, 0.5)},
        )
        for line, text in zip(lines, texts, strict=True)
    ]

    def place() -> None:
        points = []
        for line in lines:
            drawn = [p for p in line.get_xydata() if isfinite(p[1])]
            to_axes = (line.get_transform() + axes.transAxes.inverted()).transform
            points.append(tuple(to_axes(drawn[-1])) if drawn else (1.0, 0.0))
        height = max((t.get_window_extent().height for t in written), default=0)
        gap = 1.1 * height / axes.get_window_extent().height
        places = spread([y for _, y in points], gap)
        for text, point, place in zip(written, points, places, strict=True):
            text.xy, text.xyann = point, (1.03, place)

    axes.get_figure(root=True).placed_last.append(place)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Returns the places moved apart to at least `gap`, as little as that takes.

    They keep their order, and stay within [0, 1] where they fit into it.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    # Isotonic regression: less `gap` for each one below, places must not decrease, and
    # neighbours that do are pooled.
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([places[i] - gap * rank])
        while len(pools) > 1 and fmean(pools[-1]) < fmean(pools[-2]):
            last = pools.pop()
            pools[-1] += last
    room = max(0.0, 1 - gap * (len(places) - 1))
    levels = [min(max(fmean(pool), 0.0), room) for pool in pools for _ in pool]
    moved = [0.0] * len(places)
    for rank, (i, level) in enumerate(zip(order, levels, strict=True)):
        moved[i] = level + gap * rank
    return moved
