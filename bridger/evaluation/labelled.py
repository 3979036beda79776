"""What evaluations of labelled pictures have in common: classes, and a case for each picture."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from bridger.class_phrases import name_key, names_of
from bridger.data.labelled import LabelledDataset
from bridger.evaluation.metrics import Floats
from bridger.heads import Head

CaseT = TypeVar("CaseT", bound="PictureCase")
EvaluationT = TypeVar("EvaluationT", bound="LabelledEvaluation[Any]")
Intervals = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class PictureCase:
    """One picture, judged.

    Attributes:
        image: file of the picture.
        picture: what tells it from the others of its data set.
    """

    image: str
    picture: str


@dataclass(frozen=True)
class LabelledEvaluation(ABC, Generic[CaseT]):
    """The judged pictures of a split, in the order of the data set; figures are from 0 to 1.

    Attributes:
        name: of the data set.
        split: name of the split.
        classes: the K classes' names.
        seen: whether the head was trained on each.
        cases: the pictures.
        scored: what the `scores` of single pictures are.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    seen: tuple[bool, ...]
    cases: tuple[CaseT, ...]

    scored: ClassVar[str]

    @classmethod
    def of(
        cls: type[EvaluationT],
        data: LabelledDataset[Any],
        head: Head,
        cases: Sequence[Any],
        **more: Any,
    ) -> EvaluationT:
        """Say what the cases are of: classes are known by their main names, see `name_key`."""
        names = [names_of(each)[0] for each in data.classes]
        trained = set(map(name_key, getattr(head.config, "classes", ())))
        seen = tuple(name_key(name) in trained for name in names)
        return cls(data.name, data.split, tuple(names), seen, tuple(cases), **more)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.cases)

    @property
    @abstractmethod
    def headline(self) -> str:
        """Name of the metric that is told where only one is."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Return every metric that is defined, by its name."""

    @abstractmethod
    def per_class(self) -> dict[str, dict[str, float]]:
        """Return the figures of every class that has any; the first ones rank the classes."""

    @abstractmethod
    def scores(self) -> Floats:
        """Return how well each picture went (E,), from 0 to 1; nan where that has no meaning."""

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """Return a record for every picture."""

    def figures(self) -> dict[str, float]:
        """Return the metrics, as a Trainer reports them."""
        return self.metrics()

    def bootstrap(self, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Intervals:
        """Return intervals (low, high), resampled over pictures, of the metrics that have them."""
        return {}


def by_name(classes: Sequence[str], figures: Mapping[str, Floats]) -> dict[str, dict[str, float]]:
    """Return figures (K,) by class; what is nan is left out, and so are classes without any."""
    rows = {
        name: {
            figure: float(values[index])
            for figure, values in figures.items()
            if not np.isnan(values[index])
        }
        for index, name in enumerate(classes)
    }
    return {name: row for name, row in rows.items() if row}


def mean_of_defined(values: Floats) -> float:
    """Return the mean of what is not nan; nan where nothing is."""
    defined = values[~np.isnan(values)].tolist()
    return math.fsum(defined) / len(defined) if defined else math.nan


def defined(figures: Mapping[str, float]) -> dict[str, float]:
    """Leave out what is nan."""
    return {name: float(value) for name, value in figures.items() if not math.isnan(value)}
