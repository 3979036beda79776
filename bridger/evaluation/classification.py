"""Judging classification: the classes that a picture shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bridger.data.labelled import ClassifiedPicture, LabelledDataset
from bridger.evaluation.bootstrap import percentile_intervals
from bridger.evaluation.labelled import (
    Intervals,
    LabelledEvaluation,
    PictureCase,
    by_name,
    defined,
    mean_of_defined,
)
from bridger.evaluation.metrics import Counts, Floats, Ratio, values_of
from bridger.evaluation.pictures import (
    MeanSoFar,
    Report,
    head_for,
    judge_pictures,
    places_of,
)
from bridger.evaluation.ranking import average_precisions, ranks
from bridger.heads import ClassificationHead, HeadOutput
from bridger.model import BridgedModel
from bridger.processing import Placement
from bridger.texts import Texts

TOP = 5


@dataclass(frozen=True, eq=False)
class ClassificationCase(PictureCase):
    """One picture, judged.

    Attributes:
        labels: the classes that it shows.
        logits: (K,) float32, the head's.
    """

    labels: tuple[int, ...]
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True)
class ClassificationEvaluation(LabelledEvaluation[ClassificationCase]):
    """What `evaluate_classification` found; see `LabelledEvaluation`.

    Attributes:
        multi_label: a picture may show any number of classes.
    """

    multi_label: bool = False

    scored = "average precision"

    @property
    def headline(self) -> str:
        """Name of the metric that is told where only one is: "top1", or multi-label "mAP"."""
        return "mAP" if self.multi_label else "top1"

    @cached_property
    def logits(self) -> npt.NDArray[np.float32]:
        """The head's logits (E, K)."""
        return np.stack([case.logits for case in self.cases])

    @cached_property
    def ranks(self) -> Counts:
        """How many classes (E,) come before the true one; for pictures that show one each."""
        return ranks(self.logits, self._labels)

    @property
    def _shown(self) -> npt.NDArray[np.bool_]:
        """Which pictures show which classes, (E, K)."""
        shown = np.zeros(self.logits.shape, dtype=bool)
        for row, case in zip(shown, self.cases, strict=True):
            row[list(case.labels)] = True
        return shown

    @property
    def _labels(self) -> Counts:
        return np.array([case.labels[0] for case in self.cases], dtype=np.int64)

    def metrics(self) -> dict[str, float]:
        """Return the figures that are defined.

        "top1": the share of pictures whose true class has the highest score of all classes (of
        equal scores the first class's counts as higher); "top1 seen" and "top1 unseen": of the
        pictures of classes that the head was trained on, and of the others. "top5": the share in
        which it is among the five highest, where there are more than five classes. "mean per
        class": the mean over the classes of the share of their pictures that is right.
        Multi-label: "mAP", the mean of `average_precision` over the classes that are shown by any
        picture, "mAP seen" and "mAP unseen".
        """
        if not self.multi_label:
            recalls = mean_of_defined(self._per_class()["top1"])
            return {**values_of(self._ratios()), "mean per class": recalls}
        known, values = np.array(self.seen, dtype=bool), self._per_class()["AP"]
        parts = {"mAP": values, "mAP seen": values[known], "mAP unseen": values[~known]}
        return defined({name: mean_of_defined(part) for name, part in parts.items()})

    def per_class(self) -> dict[str, dict[str, float]]:
        """Return the share of each class's pictures that is right, "top1", or multi-label "AP"."""
        return by_name(self.classes, self._per_class())

    def scores(self) -> Floats:
        """Return the average precision (E,) of each picture's classes among all of them.

        Of a picture with one class that is 1 over the place at which it comes.
        """
        return average_precisions(self.logits.T, self._shown.T)

    def rows(self) -> list[dict[str, Any]]:
        """Return of every picture the true classes, and those of the highest scores."""
        return [
            {
                "dataset": self.name,
                "split": self.split,
                "image": case.image,
                "true": [self.classes[label] for label in case.labels],
                "found": [
                    self.classes[label]
                    for label in np.argsort(-case.logits, kind="stable")[:TOP].tolist()
                ],
            }
            for case in self.cases
        ]

    def bootstrap(self, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Intervals:
        """Return intervals of the shares of pictures; see `percentile_intervals`.

        Args:
            level: share of resamples that an interval holds.
            resamples: how many are drawn.
            seed: of the draws.
        """
        if self.multi_label:
            return {}
        groups = np.arange(len(self.cases))
        return percentile_intervals(self._ratios(), groups, level, resamples, seed)

    def _ratios(self) -> dict[str, Ratio]:
        """Return the figures that are shares of pictures."""
        right, each = (self.ranks == 0).astype(np.float64), np.ones(len(self))
        seen = np.array(self.seen, dtype=np.float64)[self._labels]
        ratios = {"top1": Ratio(right, each)}
        if len(self.classes) > TOP:
            ratios["top5"] = Ratio((self.ranks < TOP).astype(np.float64), each)
        for name, counted in (("top1 seen", seen), ("top1 unseen", 1 - seen)):
            ratios[name] = Ratio(right * counted, counted)
        return ratios

    def _per_class(self) -> dict[str, Floats]:
        if self.multi_label:
            return {"AP": average_precisions(self.logits, self._shown)}
        right, count = (
            np.bincount(self._labels, weights, minlength=len(self.classes))
            for weights in (self.ranks == 0, None)
        )
        return {"top1": np.where(count > 0, right / np.maximum(count, 1), np.nan)}


def evaluate_classification(
    model: BridgedModel,
    data: LabelledDataset[ClassifiedPicture],
    head: str | None = None,
    batch_size: int = 32,
    report: Report | None = None,
) -> ClassificationEvaluation:
    """Judge a classification head by the order of its scores over all classes of a data set.

    Several processes share the pictures as in `bridger.evaluation.evaluate`.

    Args:
        model: the model, with its processor; its modules' modes are restored at the end.
        data: the split; the head is asked about all of its classes, or about its own fixed list.
        head: which head answers, where there are several.
        batch_size: pictures that are computed together.
        report: called after every batch with how many pictures of this process's share are done,
            of how many, and the share that is right so far; nan for a multi-label head, whose
            precision takes all pictures.

    Raises:
        RuntimeError: the model has no processor.
        FileNotFoundError: pictures are missing; nothing was computed yet.
        ValueError: an unknown head or one of another task, a split without pictures, or pictures
            that do not show one class each for a head that is not multi-label.
    """
    name = head_for(model, head, ClassificationHead, "name the class of a picture")
    chosen: Any = model.heads[name]
    multi_label: bool = chosen.config.multi_label
    if not multi_label:
        _check_one_label(data, name)

    def count(
        pictures: Sequence[ClassifiedPicture],
        output: HeadOutput,
        placements: list[Placement],
        texts: Texts,
    ) -> list[ClassificationCase]:
        places = places_of(texts, data)
        rows = np.full((len(pictures), len(data.classes)), -np.inf, dtype=np.float32)
        rows[:, places[places >= 0]] = output.logits.float().cpu().numpy()[:, places >= 0]
        return [
            ClassificationCase(str(picture.image_path), picture.key, picture.labels, scores)
            for picture, scores in zip(pictures, rows, strict=True)
        ]

    so_far = (lambda _: math.nan) if multi_label else MeanSoFar(_is_right)
    cases = judge_pictures(model, data, name, count, so_far, batch_size, report)
    return ClassificationEvaluation.of(data, chosen, cases, multi_label=multi_label)


def _is_right(case: ClassificationCase) -> float:
    return float(ranks(case.logits[None], np.array(case.labels))[0] == 0)


def _check_one_label(data: LabelledDataset[ClassifiedPicture], head: str) -> None:
    counts = {len(data[index].labels) for index in range(len(data))}
    if counts - {1}:
        raise ValueError(
            f"head {head!r} says which one class a picture shows, but pictures of {data!r} show "
            f"{min(counts)} to {max(counts)}: a head for them is trained with multi_label=true"
        )
