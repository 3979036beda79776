"""Tables of figures, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95
"""Of the intervals that are shown."""


@dataclass(frozen=True)
class Table:
    """Cells to be shown.

    Attributes:
        title: what it shows.
        header: the columns' names.
        rows: as many cells each.
        published: figures of others are in it.
        note: what must be known to read it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    published: bool = False
    note: str = ""

    def lines(self) -> list[str]:
        """Lay it out for a terminal: words to the left, figures to the right."""
        cells = [list(self.header), *map(list, self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        left = [not all(_is_figure(row[i]) for row in self.rows) for i in range(len(widths))]
        laid = (
            "  ".join(
                cell.ljust(width) if words else cell.rjust(width)
                for cell, width, words in zip(row, widths, left, strict=True)
            ).rstrip()
            for row in cells
        )
        return [
            f"{self.title}:",
            *(f"  {line}" for line in laid),
            *([self.note] if self.note else []),
        ]


def percent(share: float) -> str:
    """Write a share in percent."""
    return f"{100 * share:.2f}"


def with_interval(
    name: str, metrics: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]
) -> str:
    """Write a metric in percent, and in brackets its interval where there is one."""
    if name not in metrics:
        return "-"
    if name not in intervals:
        return percent(metrics[name])
    low, high = intervals[name]
    return f"{percent(metrics[name])} [{percent(low)}, {percent(high)}]"


def _is_figure(cell: str) -> bool:
    return cell[:1].isdigit() or cell == "-"
