"""Judging semantic segmentation: a class for every pixel, at the pictures' own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from bridger.data.labelled import LabelledDataset, SegmentedPicture
from bridger.evaluation.bootstrap import ends, resample
from bridger.evaluation.confusion import ClassCounts, confusion, semantic_metrics
from bridger.evaluation.labelled import (
    Intervals,
    LabelledEvaluation,
    PictureCase,
    by_name,
    mean_of_defined,
)
from bridger.evaluation.metrics import Counts, Floats, Ratio
from bridger.evaluation.pictures import Report, head_for, judge_pictures
from bridger.heads import HeadOutput, SemanticSegmentationHead
from bridger.model import BridgedModel
from bridger.processing import Placement, Processor
from bridger.texts import Texts


@dataclass(frozen=True)
class SemanticCase(PictureCase):
    """One picture, judged: its confusion matrix without the zeros.

    Attributes:
        true: the true class of each pair of classes that occurs; K is the background.
        predicted: of each pair the predicted class.
        pixels: how many pixels each pair has.
    """

    true: tuple[int, ...]
    predicted: tuple[int, ...]
    pixels: tuple[int, ...]

    @classmethod
    def of(cls, picture: SegmentedPicture, matrix: Counts) -> SemanticCase:
        """Keep what is not zero of a matrix (K + 1, K + 1)."""
        true, predicted = np.nonzero(matrix)
        parts = (true.tolist(), predicted.tolist(), matrix[true, predicted].tolist())
        return cls(str(picture.image_path), picture.key, *map(tuple, parts))

    def add_to(self, matrix: Counts) -> None:
        """Add the picture's pixels to a matrix (K + 1, K + 1)."""
        matrix[list(self.true), list(self.predicted)] += np.array(self.pixels, dtype=np.int64)

    def counts(self, num_classes: int) -> ClassCounts:
        """Return the picture's pixels by class."""
        true, predicted, pixels = map(np.array, (self.true, self.predicted, self.pixels))
        right = true == predicted

        def add(classes: Counts, where: Any) -> Counts:
            sums = np.bincount(classes[where], pixels[where], minlength=num_classes + 1)
            return sums[:-1].astype(np.int64)

        return ClassCounts(add(true, right), add(true, ...), add(predicted, ...))


@dataclass(frozen=True)
class SemanticEvaluation(LabelledEvaluation[SemanticCase]):
    """What `evaluate_semantic` found; see `LabelledEvaluation`."""

    scored = "mIoU"

    @property
    def headline(self) -> str:
        """Name of the metric that is told where only one is."""
        return "mIoU"

    @cached_property
    def confusion(self) -> Counts:
        """Pixels (K + 1, K + 1) by true and predicted class, the background last."""
        matrix = np.zeros((len(self.classes) + 1,) * 2, dtype=np.int64)
        for case in self.cases:
            case.add_to(matrix)
        return matrix

    def metrics(self) -> dict[str, float]:
        """Return the figures that are defined; `semantic_metrics` says what they are."""
        return semantic_metrics(self.confusion, self.seen)

    def per_class(self) -> dict[str, dict[str, float]]:
        """Return "IoU" and "accuracy" of every class that occurs, as far as they are defined."""
        counts = ClassCounts.of(self.confusion)
        return by_name(self.classes, {"IoU": counts.ious, "accuracy": counts.accuracies})

    def scores(self) -> Floats:
        """Return the mean IoU (E,) of each picture's own classes."""
        counts = (case.counts(len(self.classes)) for case in self.cases)
        return np.array([mean_of_defined(each.ious) for each in counts])

    def rows(self) -> list[dict[str, Any]]:
        """Return of every picture the mean IoU of its own classes, and pixels class by class."""
        names = (*self.classes, "background")
        return [
            {
                "dataset": self.name,
                "split": self.split,
                "image": case.image,
                "iou": None if np.isnan(score) else score,
                "pixels": [
                    {"true": names[true], "predicted": names[predicted], "pixels": pixels}
                    for true, predicted, pixels in zip(
                        case.true, case.predicted, case.pixels, strict=True
                    )
                ],
            }
            for case, score in zip(self.cases, self.scores().tolist(), strict=True)
        ]

    def bootstrap(self, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Intervals:
        """Return intervals (low, high) of the mean IoUs, resampled over pictures.

        In every resample the mean is over the classes that occur in it. Arguments and errors as of
        `percentile_intervals`.

        Args:
            level: share of resamples that an interval holds.
            resamples: how many are drawn.
            seed: of the draws.
        """
        counts = [case.counts(len(self.classes)) for case in self.cases]
        both, unions = (
            np.array([getattr(each, name) for each in counts], dtype=np.float64)
            for name in ("both", "unions")
        )
        ratios = [Ratio(above, below) for above, below in zip(both.T, unions.T, strict=True)]
        drawn = resample(ratios, np.arange(len(self.cases)), resamples, seed)
        occurs = ~np.isnan(drawn)
        found = {}
        for name, chosen in (
            ("mIoU", np.ones(len(self.seen), dtype=bool)),
            ("mIoU seen", np.array(self.seen)),
            ("mIoU unseen", ~np.array(self.seen)),
        ):
            if name in self.metrics():
                counted = occurs & chosen
                sums, times = np.where(counted, drawn, 0).sum(axis=1), counted.sum(axis=1)
                found[name] = np.where(times > 0, sums / np.maximum(times, 1), np.nan)
        return dict(zip(found, ends(np.stack(list(found.values()), axis=1), level), strict=True))


def evaluate_semantic(
    model: BridgedModel,
    data: LabelledDataset[SegmentedPicture],
    head: str | None = None,
    batch_size: int = 8,
    report: Report | None = None,
) -> SemanticEvaluation:
    """Judge a semantic segmentation head: every pixel of every picture, over all classes at once.

    Label maps are those of `predict`, at the pictures' own size; pixels that are to be ignored do
    not count. Several processes share the pictures as in `bridger.evaluation.evaluate`.

    Args:
        model: the model, with its processor; its modules' modes are restored at the end.
        data: the split; the head is asked about all of its classes.
        head: which head answers, where there are several.
        batch_size: pictures that are computed together.
        report: called after every batch with how many pictures of this process's share are done,
            of how many, and their mIoU so far.

    Raises:
        RuntimeError: the model has no processor.
        FileNotFoundError: pictures are missing; nothing was computed yet.
        ValueError: an unknown head or one of another task, or a split without pictures.
    """
    name = head_for(model, head, SemanticSegmentationHead, "name the class of every pixel")
    chosen, num_classes = model.heads[name], len(data.classes)

    def count(
        pictures: Sequence[SegmentedPicture],
        output: HeadOutput,
        placements: list[Placement],
        texts: Texts,
    ) -> list[SemanticCase]:
        results = chosen.results(output, cast(Processor, model.processor), placements, texts)
        return [
            SemanticCase.of(picture, confusion(picture.labels, found.labels, num_classes))
            for picture, found in zip(pictures, results, strict=True)
        ]

    cases = judge_pictures(model, data, name, count, _SoFar(num_classes), batch_size, report)
    return SemanticEvaluation.of(data, chosen, cases)


class _SoFar:
    """The mIoU of all pictures that it has been shown."""

    def __init__(self, num_classes: int) -> None:
        self.matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)

    def __call__(self, cases: Sequence[SemanticCase]) -> float:
        for case in cases:
            case.add_to(self.matrix)
        return mean_of_defined(ClassCounts.of(self.matrix).ious)
