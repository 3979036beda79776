"""The results of a study as tables, for a terminal, for Markdown and for a page."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from bridger.evaluation.table import Links, Table, percent
from bridger.studies.results import METRICS, Difference, Row, Spread, StudyResults
from bridger.studies.study import RATES
from bridger.training.remaining import duration

NONE = "-"
ABOVE, BELOW = "▲", "▼"
DIFFERENCES = (
    "±: standard deviation of the difference over seeds. In brackets: 95 % bootstrap interval over "
    "pictures, not sentences, of the mean over the seeds that both have. "
    f"{ABOVE} and {BELOW}: it excludes 0, as one in twenty does where nothing differs. The "
    "interval says how the difference would vary over other pictures; how it varies over other "
    "trainings, only the deviation says."
)
"""What must be known to read differences."""


def main_table(results: StudyResults, folder: Path | None = None) -> Table:
    """Return the figures of all rows.

    Args:
        results: of the study.
        folder: of the report, from which the runs are linked; None: no links.
    """
    figures = [(metric, split) for metric in METRICS for split in results.splits]
    rows = [
        [
            _name(results, row),
            f"{row.tower_parameters:,}",
            f"{row.parameters:,}",
            *(_spread(row.spread(split, metric)) for metric, split in figures),
            _seeds(row, folder),
        ]
        for row in results.measured
    ]
    header = ["", "trained, in towers", "in all", *(f"{m} {split}" for m, split in figures)]
    return Table(
        "figures in percent, mean ± standard deviation over seeds",
        [*header, "seeds"],
        rows,
        note="trained, in towers: all trained parameters but those of the head; in all: with them",
    )


def difference_table(results: StudyResults, metric: str) -> Table:
    """Return by how much the rows are above the reference, split by split.

    Args:
        results: of the study.
        metric: one of `METRICS`.
    """
    rows = [
        [
            row.name,
            *(
                _difference(results.differences.get((row.name, split, metric)))
                for split in results.splits
            ),
        ]
        for row in results.measured
        if row.name != results.reference
    ]
    return Table(
        f"{metric}: points above {results.reference}",
        ["", *results.splits],
        rows,
    )


def cost_table(results: StudyResults) -> Table:
    """Return what the rows cost: numbers, bytes, time and memory.

    Where not all were measured on one machine, it says which on which.
    """
    several = len({machine for row in results.measured for machine in row.machines}) > 1
    rows = [
        [
            row.name,
            f"{row.tower_parameters:,}",
            f"{row.parameters:,}",
            f"{row.bytes / 1e6:.2f}",
            _seconds(row.seconds("step")),
            duration(row.seconds("training").mean),
            f"{row.peak / 2**20:,.0f}",
            *(["; ".join(row.machines)] if several else []),
        ]
        for row in results.measured
    ]
    return Table(
        "what it costs",
        [
            "",
            "trained, in towers",
            "trained, in all",
            "stored, MB",
            "step, s",
            "training",
            "peak memory, MiB",
            *(["on"] if several else []),
        ],
        rows,
        note="step: the median of forward, backward and update, mean ± standard deviation over "
        "seeds; without a GPU, of processor time. Peak memory: of a GPU what torch had given out, "
        "else the whole process's",
    )


def missing_table(results: StudyResults) -> Table | None:
    """Return why rows have no figures; None where all have."""
    rows = [[row.name, row.reason or "not finished"] for row in results.rows if not row.runs]
    return Table("not measured", ["", "because"], rows) if rows else None


def rates_table(results: StudyResults) -> Table | None:
    """Return what the search of learning rates gave; None where none was made."""
    if not results.searched:
        return None
    values = sorted({value for found in results.searched for value in found.figures})
    rows = [
        [
            found.setting,
            ", ".join(found.options),
            *(
                percent(found.figures[value]) if value in found.figures else NONE
                for value in values
            ),
            f"{found.best:g}" + (" (an end)" if found.at_an_end else ""),
            duration(found.seconds),
        ]
        for found in results.searched
    ]
    took = duration(sum(found.seconds for found in results.searched))
    return Table(
        "the search of learning rates: mIoU of val in percent, by rate",
        ["", "option", *(f"{value:g}" for value in values), "taken", "took"],
        rows,
        note=f"the same grid for all, judged on val alone, one seed; it took {took} in all, which "
        "other tables leave out. An end: a better rate may lie beyond the grid",
    )


def options_table(results: StudyResults) -> Table:
    """Return the learning rates of every row, and whether it was searched with it."""
    searched = {found.setting for found in results.searched}
    rows = []
    for row in results.measured:
        recipe = row.runs[0].result["recipe"]
        values = (recipe.get(name) for name in RATES)
        told = ["as the head" if value is None else f"{value:g}" for value in values]
        rows.append([row.name, *told, "yes" if row.name in searched else "no"])
    return Table(
        "learning rates",
        ["", "head", "Bridgers", "in the towers", "searched with this row"],
        rows,
        note="rows that no search was made with have the rates of another row, or the recipe's",
    )


def samples_table(results: StudyResults) -> Table:
    """Return what was trained on at each seed, which shows that all had the same."""
    rows = []
    for seed in sorted({run.seed for run in results.runs}):
        runs = [run for run in results.runs if run.seed == seed]
        orders = dict.fromkeys(str(run.result["samples"]["order"]) for run in runs)
        rows.append([str(seed), str(len(runs)), ", ".join(orders)])
    return Table("samples", ["seed", "runs", "digest of the samples in their order"], rows)


def environment_table(results: StudyResults) -> Table:
    """Return on what machines and with what libraries it was measured, and how long it took."""
    found = [{k: str(v) for k, v in run.result["environment"].items()} for run in results.runs]
    names = dict.fromkeys(name for each in found for name in each)
    rows = [[n, "; ".join(dict.fromkeys(each[n] for each in found if n in each))] for n in names]
    took = sum(float(run.result["seconds"]["all"]) for run in results.runs)
    rows.append(["all runs, added up", duration(took)])
    return Table("measured on", ["", ""], rows)


def runs_table(results: StudyResults, folder: Path) -> Table:
    """Return every run with its figures and where it lies.

    Args:
        results: of the study.
        folder: of the report, from which the runs are linked.
    """
    figures = [(metric, split) for metric in METRICS for split in results.splits]
    rows = [
        [
            row.name,
            str(run.seed),
            *(percent(run.metric(split, metric)) for metric, split in figures),
            Links({f"{run.folder.parent.name}/{run.folder.name}": _address(run.folder, folder)}),
        ]
        for row in results.measured
        for run in row.runs
    ]
    header = ["", "seed", *(f"{metric} {split}" for metric, split in figures), "folder"]
    return Table("every run", header, rows)


def markdown(shown: Table) -> Iterator[str]:
    """Yield the lines of a table in Markdown, with its title and its note."""
    yield f"**{plain(shown.title)}**"
    yield ""
    yield _line([plain(cell) for cell in shown.header])
    yield _line(["---"] * len(shown.header))
    for row in shown.rows:
        yield _line([_linked(cell) for cell in row])
    if shown.note:
        yield ""
        yield plain(shown.note)
    yield ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _linked(cell: str) -> str:
    if not isinstance(cell, Links):
        return plain(cell)
    return " ".join(f"[{plain(word)}]({address})" for word, address in cell.addresses.items())


def plain(words: str) -> str:
    """Return words that Markdown shows as they are, on one line."""
    return re.sub(r"([\\`*_<>|]|\](?=\())", r"\\\1", " ".join(words.split()))


def _name(results: StudyResults, row: Row) -> str:
    return f"{row.name} (reference)" if row.name == results.reference else row.name


def _seeds(row: Row, folder: Path | None) -> str:
    if folder is None:
        return " ".join(map(str, row.seeds))
    return Links({str(run.seed): _address(run.folder, folder) for run in row.runs})


def _address(run: Path, folder: Path) -> str:
    return quote(os.path.relpath(run, folder).replace(os.sep, "/"))


def _spread(figure: Spread) -> str:
    mean = percent(figure.mean)
    return mean if math.isnan(figure.deviation) else f"{mean} ± {percent(figure.deviation)}"


def _seconds(figure: Spread) -> str:
    mean = f"{figure.mean:.3g}"
    return mean if math.isnan(figure.deviation) else f"{mean} ± {figure.deviation:.2g}"


def _difference(found: Difference | None) -> str:
    if found is None:
        return NONE
    mean, deviation = found.spread
    spread = "" if math.isnan(deviation) else f" ± {percent(deviation)}"
    mark = (f" {ABOVE}" if found.low > 0 else f" {BELOW}") if found.sure else ""
    return f"{100 * mean:+.2f}{spread} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]{mark}"
