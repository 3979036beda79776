"""Conducting a study: data, searched rates, runs, rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bridger.studies.data import open_data, splits_to_judge
from bridger.studies.results import Row, StudyResults
from bridger.studies.scheduling import Machine, Report, RunFailed, run_all
from bridger.studies.search import Found, Rates
from bridger.studies.store import Plan, Run, Store, draw_answer, fingerprint
from bridger.studies.study import VALIDATION, Study

QUESTIONS = 4
QUICK = {"steps": 4, "evaluations": 1}
QUICK_VALUES = 2  # of a search's grid
QUICK_SCENES = {"train": 24, "val": 4, "testA": 4, "testB": 4}


@dataclass
class Conduct:
    """One study on one data set, in one store.

    Attributes:
        study: what is asked.
        data: folder of a data set of referring expressions.
        store: where runs go.
        machine: how many at once.
        seeds: of every setting; None: as the study has it.
        quick: runs of a few updates, which say nothing but that all of it works.
        report: is told how far a series of runs is.
        imports: modules of the user's own that every run imports first.
        failures: what went wrong, filled while runs are made.
    """

    study: Study
    data: Path
    store: Store
    machine: Machine
    seeds: int | None = None
    quick: bool = False
    report: Report | None = None
    imports: Sequence[str] = ()
    failures: list[str] = field(default_factory=list)

    def __call__(self) -> StudyResults:
        """Make what is missing, and return the rows.

        Settings whose runs failed, or whose rates could not be searched, have rows that say so.

        Raises:
            FileNotFoundError, ValueError: the data cannot be used; see `splits_to_judge`.
            KeyboardInterrupt: Ctrl-C; the same call goes on.
        """
        self._ask()
        rates = Rates(self.study, self.plan, self.make, QUICK_VALUES if self.quick else None)
        lacking = self._lacking(rates.found)
        plans = self._plans(rates, [n for n in self.study.runnable() if n not in lacking])
        made: dict[str, list[Run]] = {}
        for plan, run in zip(plans, self.make(plans), strict=True):
            if run is not None:
                made.setdefault(plan.setting, []).append(run)
        return self._results(made, rates.found, lacking)

    @cached_property
    def judged(self) -> tuple[str, ...]:
        """The splits that are judged: the validation split, and those to test on."""
        recipes = map(self.study.recipe, self.study.runnable())
        kinds = {(recipe.task, recipe.datasets): recipe for recipe in recipes}
        if len({datasets for _, datasets in kinds}) > 1:
            raise ValueError(
                f"settings of {self.study.name} name different data sets, and so cannot be "
                "compared: name them in the base, in the study's changes, or by --dataset"
            )
        of_each = [splits_to_judge(recipe, self.data, VALIDATION) for recipe in kinds.values()]
        return tuple(of_each[0])

    @cached_property
    def splits(self) -> dict[str, Any]:
        """The data by split."""
        return open_data(self.study.recipe(self.study.reference), self.data, self.judged)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What tells the data, and files of the user's own, from others."""
        files = {
            f"--import {Path(name).name}": hashlib.sha256(Path(name).read_bytes()).hexdigest()[:16]
            for name in self.imports
            if name.endswith(".py")
        }
        return {**{name: fingerprint(data) for name, data in self.splits.items()}, **files}

    def plan(self, setting: str, splits: Sequence[str] = (), **changes: Any) -> Plan:
        """Return a run of a setting.

        Args:
            setting: its name.
            splits: what is judged at its end; none: all but the training split.
            **changes: options of the recipe that differ from the setting's.
        """
        if self.quick:
            changes = {**changes, **QUICK}
        recipe = self.study.recipe(setting, report_to=(), **changes)
        judged = tuple(splits) or self.judged
        # The validation split chooses the checkpoint, whatever is judged.
        unread = set(self.judged) - {VALIDATION, *judged}
        read = {name: told for name, told in self.fingerprints.items() if name not in unread}
        return Plan(setting, recipe, self.data, judged, read, self.machine.use_cpu)

    def make(self, plans: Sequence[Plan]) -> list[Run | None]:
        """Make runs, and return them; None for those that failed."""
        try:
            run_all(plans, self.store, self.machine, self.report, self.imports)
        except RunFailed as failed:
            self.failures.append(str(failed))
        return [self.store.find(plan) for plan in plans]

    def _ask(self) -> None:
        """Fix what all runs on these data are asked for a picture of, and draw what is meant."""
        if self.store.questions(self.fingerprints):
            return
        asked = questions(self.splits, self.judged)
        folder = self.store.write_questions(self.fingerprints, asked)
        for number, question in enumerate(asked):
            draw_meant(self.splits[question["split"]][question["index"]], folder / f"{number}.jpg")

    def _plans(self, rates: Rates, names: Sequence[str]) -> list[Plan]:
        """Return all runs, first those of the first seed: tables fill from the top."""
        seeds = {name: self.study.seeds_of(name, self.seeds) for name in names}
        return [
            self.plan(name, **{**rates.of(name), "seed": seed})
            for seed in range(max(map(len, seeds.values()), default=0))
            for name in names
            if seed in seeds[name]
        ]

    def _lacking(self, found: Sequence[Found]) -> dict[str, str]:
        """Return the settings whose rates no run of the search gave, with a reason."""
        known = {each.setting for each in found}
        first = None if self.study.search is None else self.study.search.first
        lacking = {}
        for name in self.study.runnable():
            needed = {self.study.rates_of(name), first} - {None}
            if missing := sorted(str(each) for each in needed - known):
                lacking[name] = f"no learning rate was found for {missing[0]}: its runs failed"
        return lacking

    def _results(
        self, made: Mapping[str, list[Run]], found: Sequence[Found], lacking: Mapping[str, str]
    ) -> StudyResults:
        rows = []
        for name, setting in self.study.settings.items():
            runs = made.get(name, [])
            reason = setting.reason or lacking.get(name)
            if reason is None and not runs:
                reason = "its runs ended with an error"
            rows.append(Row(name, tuple(runs), setting.group, setting.size, reason))
        return StudyResults(
            name=self.study.name,
            note=self.study.note,
            reference=self.study.reference,
            splits=self.judged,
            rows=tuple(rows),
            searched=tuple(found),
            quick=self.quick,
        )


def questions(splits: Mapping[str, Any], judged: Sequence[str]) -> list[dict[str, Any]]:
    """Return what runs are asked for a picture of: the first pictures of the test splits.

    Args:
        splits: data sets by name.
        judged: what is judged; its validation split is asked about where it is alone.
    """
    tests = [name for name in judged if name != VALIDATION] or list(judged)
    each = max(1, QUESTIONS // len(tests))
    return [
        {
            "split": split,
            "index": refs[0],
            "image": splits[split][refs[0]].image_path.name,
            "words": splits[split][refs[0]].sentences[0],
        }
        for split in tests[:QUESTIONS]
        for refs in splits[split].pictures()[:each]
    ]


def draw_meant(sample: Any, file: Path) -> None:
    """Draw what a ref means.

    Args:
        sample: the ref.
        file: where to.
    """
    from bridger.predictions import Prediction

    meant = Prediction.from_probabilities((sample.mask[None] > 0).astype(np.float32), 0.5)
    draw_answer(meant, sample.image_path, file)
