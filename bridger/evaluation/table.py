"""Tables of figures, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from textwrap import wrap

LEVEL = 0.95
"""Of the intervals that are shown."""

WIDTH = 80
"""Of a terminal, in letters."""

INDENT, GAP = "  ", "  "
"""In front of rows, and between columns."""


class Links(str):
    """A cell whose words lead somewhere; for a terminal, the words.

    Attributes:
        addresses: where to, by word, relative to the page.
    """

    addresses: Mapping[str, str]

    def __new__(cls, addresses: Mapping[str, str]) -> Links:
        """Take the addresses."""
        self = super().__new__(cls, " ".join(addresses))
        self.addresses = addresses
        return self


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

    def lines(self, width: int = WIDTH) -> list[str]:
        """Lay it out for a terminal: words to the left, figures to the right.

        Columns that find no room follow below, beside the first ones, which say what a row is.

        Args:
            width: of the terminal, in letters.
        """
        cells = [list(self.header), *map(list, self.rows)]
        columns = [_column(list(column)) for column in zip(*cells, strict=True)]
        return [
            f"{self.title}:",
            *(
                f"{INDENT}{GAP.join(line)}".rstrip()
                for block in _blocks(columns, width - len(INDENT))
                for line in zip(*block, strict=True)
            ),
            *wrap(self.note, width),
        ]


def _column(cells: list[str]) -> list[str]:
    """Return the cells of a column, header first, all of one width."""
    width = max(map(len, cells))
    return [cell.rjust(width) if _has_figures(cells) else cell.ljust(width) for cell in cells]


def _blocks(columns: list[list[str]], width: int) -> list[list[list[str]]]:
    """Share columns out among blocks that are as wide at most, each with the first words."""
    words = list(takewhile(lambda column: not _has_figures(column), columns))
    if len(words) == len(columns):
        return [columns]
    blocks = [words]
    for column in columns[len(words) :]:
        wider = [*blocks[-1], column]
        if blocks[-1] != words and len(GAP.join(each[0] for each in wider)) > width:
            blocks.append([*words, column])
        else:
            blocks[-1] = wider
    return blocks


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


def _has_figures(cells: Sequence[str]) -> bool:
    """Whether all but a column's header are figures."""
    below = [cell.strip() for cell in cells[1:]]
    return all(cell[:1].isdigit() or cell == "-" for cell in below)
