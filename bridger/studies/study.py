"""A study: one base recipe, and settings that each change some of it; a small JSON file.

    {
      "note": "What it asks.",
      "base": "quickstart",
      "reference": "three Bridgers",
      "settings": {
        "three Bridgers": {},
        "none": {"changes": {"bridgers": null}}
      }
    }

Changes are options of `Recipe`. "bridger_options" and "head" are merged with the base's, so that a
setting says what differs alone, unless "bridgers" or "task" change with them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger._json import check_object, read_json
from bridger.config import Config, check_known, check_number, check_whole, did_you_mean

if TYPE_CHECKING:
    from bridger.training import Recipe

FOLDER = Path(__file__).parent / "files"
VALIDATION = "val"
"""The split that chooses checkpoints and learning rates."""

RATES = ("learning_rate", "bridger_learning_rate", "tower_learning_rate")
MERGED = {"bridger_options": "bridgers", "head": "task"}
"""Groups of options that are merged with the base's, and what they are options of."""

RESERVED = ("runs", "scenes")
"""What a store's folder holds beside the reports, which bear the studies' names."""

COMPARISON = "compare"
"""The study of `bridger compare`; the others are those of `bridger ablate`."""

SCENES = {"train": 2000, "val": 150, "testA": 200, "testB": 200}
"""Pictures of the embedded scenes where a study says nothing else."""


@dataclass(frozen=True)
class Setting(Config):
    """One row of a study.

    Attributes:
        changes: options of the recipe that differ from the base's.
        group: settings of one method in several sizes have one group; plots join them.
        size: what tells the sizes apart, for people: a rank, a width.
        search: options of the recipe that take the searched rate, such as "tower_learning_rate".
        rates: the searched setting whose rates this one takes; by default the one of its group.
        seeds: how many, where it is another number than the study's.
        reason: why there is nothing to run; such a row says so.

    Raises:
        ValueError: a setting with both a reason and changes, or a bad value.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None
    size: str | None = None
    search: tuple[str, ...] = ()
    rates: str | None = None
    seeds: int | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.changes, Mapping):
            raise ValueError(f"changes must be options of a recipe by name, got {self.changes!r}")
        if "seed" in self.changes:
            raise ValueError("the seed is the runs', not a setting's: leave it out")
        if self.reason is not None and (self.changes or self.search):
            raise ValueError("a setting with a reason is not run: leave its changes out")
        search: Any = self.search
        if isinstance(search, str):
            raise ValueError(f"search is a list of rates, got {search!r}")
        for name in self.search:
            check_known("search", name, RATES)
        if self.seeds is not None:
            check_whole("seeds", self.seeds)


@dataclass(frozen=True)
class Search(Config):
    """How learning rates are found: the same grid for every group, judged on val alone.

    Attributes:
        values: the grid.
        steps: updates of a run of the search; None: as many as of any other.
        seed: of the search, which no other run has.
        metric: what is compared.
        first: a setting whose rates are searched before all others, and hold for all: that of
            the head, say, which every row has.

    Raises:
        ValueError: an empty grid, or a bad value.
    """

    values: tuple[float, ...] = ()
    steps: int | None = None
    seed: int = 1000
    metric: str = "mIoU"
    first: str | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a search needs values: the learning rates to try")
        for value in self.values:
            check_number("a searched rate", value)
        if self.steps is not None:
            check_whole("steps", self.steps)
        check_whole("seed", self.seed, 0)


@dataclass(frozen=True)
class Study(Config):
    """What is compared with what.

    Attributes:
        name: of the study, by default its file's.
        note: what it asks, in a sentence or two.
        base: the recipe that all settings change, a name in the package or a file.
        changes: options that differ from it in all settings.
        reference: the setting that the others are compared with; by default the first.
        settings: by name, in the order of the table.
        seeds: how many runs a setting has, with seeds 0, 1, ...
        search: how learning rates are found; None: they are the recipe's.
        scenes: pictures by split of the embedded scenes, for where no data are named.

    Raises:
        ValueError: no settings, an unknown reference, or an option that is none.
    """

    name: str = ""
    note: str = ""
    base: str = "quickstart"
    changes: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    seeds: int = 3
    search: Search | None = None
    scenes: Mapping[str, int] = field(default_factory=lambda: dict(SCENES))

    def __post_init__(self) -> None:
        check_object(self.settings, "settings")
        settings = {n: _read_setting(n, s) for n, s in self.settings.items()}
        object.__setattr__(self, "settings", settings)
        search: Any = self.search
        if isinstance(search, Mapping):
            object.__setattr__(self, "search", Search.from_dict(search))
        run = [name for name, setting in settings.items() if setting.reason is None]
        if not run:
            raise ValueError("a study needs settings to run")
        if not self.reference:
            object.__setattr__(self, "reference", run[0])
        self._check_names(run)
        check_whole("seeds", self.seeds)
        for split in self.scenes:
            check_known("scenes", split, tuple(SCENES))

    def _check_names(self, run: list[str]) -> None:
        """Refuse names of settings that are none, or not of the kind that is needed."""
        searched = [name for name in run if self.settings[name].search]
        if searched and self.search is None:
            raise ValueError(
                f"{searched[0]!r} names rates to search, and the study has no search: say which "
                'values to try, "search": {"values": [...]}'
            )
        named = {"search.first": self._first}
        named |= {f"{name}.rates": self.settings[name].rates for name in run}
        for what, name in {"reference": self.reference, **named}.items():
            if name is not None and name not in run:
                raise ValueError(f"{what} {name!r} is no setting: {did_you_mean(name, run)}")
        for what, name in named.items():
            if name is not None and name not in searched:
                raise ValueError(f"{what} {name!r} is a setting whose rates are not searched")

    @property
    def _first(self) -> str | None:
        return None if self.search is None else self.search.first

    @classmethod
    def load(cls, name: str | os.PathLike[str]) -> Study:
        """Read a study's file, or one of the package by its name.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: there is none of that name, or it cannot be followed.
        """
        path = Path(name) if os.fspath(name).endswith(".json") else _in_package(os.fspath(name))
        if not path.is_file():
            raise FileNotFoundError(f"there is no study file {path}")
        values = read_json(path)
        check_object(values, path)
        base = str(values.get("base", ""))
        if base.endswith(".json"):  # lies where the study says, seen from the study
            values = {**values, "base": str(path.parent / base)}
        try:
            study = cls.from_dict({"name": path.stem, **values})
            study.check()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return study

    def check(self) -> None:
        """Refuse, before hours of runs, what one of them would refuse.

        Raises:
            FileNotFoundError: there is no such base.
            ValueError: a setting's recipe cannot be followed, the search compares a metric that
                its task does not have, or the name is no name of a folder.
        """
        from bridger.tasks import get_task

        if self.name.startswith(RESERVED) or Path(self.name).name != (self.name or None):
            raise ValueError(f"a study cannot be called {self.name!r}: its report has a folder so")
        for setting in self.runnable():
            recipe = self.recipe(setting)
            if self.search is not None:
                check_known("search.metric", self.search.metric, get_task(recipe.task).metrics)

    def runnable(self) -> list[str]:
        """Return the names of the settings that are run."""
        return [name for name, setting in self.settings.items() if setting.reason is None]

    def recipe(self, setting: str, **changes: Any) -> Recipe:
        """Return the recipe of a setting.

        Args:
            setting: its name.
            **changes: options that differ from it once more, such as the seed.

        Raises:
            ValueError: an option of it is unknown, or has a bad value; the setting is named.
        """
        from bridger.training.recipe_files import find_recipe

        recipe = find_recipe(self.base)
        try:
            for options in (self.changes, self.settings[setting].changes, changes):
                recipe = recipe.replace(**_merged(recipe, options))
        except ValueError as error:
            raise ValueError(f"setting {setting!r}: {error}") from error
        return recipe

    def seeds_of(self, setting: str, asked: int | None = None) -> range:
        """Return the seeds of a setting.

        Args:
            setting: its name.
            asked: how many, for all alike; None: as the study has it.
        """
        return range(asked or self.settings[setting].seeds or self.seeds)

    def rates_of(self, setting: str) -> str | None:
        """Return the searched setting whose rates a setting takes, if there is one."""
        own = self.settings[setting]
        if own.search or own.rates is not None:
            return setting if own.search else own.rates
        searched = [name for name, other in self.settings.items() if other.search]
        groups = {self.settings[name].group: name for name in reversed(searched)}
        return None if own.group is None else groups.get(own.group)

    def only(self, names: list[str]) -> Study:
        """Return the study with some of its settings, and those that they need, alone.

        Raises:
            ValueError: one of them is none.
        """
        for name in names:
            if name not in self.settings:
                raise ValueError(
                    f"the study {self.name} has no setting {name!r}: "
                    f"{did_you_mean(name, list(self.settings))}"
                )
        kept = {self.reference, self._first, *names}
        kept |= {self.rates_of(name) for name in (self.reference, *names)}
        return self.replace(settings={n: s for n, s in self.settings.items() if n in kept})


def study_names() -> list[str]:
    """Return the names of the studies in the package, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def _in_package(name: str) -> Path:
    names = study_names()
    if name not in names:
        raise ValueError(
            f"there is no study {name!r}: {did_you_mean(name, names)} (a file of your own ends in "
            ".json)"
        )
    return FOLDER / f"{name}.json"


def _read_setting(name: str, values: Any) -> Setting:
    if isinstance(values, Setting):
        return values
    check_object(values, f"setting {name!r}")
    try:
        return Setting.from_dict(values)
    except ValueError as error:
        raise ValueError(f"setting {name!r}: {error}") from error


def _merged(recipe: Recipe, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes with groups of options merged into the recipe's."""
    merged = dict(options)
    for group, kind in MERGED.items():
        own, given = getattr(recipe, group), options.get(group)
        same = options.get(kind, getattr(recipe, kind)) == getattr(recipe, kind)
        if given and same:
            merged[group] = {**own, **given}
    return merged


def identity(recipe: Recipe) -> dict[str, Any]:
    """Return what of a recipe decides a run, but its seed, in plain values for JSON.

    What is as it is by default is left out, so that options which a later version adds make no
    other run of an old one.
    """
    from bridger.training.recipes import DESCRIPTIONS

    values, usual = (json.loads(json.dumps(r.to_dict())) for r in (recipe, type(recipe)()))
    aside = (*DESCRIPTIONS, "seed")
    return {n: v for n, v in values.items() if n not in aside and v != usual[n]}
