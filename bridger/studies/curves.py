"""Training curves of a study, as plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bridger.evaluation.metrics import Floats
from bridger.studies.drawing import FAINT, Series, draw, series_of
from bridger.studies.results import Row, StudyResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (5.2, 2.5)  # inches
PANELS = {"training loss": "loss", "mIoU of val, %": "eval_mIoU"}
"""What is drawn, by its title, and how histories call it."""
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.2)), (0, (1, 1)))
FEW = 8
"""So many points or fewer are marked each."""


class Curve(NamedTuple):
    """What the seeds of a row noted.

    Attributes:
        steps: (S,), those that all seeds have.
        means: (S,), over the seeds.
        deviations: (S,), over the seeds; 0 for a single one.
    """

    steps: Floats
    means: Floats
    deviations: Floats


def curve_of(row: Row, key: str) -> Curve:
    """Return the curve of a row.

    Args:
        row: a measured one.
        key: what is drawn, as histories call it; shares become percent.
    """
    factor = 100 if key.endswith("IoU") else 1
    noted = [
        {
            entry["step"]: factor * entry[key]
            for entry in run.history()
            if entry.get(key) is not None
        }
        for run in row.runs
    ]
    steps = sorted(set.intersection(*(set(each) for each in noted)))
    values = np.array([[each[step] for step in steps] for each in noted], dtype=np.float64)
    spread = values.std(axis=0, ddof=1) if len(noted) > 1 else np.zeros(len(steps))
    return Curve(np.array(steps, dtype=np.float64), values.mean(axis=0), spread)


def curve_plots(results: StudyResults) -> Iterator[tuple[str, str]]:
    """Yield for every method or row that stands alone its name and its curves as SVG.

    All have the same axes, and the reference in grey beside them.

    Args:
        results: of the study.
    """
    curves = {
        row.name: {title: curve_of(row, key) for title, key in PANELS.items()}
        for row in results.measured
    }
    limits = {title: _limits([own[title] for own in curves.values()]) for title in PANELS}
    last = max(c.steps[-1] for own in curves.values() for c in own.values() if len(c.steps))
    for series in series_of(results):
        drawn = [(row.size or row.name, curves[row.name]) for row in series.rows]
        beside = None if series.strong else curves.get(results.reference)

        def paint(
            figure: Figure, series: Series = series, drawn: Any = drawn, beside: Any = beside
        ) -> None:
            panels = figure.subplots(1, len(PANELS), squeeze=False)[0]
            for axes, title in zip(panels, PANELS, strict=True):
                axes.set_title(title, fontsize=9, loc="left")
                axes.set(xlabel="update", xlim=(0, 1.03 * last), ylim=limits[title])
                if beside is not None:
                    _draw(axes, beside[title], FAINT, "-", results.reference)
                for place, (label, own) in enumerate(drawn):
                    _draw(axes, own[title], series.look.colour, DASHES[place % len(DASHES)], label)
            figure.legend(
                *panels[0].get_legend_handles_labels(),
                loc="outside lower left",
                ncols=4,
                frameon=False,
                fontsize=8,
            )

        yield series.name, draw(SIZE, paint)


def _limits(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """Return between which values curves lie, but for the highest, which are of the first steps."""
    parts = [c.means + sign * c.deviations for c in curves for sign in (-1, 1) if len(c.steps)]
    if not parts:
        return None
    values = np.concatenate(parts)
    low, high = float(values.min()), float(np.quantile(values, 0.98))
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def _draw(axes: Axes, curve: Curve, colour: str, dashes: Any, label: str) -> None:
    steps, means, spread = curve
    marker = "o" if len(steps) <= FEW else ""
    axes.plot(steps, means, color=colour, ls=dashes, lw=1.3, marker=marker, ms=3, label=label)
    axes.fill_between(steps, means - spread, means + spread, color=colour, alpha=0.15, lw=0)
