"""What an evaluation found, expression by expression, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from bridger.evaluation.bootstrap import percentile_intervals
from bridger.evaluation.expressions import ExpressionCase
from bridger.evaluation.generalized import generalized_ious, generalized_ratios
from bridger.evaluation.metrics import (
    Counts,
    Floats,
    Ratio,
    intersections_over_unions,
    referring_ratios,
    values_of,
)

Sentences = Literal["first", "every"]
Stratum = Literal["kind", "size", "source"]

SIZES = ("small", "medium", "large", "empty")
SMALL, LARGE = 32**2, 96**2  # pixels of the true mask, as in COCO's evaluation


@dataclass(frozen=True)
class Case(ExpressionCase):
    """One expression, judged by its mask.

    Attributes:
        area: pixels of the true mask; 0: nothing is meant.
        intersections: pixels of the predicted and the true mask, at each of the thresholds.
        predicted: pixels of the predicted mask, at each of the thresholds.
    """

    area: int
    intersections: tuple[int, ...]
    predicted: tuple[int, ...]

    @property
    def object_size(self) -> str:
        """One of `SIZES`: small below 32^2 pixels of the true mask, large from 96^2 on."""
        if self.area == 0:
            return "empty"
        if self.area < SMALL:
            return "small"
        return "medium" if self.area < LARGE else "large"


@dataclass(frozen=True)
class Evaluation:
    """The judged expressions of a split, or a part of them, in the order of the data set.

    All figures are shares from 0 to 1.

    Attributes:
        name: of the data set.
        split: name of the split.
        sentences: whether "every" sentence was judged, or the "first" of each ref.
        cases: the expressions.
        thresholds: at which masks were counted, in the order of the cases' counts.
        threshold: probability above which a pixel belongs to the mask, one of `thresholds`.
        generalized: some expressions mean nothing or several objects, so that gRefCOCO's figures
            are told as well.
        loss: mean loss of the expressions at the model's input size; None for a part.
    """

    name: str
    split: str
    sentences: Sentences
    cases: tuple[Case, ...]
    thresholds: tuple[float, ...]
    threshold: float
    generalized: bool
    loss: float | None

    def __len__(self) -> int:
        """Return the number of expressions."""
        return len(self.cases)

    @property
    def refs(self) -> int:
        """How many refs the expressions belong to."""
        return len({case.index for case in self.cases})

    @property
    def headline(self) -> str:
        """Name of the metric that is told where only one is: "mIoU", or "gIoU"."""
        return "gIoU" if self.generalized else "mIoU"

    # Counts.

    @property
    def intersections(self) -> Counts:
        """Pixels (E,) that are in both masks."""
        return self._counts[0][:, self._column]

    @property
    def predicted(self) -> Counts:
        """Pixels (E,) of the predicted masks."""
        return self._counts[1][:, self._column]

    @property
    def areas(self) -> Counts:
        """Pixels (E,) of the true masks."""
        return np.array([case.area for case in self.cases], dtype=np.int64)

    @property
    def unions(self) -> Counts:
        """Pixels (E,) that are in either mask."""
        return self.predicted + self.areas - self.intersections

    @property
    def ious(self) -> Floats:
        """IoU (E,) of every expression, I / (U + 1e-6)."""
        return intersections_over_unions(self.intersections, self.unions)

    @property
    def scores(self) -> Floats:
        """What `worst` and `best` go by (E,): IoU, and 1 where nothing is meant and none found."""
        if not self.generalized:
            return self.ious
        return generalized_ious(self.intersections, self.predicted, self.areas)

    @cached_property
    def _counts(self) -> tuple[Counts, Counts]:
        shape = len(self), len(self.thresholds)
        both = (
            [case.intersections for case in self.cases],
            [case.predicted for case in self.cases],
        )
        first, second = (np.array(rows, dtype=np.int64).reshape(shape) for rows in both)
        return first, second

    @property
    def _column(self) -> int:
        return self.thresholds.index(self.threshold)

    # Figures.

    def ratios(self) -> dict[str, Ratio]:
        """Return every figure as a ratio of sums over the expressions."""
        ratios = referring_ratios(self.intersections, self.unions)
        if self.generalized:
            ratios |= generalized_ratios(self.intersections, self.predicted, self.areas)
        return ratios

    def metrics(self) -> dict[str, float]:
        """Return "mIoU", "oIoU", "P@0.5" ... "P@0.9" as the reference computes them.

        Where some expressions mean nothing or several objects, also gRefCOCO's figures, "gIoU",
        "cIoU", "N-acc", "T-acc", "Pr@0.7", "Pr@0.8", "Pr@0.9", as far as they are defined; see
        `generalized_ratios`. There mIoU and oIoU count every expression that means nothing as
        missed, whatever was predicted.
        """
        return values_of(self.ratios())

    def figures(self) -> dict[str, float]:
        """Return the metrics, and of a whole evaluation the "loss", as a Trainer reports them."""
        return self.metrics() if self.loss is None else {**self.metrics(), "loss": self.loss}

    def bootstrap(
        self, level: float = 0.95, resamples: int = 2000, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Return an interval (low, high) for every metric, resampled over pictures.

        The expressions of a picture are not independent: see `percentile_intervals`, which also
        says what is raised.

        Args:
            level: share of resamples that an interval holds.
            resamples: how many are drawn.
            seed: of the draws.
        """
        pictures = np.array([case.picture for case in self.cases])
        return percentile_intervals(self.ratios(), pictures, level, resamples, seed)

    def rows(self) -> list[dict[str, Any]]:
        """Return a record for every expression, at the threshold that was asked for."""
        counts = zip(
            self.cases,
            self.intersections.tolist(),
            self.unions.tolist(),
            self.predicted.tolist(),
            self.ious.tolist(),
            strict=True,
        )
        return [
            {
                "dataset": self.name,
                "split": self.split,
                **case.about(),
                "area": case.area,
                "predicted_area": predicted,
                "intersection": intersection,
                "union": union,
                "iou": iou,
                "object_size": case.object_size,
            }
            for case, intersection, union, predicted, iou in counts
        ]

    # Other views of the same run.

    def by(self, stratum: Stratum) -> dict[str, Evaluation]:
        """Split the expressions up, by "kind", the object's "size", or "source".

        Args:
            stratum: one of the three.

        Returns:
            Evaluations by name: sizes from small to empty, others in alphabetical order.
        """
        name_of: Mapping[str, Callable[[Case], str]] = {
            "kind": lambda case: case.kind,
            "size": lambda case: case.object_size,
            "source": lambda case: case.source,
        }
        if stratum not in name_of:
            raise ValueError(f"expected one of {', '.join(name_of)}, got {stratum!r}")
        parts: dict[str, list[Case]] = {}
        for case in self.cases:
            parts.setdefault(name_of[stratum](case), []).append(case)
        names = [n for n in SIZES if n in parts] if stratum == "size" else sorted(parts)
        return {name: self._part(tuple(parts[name])) for name in names}

    def first_sentences(self) -> Evaluation:
        """Return the part that holds the first sentence of each ref alone."""
        part = self._part(tuple(case for case in self.cases if case.order == 0))
        return replace(part, sentences="first")

    def at(self, threshold: float) -> Evaluation:
        """Return the same at another of the `thresholds`.

        Args:
            threshold: one of `thresholds`.

        Raises:
            ValueError: masks were not counted at this threshold.
        """
        if threshold not in self.thresholds:
            raise ValueError(
                f"masks were not counted at {threshold}, only at "
                f"{', '.join(map(str, sorted(self.thresholds)))}; evaluate anew with it"
            )
        other = replace(self, threshold=threshold)
        other.__dict__["_counts"] = self._counts  # which is a cached property
        return other

    def best_threshold(self) -> float:
        """Return the threshold of the highest mIoU, or gIoU where that is told.

        It is chosen on the expressions that it is judged by, so its figures say how much a
        better threshold might give, and are not comparable with others'.
        """
        return max(sorted(self.thresholds), key=lambda t: self.at(t).ratios()[self.headline].value)

    def worst(self, count: int) -> list[tuple[Case, float]]:
        """Return the expressions of the lowest score with it, at most one of each picture.

        Of the same score, those with the most wrong pixels come first.

        Args:
            count: how many.
        """
        return list(self._ranked(self.scores, count))

    def best(self, count: int) -> list[tuple[Case, float]]:
        """Return the expressions of the highest score with it, at most one of each picture.

        Args:
            count: how many.
        """
        return list(self._ranked(-self.scores, count))

    def _ranked(self, keys: Floats, count: int) -> Iterator[tuple[Case, float]]:
        wrong, scores, seen = self.unions - self.intersections, self.scores, set[str]()
        for place in np.lexsort((-wrong, keys)):
            case = self.cases[place]
            if len(seen) == count:
                return
            if case.picture not in seen:
                seen.add(case.picture)
                yield case, float(scores[place])

    def _part(self, cases: tuple[Case, ...]) -> Evaluation:
        return replace(self, cases=cases, loss=None)
