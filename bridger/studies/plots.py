"""Accuracy against what it costs, and differences from the reference, as plots.

Each is an SVG of one panel, so that a page can put them side by side or below each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bridger.evaluation.metrics import Floats
from bridger.studies.drawing import INK, Series, draw, look, series_of
from bridger.studies.placing import Label, Placer
from bridger.studies.results import Row, StudyResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRIC = "mIoU"
PANEL = (5.6, 4.5)  # inches


@dataclass(frozen=True)
class Axis:
    """What accuracy is drawn against.

    Attributes:
        name: for files.
        label: of the axis.
        of: the number of a row.
        log: in powers of ten; a row with 0 is a level then, through all of the plot.
    """

    name: str
    label: str
    of: Callable[[Row], float]
    log: bool = False


PARAMETERS = Axis(
    "parameters", "trained parameters, in the towers", lambda r: r.tower_parameters, True
)
TIME = Axis("time", "seconds of a step", lambda row: row.seconds("step").mean)
MEMORY = Axis("memory", "peak memory, MiB", lambda row: row.peak / 2**20)


def accuracy_plot(results: StudyResults, split: str, axis: Axis) -> str | None:
    """Return mean mIoU of a split against a cost, with the deviation over seeds.

    None where no row costs anything.

    Args:
        results: of the study.
        split: one of its splits.
        axis: the cost.
    """
    if not any(axis.of(row) > 0 for row in results.measured):
        return None
    return draw(PANEL, lambda figure: _Accuracy(figure, split, axis).paint(series_of(results)))


def difference_plot(results: StudyResults) -> str | None:
    """Return the rows' differences from the reference on all splits; None where there are none.

    Args:
        results: of the study.
    """
    compared = {name for name, _, _ in results.differences}
    rows = [row for row in results.measured if row.name in compared]
    if not rows:
        return None
    height = 1.2 + len(rows) * (0.1 + 0.14 * len(results.splits))
    return draw((6.4, height), lambda figure: _paint_differences(figure, results, rows))


class _Accuracy:
    """Draws series in an empty figure, then their names where there is room."""

    def __init__(self, figure: Figure, split: str, axis: Axis) -> None:
        self.figure, self.split, self.axis = figure, split, axis
        self.axes = figure.add_subplot()
        self.labels: list[Label] = []
        self.lines: list[Floats] = []
        self.levels: list[tuple[str, float, str]] = []

    def paint(self, series: Sequence[Series]) -> None:
        axes = self.axes
        axes.set(xlabel=self.axis.label, ylabel=f"{METRIC} of {self.split}, %")
        axes.margins(0.14, 0.12)
        if self.axis.log:
            axes.set_xscale("log")
        levels = []
        for each in series:
            rows = sorted(each.rows, key=self.axis.of)
            points = [row for row in rows if self.axis.of(row) > 0 or not self.axis.log]
            levels += [(row, each) for row in rows if row not in points]
            if points:
                self._draw_line(each, points)
        for row, each in levels:  # after the points, which say what the axis is
            self._draw_level(row, each.look.colour)
        self.figure.draw_without_rendering()  # from here on it is known where things are
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
        self._name_levels()
        placer = Placer(axes, self.lines)
        for label in sorted(self.labels, key=lambda label: not label.needed):
            placer.place(label)

    def _draw_line(self, series: Series, rows: Sequence[Row]) -> None:
        colour, marker, hollow = series.look
        x = [self.axis.of(row) for row in rows]
        y, bars = zip(*(self._figure_of(row) for row in rows), strict=True)
        self.axes.errorbar(
            x,
            y,
            yerr=bars,
            color=colour,
            marker=marker,
            markerfacecolor="white" if hollow else colour,
            linestyle="--" if hollow else "-",
            markersize=7 if series.strong else 5.5 if series.main else 4,
            linewidth=2.4 if series.strong else 1.2,
            elinewidth=0.9 if series.main else 0.6,
            capsize=2.5 if series.main else 0,
            zorder=4 if series.strong else 3 if series.main else 2,
        )
        points = list(zip(x, y, strict=True))
        self.lines.append(np.array(points))
        for (at, mean), bar in zip(points, bars, strict=True):
            self.lines.append(np.array([(at, mean - bar), (at, mean + bar)]))
        size = 9 if series.main else 7.5
        self.labels.append(Label(series.name, points[::-1], colour, size, series.main))
        self.labels += [
            Label(row.size, [point], colour, 7.5, needed=False)
            for row, point in zip(rows, points, strict=True)
            if row.size
        ]

    def _draw_level(self, row: Row, colour: str) -> None:
        """Draw a row that has no place on the axis as a level through all of it."""
        mean, bar = self._figure_of(row)
        self.axes.axhspan(mean - bar, mean + bar, color=colour, alpha=0.12, lw=0)
        self.axes.axhline(mean, color=colour, lw=1.2, ls="--")
        self.levels.append((row.name, mean, colour))

    def _name_levels(self) -> None:
        """Make labels for the levels, which may stand anywhere along them."""
        to_data = self.axes.transAxes + self.axes.transData.inverted()
        places = [to_data.transform((share, 0))[0] for share in (0.12, 0.3, 0.5, 0.7, 0.88)]
        for name, mean, colour in self.levels:
            self.labels.append(Label(name, [(x, mean) for x in places], colour))
            self.lines.append(np.array([(x, mean) for x in self.axes.get_xlim()]))

    def _figure_of(self, row: Row) -> tuple[float, float]:
        mean, deviation = row.spread(self.split, METRIC)
        return 100 * mean, 0.0 if math.isnan(deviation) else 100 * deviation


def _paint_differences(figure: Figure, results: StudyResults, rows: Sequence[Row]) -> None:
    axes, apart = figure.add_subplot(), 0.75 / len(results.splits)
    for place, split in enumerate(results.splits):
        colour, marker, _ = look(place)
        axes.plot([], [], marker, color=colour, label=split)
        for line, row in enumerate(rows):
            found = results.differences.get((row.name, split, METRIC))
            if found is None:
                continue
            height = line + apart * (place - (len(results.splits) - 1) / 2)
            mean, deviation = (100 * part for part in found.spread)
            ends = (100 * found.low, 100 * found.high)
            axes.plot(ends, (height, height), color=colour, lw=5, alpha=0.3, solid_capstyle="butt")
            bar = None if math.isnan(deviation) else deviation
            axes.errorbar(
                mean, height, xerr=bar, fmt=marker, color=colour, ms=4, elinewidth=1, capsize=2
            )
    axes.axvline(0, color=INK, lw=1)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="x", labeltop=True)  # the plot may be taller than a screen
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{METRIC}, points above {results.reference}")
    figure.legend(loc="outside upper right", ncols=len(results.splits), frameon=False)
