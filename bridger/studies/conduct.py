"""Conducting a study: data, searched rates, runs, rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bridger.studies.results import Row, StudyResults
from bridger.studies.scheduling import Machine, Report, RunFailed, run_all
from bridger.studies.search import VALIDATION, Found, Rates
from bridger.studies.store import Plan, Run, Store, draw_answer, fingerprint, picture_file
from bridger.studies.study import Study

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

        Settings whose runs failed have rows that say so.

        Raises:
            FileNotFoundError, ValueError: the data cannot be used; see `open_splits`.
            KeyboardInterrupt: Ctrl-C; the same call goes on.
        """
        splits = self._open()
        self.fingerprints = {name: fingerprint(data) for name, data in splits.items()}
        self.judged = tuple(name for name in splits if name != "train")
        if not self.store.pictures():
            asked = questions(splits, self.judged)
            self.store.write_pictures(asked)
            draw_meant(splits, asked, self.store.root)
        rates = Rates(self.study, self.plan, self.make, QUICK_VALUES if self.quick else None)
        self._check_searched(rates.found)
        plans = self._plans(rates)
        runs = self.make(plans)
        made: dict[str, list[Run]] = {}
        for plan, run in zip(plans, runs, strict=True):
            if run is not None:
                made.setdefault(plan.setting, []).append(run)
        return self._results(made, rates.found)

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
        read = [name for name in self.fingerprints if name in ("train", VALIDATION, *judged)]
        fingerprints = {name: self.fingerprints[name] for name in read}
        return Plan(setting, recipe, self.data, judged, fingerprints)

    def make(self, plans: Sequence[Plan]) -> list[Run | None]:
        """Make runs, and return them; None for those that failed."""
        try:
            run_all(plans, self.store, self.machine, self.report, self.imports)
        except RunFailed as failed:
            self.failures.append(str(failed))
        return [self.store.find(plan) for plan in plans]

    def _open(self) -> dict[str, Any]:
        from bridger.tasks import get_task

        recipe = self.study.recipe(self.study.reference)
        task = get_task(recipe.task)
        there = task.splits(self.data)
        if "train" not in there or VALIDATION not in there:
            raise ValueError(
                f"a study trains on train and chooses checkpoints and rates on {VALIDATION}; "
                f"{self.data} has {', '.join(there)}"
            )
        tests = [name for name in there if name.startswith("test")]
        names = ["train", VALIDATION, *tests]
        return dict(zip(names, task.open_several(self.data, names), strict=True))

    def _plans(self, rates: Rates) -> list[Plan]:
        """Return all runs, first those of the first seed: tables fill from the top."""
        seeds = {name: self.study.seeds_of(name, self.seeds) for name in self.study.runnable()}
        return [
            self.plan(name, **{**rates.of(name), "seed": seed})
            for seed in range(max(map(len, seeds.values())))
            for name in self.study.runnable()
            if seed in seeds[name]
        ]

    def _check_searched(self, found: Sequence[Found]) -> None:
        missing = [
            name
            for name in self.study.runnable()
            if self.study.settings[name].search and name not in {each.setting for each in found}
        ]
        if missing:
            raise RunFailed(
                f"no learning rate was found for {', '.join(missing)}: {' '.join(self.failures)}"
            )

    def _results(self, made: dict[str, list[Run]], found: Sequence[Found]) -> StudyResults:
        rows = []
        for name, setting in self.study.settings.items():
            runs = made.get(name, [])
            reason = setting.reason
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


def questions(splits: dict[str, Any], judged: Sequence[str]) -> list[dict[str, Any]]:
    """Return what every run is asked for a picture of: the first pictures of the test splits.

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


def draw_meant(splits: dict[str, Any], asked: Sequence[dict[str, Any]], root: Path) -> None:
    """Draw what is meant in the pictures that every run is asked about."""
    from bridger.predictions import Prediction

    for number, question in enumerate(asked):
        sample = splits[question["split"]][question["index"]]
        meant = Prediction.from_probabilities((sample.mask[None] > 0).astype(np.float32), 0.5)
        draw_answer(meant, sample.image_path, root / picture_file(number))
