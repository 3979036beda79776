"""Finds room for the words in a plot, so that lines need no legend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bridger.evaluation.metrics import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NEAR, FAR = 7, (16, 26, 40, 60)
"""Points between what is named and its label; farther ones are joined to it by a line."""
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
REACH = 4  # points around a marker that are taken by it
OUTSIDE = 1000.0
DISTANCE = 0.6  # what a farther place costs, in covered spots
BEARABLE = 6.0  # what a label that is not needed may cost


class Label(NamedTuple):
    """Words that belong to any one of some points.

    Attributes:
        words: what is written.
        points: (x, y) in data units, the best place first.
        colour: of the words.
        size: of the words, in points.
        needed: it is written wherever there is least in the way; others only where there is room.
    """

    words: str
    points: Sequence[tuple[float, float]]
    colour: str
    size: float = 9.0
    needed: bool = True


class Placer:
    """Places labels in the axes of a figure that is laid out, one after the other.

    Args:
        axes: whose limits are final.
        lines: what is drawn there, each as points (P, 2) in data units, joined by straight lines.
    """

    def __init__(self, axes: Axes, lines: Sequence[Floats]) -> None:
        self.axes = axes
        self.pixels = axes.figure.dpi / 72  # of a point
        self.taken = np.concatenate([self._spots(line) for line in lines])
        self.boxes: list[tuple[float, float, float, float]] = []

    def place(self, label: Label) -> None:
        """Write a label where it covers least."""
        look: dict[str, Any] = {"fontsize": label.size, "color": label.colour}
        look["bbox"] = {"boxstyle": "square,pad=0.05", "fc": "white", "ec": "none", "alpha": 0.7}
        look["fontweight"] = "bold" if label.needed else "normal"
        tried = self.axes.figure.text(0, 0, label.words, **look)
        extent = tried.get_window_extent()
        tried.remove()
        size = extent.width, extent.height
        found = list(self._places(label, size))
        cost, point, corner, joined = min(found, key=lambda place: place[0])
        if not label.needed and cost > BEARABLE:
            return
        left, bottom = corner
        self.boxes.append((left, bottom, left + size[0], bottom + size[1]))
        anchor = self._on_screen(np.array([point]))[0]
        line = {"arrowstyle": "-", "color": label.colour, "lw": 0.6, "shrinkA": 0, "shrinkB": 3}
        self.axes.annotate(
            label.words,
            point,
            xytext=tuple((np.array(corner) - anchor) / self.pixels),
            textcoords="offset points",
            arrowprops=line if joined else None,
            annotation_clip=False,
            zorder=5,
            **look,
        )

    def _places(
        self, label: Label, size: tuple[float, float]
    ) -> Iterator[tuple[float, tuple[float, float], tuple[float, float], bool]]:
        """Yield (cost, point, lower left corner in pixels, whether a line joins the two)."""
        anchors = self._on_screen(np.array(label.points, dtype=np.float64))
        for rank, (point, anchor) in enumerate(zip(label.points, anchors, strict=True)):
            for far, distance in enumerate((NEAR, *FAR) if label.needed else (NEAR, FAR[0])):
                for turn, direction in enumerate(DIRECTIONS):
                    corner = _corner(anchor, size, direction, distance * self.pixels)
                    cost = self._covered(corner, size) + 0.1 * rank + 0.02 * turn
                    yield cost + DISTANCE * far, point, corner, far > 0

    def _covered(self, corner: tuple[float, float], size: tuple[float, float]) -> float:
        """Return what a box at a place would cover: spots of lines, boxes of other labels."""
        gap = self.pixels
        left, bottom = corner[0] - gap, corner[1] - gap
        right, top = corner[0] + size[0] + gap, corner[1] + size[1] + gap
        inside = self.axes.bbox
        if left < inside.x0 or right > inside.x1 or bottom < inside.y0 or top > inside.y1:
            return OUTSIDE
        x, y = self.taken.T
        covered = np.count_nonzero((x > left) & (x < right) & (y > bottom) & (y < top))
        labels = sum(
            left < other[2] and right > other[0] and bottom < other[3] and top > other[1]
            for other in self.boxes
        )
        return float(covered) + 200.0 * labels

    def _spots(self, line: Floats) -> Floats:
        """Return spots (S, 2) along a line, a few pixels apart, and around its points."""
        points = self._on_screen(line)
        around = [points + np.array(d) * REACH * self.pixels / 2 for d in DIRECTIONS]
        along = [
            np.linspace(start, end, 2 + int(np.hypot(*(end - start)) / 4))
            for start, end in zip(points[:-1], points[1:], strict=True)
        ]
        return np.concatenate([points, *around, *along])

    def _on_screen(self, points: Floats) -> Floats:
        screen: Floats = np.asarray(self.axes.transData.transform(points), dtype=np.float64)
        return screen


def _corner(
    anchor: Floats, size: tuple[float, float], direction: tuple[int, int], distance: float
) -> tuple[float, float]:
    """Return the lower left corner of a box that lies in a direction from an anchor."""
    reach = distance / np.hypot(*direction)
    corner = [
        anchor[axis] + direction[axis] * reach - size[axis] * (1 - direction[axis]) / 2
        for axis in (0, 1)
    ]
    return corner[0], corner[1]
