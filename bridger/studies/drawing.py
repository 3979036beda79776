"""How all plots of studies look, and what is drawn as one line.

Colours are darker ones of Okabe and Ito's, which colour-blind people tell apart, each with a marker
of its own; matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from bridger.studies.results import Row, StudyResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STRONG = "#c25100"
COLOURS = ("#0068a4", "#00815e", "#a3447f", "#7a6000", "#1b1f24")
MARKERS = ("s", "^", "D", "v", "P", "X", "p")
INK, FAINT, SLATE = "#1b1f24", "#8b949e", "#57606a"
NO_PLOTS = "no plots: matplotlib is not installed; pip install 'bridger-peft[studies]'"

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6eaee",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "bridger",  # the same results make the same file
}


class Look(NamedTuple):
    """How a line looks.

    Attributes:
        colour: of it and of its name.
        marker: of its points.
        hollow: the points are, and the line is broken: the colour is another line's, too.
    """

    colour: str
    marker: str
    hollow: bool = False


class Series(NamedTuple):
    """What is drawn as one line: the sizes of a method, or one row.

    Attributes:
        name: of the method, or of the row.
        rows: measured ones.
        look: of its own, but for what is not `main`.
        strong: the reference is one of the rows.
        main: not a row of no group, where others have groups.
    """

    name: str
    rows: list[Row]
    look: Look
    strong: bool
    main: bool


def can_plot() -> bool:
    """Whether matplotlib is installed; `NO_PLOTS` says what to do where it is not."""
    return find_spec("matplotlib") is not None


def series_of(results: StudyResults) -> list[Series]:
    """Return the measured rows by group, in the order of the tables, each with its look."""
    groups: dict[str, list[Row]] = {}
    for row in results.measured:
        groups.setdefault(row.group or row.name, []).append(row)
    grouped = any(row.group for row in results.measured)
    made: list[Series] = []
    for name, rows in groups.items():
        strong = any(row.name == results.reference for row in rows)
        main = strong or rows[0].group is not None or not grouped
        others = sum(series.main and not series.strong for series in made)
        own = Look(STRONG, "o") if strong else look(others) if main else Look(SLATE, "o")
        made.append(Series(name, rows, own, strong, main))
    return made


def look(place: int) -> Look:
    """Return one of 35 looks, none of which is the reference's; neighbours differ in all."""
    hollow = place // len(COLOURS) % 2 == 1
    return Look(COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], hollow)


def draw(size: tuple[float, float], paint: Callable[[Figure], None]) -> str:
    """Return a figure as SVG.

    Args:
        size: in inches.
        paint: draws on the empty figure, in the style of all plots.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    file = io.StringIO()
    with rc_context(_STYLE):
        figure = Figure(size, layout="constrained")
        FigureCanvasAgg(figure)  # which knows how large words are
        paint(figure)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
