"""Learning rates of a study's settings: the best of one grid for all, judged on val alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridger.studies.store import Plan, Run
from bridger.studies.study import VALIDATION, Search, Study

Make = Callable[[Sequence[Plan]], list[Run | None]]
"""Makes runs, and returns them; None for those that failed."""
Planning = Callable[..., Plan]
"""Called with a setting's name, the splits to judge, and changes of its recipe."""


@dataclass(frozen=True)
class Found:
    """What the search of one setting gave.

    Attributes:
        setting: that was searched.
        options: the rates that took the value.
        figures: what val gave, by value.
        seconds: what all of it took, added up.
    """

    setting: str
    options: tuple[str, ...]
    figures: Mapping[float, float]
    seconds: float

    @property
    def best(self) -> float:
        """The value that gave most."""
        return max(self.figures, key=lambda value: self.figures[value])

    @property
    def at_an_end(self) -> bool:
        """Whether the best one is the grid's first or last, so that a better one may lie beyond."""
        ends = min(self.figures), max(self.figures)
        return ends[0] != ends[1] and self.best in ends

    @property
    def changes(self) -> dict[str, Any]:
        """The best value as changes of a recipe."""
        return dict.fromkeys(self.options, self.best)


class Rates:
    """The changes of rates for every setting, as far as they were searched.

    Args:
        study: the study.
        planning: makes plans of it.
        make: makes runs.
        most: values of the grid to try; None: all.
    """

    def __init__(
        self, study: Study, planning: Planning, make: Make, most: int | None = None
    ) -> None:
        self.study, self.planning, self.make, self.most = study, planning, make, most
        self.found: list[Found] = []
        search = study.search
        if search is None:
            return
        searched = [name for name in study.runnable() if study.settings[name].search]
        if search.first is not None:
            self.found += self._search(search, [search.first])
        self.found += self._search(search, [name for name in searched if name != search.first])

    def of(self, setting: str) -> dict[str, Any]:
        """Return what the search changes in a setting's recipe."""
        first = None if self.study.search is None else self.study.search.first
        changes: dict[str, Any] = {}
        for name in (first, self.study.rates_of(setting)):
            for found in self.found:
                if found.setting == name:
                    changes |= found.changes
        return changes

    def _search(self, search: Search, names: Sequence[str]) -> list[Found]:
        """Try the grid in each of the settings."""
        trials = [
            (name, value, self._plan(search, name, value))
            for name in names
            for value in search.values[: self.most]
        ]
        runs = self.make([plan for _, _, plan in trials])
        found = []
        for name in names:
            own = {v: run for (n, v, _), run in zip(trials, runs, strict=True) if n == name and run}
            if not own:
                continue
            figures = {value: run.metric(VALIDATION, search.metric) for value, run in own.items()}
            seconds = sum(float(run.result["seconds"]["all"]) for run in own.values())
            found.append(Found(name, self.study.settings[name].search, figures, seconds))
        return found

    def _plan(self, search: Search, name: str, value: float) -> Plan:
        rates = dict.fromkeys(self.study.settings[name].search, value)
        changes = {**self.of(name), **rates, "seed": search.seed}
        if search.steps is not None:
            changes["steps"] = search.steps
        return self.planning(name, (VALIDATION,), **changes)
