"""Labels of points in a figure that do not overlap."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import cos, radians, sin
from typing import Any

from matplotlib.path import Path
from matplotlib.transforms import Bbox

from jaxgpt import drawing

# Where a label may be from its point, in points and degrees, best first.
DISTANCES = (8, 16, 26, 38, 52, 68, 86)
ANGLES = (0, 180, 90, 270, 45, 315, 135, 225, 20, 340, 160, 200, 65, 295, 115, 245)


def label_points(
    axes: Any, points: Sequence[tuple[float, float]], texts: Sequence[str]
) -> None:
    """Writes a text next to each point, clear of what is plotted and of other texts.

    Where no place is free it is written at the last one tried.
    """

    def place() -> None:
        pixel = axes.get_figure(root=True).dpi / 72
        around = lambda x, y: Bbox.from_extents(
            x - 4 * pixel, y - 4 * pixel, x + 4 * pixel, y + 4 * pixel
        )
        taken = [around(*at) for line in axes.lines for at in _pixels(line)]
        inside = axes.get_window_extent()
        written: list[Bbox] = []
        for point, text in zip(points, texts, strict=True):
            x, y = axes.transData.transform(point)
            label = axes.annotate(
                text,
                (x, y),
                xycoords="figure pixels",
                size=9,
                va="center",
                arrowprops=drawing.LEADER | {"color": drawing.PALE},
            )
            size = label.get_window_extent()
            for distance, angle in itertools.product(DISTANCES, ANGLES):
                right, up = cos(radians(angle)), sin(radians(angle))
                left = x + distance * pixel * right - size.width * (1 - right) / 2
                low = y + distance * pixel * up - size.height * (1 - up) / 2
                box = Bbox.from_bounds(left, low, size.width, size.height)
                middle = (left + size.width / 2, low + size.height / 2)
                leader: Any = Path([(x, y), middle]).interpolated(20).vertices
                if (
                    not any(box.overlaps(other) for other in (*taken, *written))
                    and not any(b.contains(*at) for b in written for at in leader)
                    and inside.contains(*box.p0)
                    and inside.contains(*box.p1)
                ):
                    break
            label.set_position((left, middle[1]))
            written.append(box)

    axes.get_figure(root=True).placed_last.append(place)


def _pixels(line: Any) -> Any:
    """Returns pixels [N, 2] along a line, or of its markers if they are not joined."""
    path = Path(line.get_transform().transform(line.get_xydata()))
    joined = line.get_linestyle() != "None" and len(path) > 1
    return (path.interpolated(40) if joined else path).vertices
