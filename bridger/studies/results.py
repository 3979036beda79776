"""What came out of a study: rows over seeds, and how sure their differences are."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bridger.evaluation.bootstrap import ends, resample
from bridger.evaluation.metrics import Ratio, referring_ratios

if TYPE_CHECKING:
    from bridger.studies.search import Found
    from bridger.studies.store import Cases, Run

METRICS = ("mIoU", "oIoU")
HEAD = "head"
IN_TOWERS = ("bridgers", "peft", "tower_tensors")
"""The parts of a run's parameters that are trained in, or between, the towers."""


class Spread(NamedTuple):
    """A figure over seeds.

    Attributes:
        mean: over the seeds.
        deviation: the sample standard deviation (over n - 1); nan for a single seed.
    """

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return that of some values, at least one."""
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), deviation)


class Difference(NamedTuple):
    """By how much a row is above the reference, over the seeds that both have.

    Attributes:
        spread: of the differences at single seeds.
        low: lower end of the 95 % bootstrap interval over pictures, of the mean.
        high: upper end.
        seeds: of the runs.
    """

    spread: Spread
    low: float
    high: float
    seeds: tuple[int, ...]

    @property
    def sure(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Row:
    """A setting over its seeds.

    Attributes:
        name: of the setting.
        runs: finished ones, of one setting and different seeds.
        group: settings of one method in several sizes share a group.
        size: what tells them apart.
        reason: why there are no runs.

    Raises:
        ValueError: two runs of one seed, or runs and a reason against them.
    """

    name: str
    runs: tuple[Run, ...] = ()
    group: str | None = None
    size: str | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.runs and self.reason is not None:
            raise ValueError(f"row {self.name!r} has runs and a reason why it has none")
        seeds = self.seeds
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"row {self.name!r} has several runs of one seed: {list(seeds)}")

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its runs."""
        return tuple(run.seed for run in self.runs)

    def spread(self, split: str, metric: str) -> Spread:
        """Return a figure of a split over all its seeds, a share from 0 to 1."""
        return Spread.of([run.metric(split, metric) for run in self.runs])

    def mean(self, split: str, metric: str) -> float:
        """Return the mean of a figure over all its seeds, a share from 0 to 1."""
        return self.spread(split, metric).mean

    @property
    def tower_parameters(self) -> int:
        """How many parameters are trained but for those of heads, which all rows have."""
        return sum(self._parameters.get(part, 0) for part in IN_TOWERS)

    @property
    def parameters(self) -> int:
        """How many parameters are trained in all."""
        return self.tower_parameters + self._parameters.get(HEAD, 0)

    @property
    def _parameters(self) -> dict[str, int]:
        return dict(self.runs[0].result["parameters"])

    @property
    def bytes(self) -> int:
        """What is stored of a run."""
        return int(self.runs[0].result["bytes"])

    @property
    def peak(self) -> int:
        """Most bytes of memory that one of its runs had in use."""
        return max(int(run.result["memory"]["peak"]) for run in self.runs)

    @property
    def machines(self) -> tuple[str, ...]:
        """The processors or GPUs that its runs were trained on."""
        return tuple(dict.fromkeys(run.result["environment"]["machine"] for run in self.runs))

    def seconds(self, name: str) -> Spread:
        """Return what took time, over all its seeds: "step", "training", ..."""
        known = [run.result["seconds"][name] for run in self.runs]
        values = [float(value) for value in known if value is not None]
        return Spread.of(values) if values else Spread(math.nan, math.nan)


@dataclass(frozen=True)
class StudyResults:
    """The rows of a study.

    Attributes:
        name: of the study.
        note: what it asks.
        reference: name of the row that the others are compared with.
        splits: that were judged.
        rows: in the order of the tables.
        searched: what the search of learning rates gave.
        quick: the runs were of a few updates and say nothing.

    Raises:
        ValueError: rows of one name, or a reference that is no row.
    """

    name: str
    note: str
    reference: str
    splits: tuple[str, ...]
    rows: tuple[Row, ...]
    searched: tuple[Found, ...] = ()
    quick: bool = False

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError(f"rows need names of their own, got {names}")
        if self.reference not in names:
            raise ValueError(f"the reference {self.reference!r} is none of the rows: {names}")

    @property
    def measured(self) -> list[Row]:
        """The rows that have runs."""
        return [row for row in self.rows if row.runs]

    @property
    def runs(self) -> list[Run]:
        """The runs of all rows."""
        return [run for row in self.rows for run in row.runs]

    @property
    def reference_row(self) -> Row:
        """The row that the others are compared with."""
        return next(row for row in self.rows if row.name == self.reference)

    @cached_property
    def differences(self) -> dict[tuple[str, str, str], Difference]:
        """The difference of rows from the reference by (row's name, split, metric).

        Rows that have no seed in common with the reference have none.

        Raises:
            ValueError: runs did not judge the same expressions.
        """
        found = {}
        for split in self.splits:
            cases = {run.folder: run.cases(split) for run in self.runs}
            _check_same(cases, split)
            theirs = {run.seed: cases[run.folder] for run in self.reference_row.runs}
            for row in self.measured:
                if row.name == self.reference:
                    continue
                common = [run for run in row.runs if run.seed in theirs]
                pairs = {run.seed: (cases[run.folder], theirs[run.seed]) for run in common}
                for metric, difference in _differences(pairs).items():
                    found[row.name, split, metric] = difference
        return found

    @cached_property
    def warnings(self) -> list[str]:
        """What must be known before any figure is read."""
        lines = ["A quick run of a few updates: its figures say nothing."] if self.quick else []
        if self.unequal:
            lines.append(f"Not all runs saw the same samples: {'; '.join(self.unequal)}.")
        diverged = {f"{run.setting}, seed {run.seed}": run.diverged for run in self.runs}
        if told := [f"{run} (update {step})" for run, step in diverged.items() if step is not None]:
            lines.append(
                f"Diverged, with losses that are no numbers: {'; '.join(told)}. What is judged is "
                "the best checkpoint, as always."
            )
        return lines

    @cached_property
    def unequal(self) -> list[str]:
        """Of every run that was not trained on what most runs of its seed were, a line on it.

        Empty: at each seed, all saw the same samples in the same order, of the same data.
        """
        lines = []
        for seed in sorted({run.seed for run in self.runs}):
            runs = [run for run in self.runs if run.seed == seed]
            order = _usual([run.result["samples"]["order"] for run in runs])
            data = _usual([run.result["samples"]["data"] for run in runs])
            for run in runs:
                samples = run.result["samples"]
                if samples["data"] != data:
                    lines.append(f"{run.setting}, seed {seed}: of other data than the others")
                elif samples["order"] != order:
                    lines.append(f"{run.setting}, seed {seed}: other samples, or another order")
        return lines


def _usual(values: Sequence[Any]) -> Any:
    """Return the most frequent one, of equally frequent ones the first."""
    keys = [repr(sorted(v.items())) if isinstance(v, dict) else repr(v) for v in values]
    return values[keys.index(Counter(keys).most_common(1)[0][0])]


def _check_same(cases: Mapping[Path, Cases], split: str) -> None:
    first, *others = cases.items()
    for folder, judged in others:
        if not np.array_equal(judged.picture, first[1].picture):
            raise ValueError(
                f"{folder} and {first[0]} judged other expressions of {split} "
                f"({len(judged.picture)} and {len(first[1].picture)}): their figures cannot be "
                "compared; remove the older one and start the study again"
            )


def _differences(pairs: Mapping[int, tuple[Cases, Cases]]) -> dict[str, Difference]:
    """Return by how much the first of each pair is above the second, by metric.

    Pictures are drawn with replacement, the same ones for both of all pairs, with all of their
    expressions; in each resample the pairs' differences are averaged.
    """
    if not pairs:
        return {}
    picture = next(iter(pairs.values()))[0].picture
    ratios: list[Ratio] = []
    for both in pairs.values():
        for cases in both:
            figures = referring_ratios(cases.intersection, cases.union)
            ratios += [figures[metric] for metric in METRICS]
    shape = len(pairs), 2, len(METRICS)
    single = np.array([ratio.value for ratio in ratios]).reshape(shape)
    drawn = resample(ratios, picture).reshape(-1, *shape)
    means = (drawn[:, :, 0] - drawn[:, :, 1]).mean(axis=1)
    gaps = single[:, 0] - single[:, 1]
    return {
        metric: Difference(Spread.of(gaps[:, place].tolist()), *interval, tuple(pairs))
        for place, (metric, interval) in enumerate(zip(METRICS, ends(means), strict=True))
    }
