"""What the report of a study says, before it is written as Markdown or as a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bridger.evaluation.table import Table
from bridger.studies.curves import curve_plots
from bridger.studies.drawing import NO_PLOTS, can_plot
from bridger.studies.plots import MEMORY, PARAMETERS, TIME, Axis, accuracy_plot, difference_plot
from bridger.studies.results import METRICS, StudyResults
from bridger.studies.tables import (
    DIFFERENCES,
    cost_table,
    difference_table,
    environment_table,
    main_table,
    missing_table,
    options_table,
    rates_table,
    runs_table,
    samples_table,
)

EQUAL = "At each seed, all runs saw the same samples in the same order."
BARS = "Bars: standard deviation over seeds."
CURVES = "Mean and standard deviation over seeds; in grey: {reference}."


@dataclass(frozen=True)
class Plot:
    """A plot.

    Attributes:
        name: for its file.
        svg: what is drawn.
        caption: what must be known to read it.
    """

    name: str
    svg: str
    caption: str

    @property
    def file(self) -> str:
        """A name for its file."""
        return re.sub("[^A-Za-z0-9]+", "-", self.name).strip("-") + ".svg"


@dataclass(frozen=True)
class Section:
    """A part of the report, with a heading.

    Attributes:
        title: its heading.
        words: paragraphs.
        plots: below them.
        tables: below those.
        long: tables that few will read: a page folds them away.
    """

    title: str
    words: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    long: tuple[Table, ...] = ()


def sections_of(results: StudyResults, folder: Path) -> Iterator[Section]:
    """Yield the sections of a report.

    Args:
        results: of the study.
        folder: of the report, from which the runs are linked.
    """
    missing = missing_table(results)
    absent = () if missing is None else (missing,)
    if not results.measured:
        yield Section("Accuracy", (), (), absent)
        return
    drawn = can_plot()
    yield Section(
        "Accuracy",
        () if drawn else (NO_PLOTS,),
        tuple(_against(results, PARAMETERS, results.splits)) if drawn else (),
        (main_table(results, folder), *absent),
    )
    if results.differences:
        yield Section(
            f"Differences from {results.reference}",
            (DIFFERENCES,),
            tuple(_differences(results)) if drawn else (),
            tuple(difference_table(results, metric) for metric in METRICS),
        )
    costs = (p for axis in (TIME, MEMORY) for p in _against(results, axis, results.splits[:1]))
    yield Section("Costs", (), tuple(costs) if drawn else (), (cost_table(results),))
    if drawn:
        words = CURVES.format(reference=results.reference)
        yield Section("Training", (words,), tuple(_curves(results)))
    yield _sources(results, folder)


def _sources(results: StudyResults, folder: Path) -> Section:
    rates = rates_table(results)
    return Section(
        "Where the figures come from",
        () if results.unequal else (EQUAL,),
        (),
        (
            *(() if rates is None else (rates,)),
            options_table(results),
            samples_table(results),
            environment_table(results),
        ),
        (runs_table(results, folder),),
    )


def _against(results: StudyResults, axis: Axis, splits: tuple[str, ...]) -> Iterator[Plot]:
    for split in splits:
        if (svg := accuracy_plot(results, split, axis)) is not None:
            yield Plot(f"{axis.name}-{split}", svg, f"mIoU of {split} against {axis.label}. {BARS}")


def _differences(results: StudyResults) -> Iterator[Plot]:
    if (svg := difference_plot(results)) is not None:
        caption = (
            f"mIoU, points above {results.reference}. Broad: 95 % interval over pictures; thin: "
            f"standard deviation over seeds."
        )
        yield Plot("differences", svg, caption)


def _curves(results: StudyResults) -> Iterator[Plot]:
    for name, svg in curve_plots(results):
        yield Plot(f"curves-{name}", svg, name)
