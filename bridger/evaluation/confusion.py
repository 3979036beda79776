"""The figures by which semantic segmentation is judged, from confusion matrices.

Shapes: K classes; a matrix has K + 1 rows, the true classes and the background, and as many
columns, the predicted ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bridger.evaluation.labelled import defined, mean_of_defined
from bridger.evaluation.metrics import Counts, Floats
from bridger.labels import BACKGROUND, IGNORE

Labels = npt.NDArray[np.integer]


def confusion(truth: Labels, predicted: Labels, num_classes: int) -> Counts:
    """Count a picture's pixels by true and predicted class: (K + 1, K + 1) int64.

    The last row and column are the background's. Pixels that are `IGNORE` in the truth are left
    out.

    Args:
        truth: (h, w), 0 to K - 1, `BACKGROUND` or `IGNORE`.
        predicted: (h, w), 0 to K - 1 or `BACKGROUND`.
        num_classes: K.

    Raises:
        ValueError: maps of different sizes, or other labels.
    """
    if truth.shape != predicted.shape:
        raise ValueError(
            f"the truth is {truth.shape} and the prediction {predicted.shape} (h, w); compare "
            f"them at the picture's own size"
        )
    counted = truth != IGNORE
    pairs = []
    for name, labels in (("truth", truth), ("prediction", predicted)):
        values = labels[counted].astype(np.int64)
        if values.size and not BACKGROUND <= values.min() <= values.max() < num_classes:
            raise ValueError(
                f"the {name} has labels from {values.min()} to {values.max()}, expected 0 to "
                f"{num_classes - 1}, or {BACKGROUND} for background"
            )
        pairs.append(np.where(values == BACKGROUND, num_classes, values))
    side = num_classes + 1
    flat = np.bincount(pairs[0] * side + pairs[1], minlength=side * side)
    return flat.reshape(side, side).astype(np.int64)


@dataclass(frozen=True)
class ClassCounts:
    """Pixels (..., K) of each class; those of the background count in `predicted` alone.

    Attributes:
        both: of the class, and predicted to be.
        true: of the class.
        predicted: predicted to be of the class.
    """

    both: Counts
    true: Counts
    predicted: Counts

    @classmethod
    def of(cls, matrix: Counts) -> ClassCounts:
        """Read them off a confusion matrix (K + 1, K + 1)."""
        both, true, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
        return cls(both[:-1], true[:-1], predicted[:-1])

    @property
    def unions(self) -> Counts:
        """Pixels that are of the class, or predicted to be."""
        return self.true + self.predicted - self.both

    @property
    def ious(self) -> Floats:
        """IoU (..., K); nan of a class that occurs neither in truth nor in prediction."""
        return _ratio(self.both, self.unions)

    @property
    def accuracies(self) -> Floats:
        """Share (..., K) of a class's pixels that are found; nan where there are none."""
        return _ratio(self.both, self.true)


def semantic_metrics(matrix: Counts, seen: Sequence[bool]) -> dict[str, float]:
    """Return the figures of a confusion matrix (K + 1, K + 1), from 0 to 1, as far as defined.

    "mIoU": the mean IoU over the classes that occur in the truth or in the prediction, so that a
    class that is found where there is none counts as 0, and one that nobody speaks of does not
    count. The background is no class of the mean, but its pixels that are taken for a class are
    in that class's union. "mIoU seen" and "mIoU unseen": over the classes that the head was
    trained on, and over the others. "pixel accuracy": the share of all pixels, the background's
    too, that are right. "mean accuracy": the mean over the classes in the truth of the share of
    their pixels that is found. Which classes a mean is over is as in mmsegmentation's IoUMetric,
    where a background that is a class of the data's own would be one of them.

    Args:
        matrix: summed over pictures.
        seen: (K,), whether the head was trained on each class.
    """
    counts, known = ClassCounts.of(matrix), np.asarray(seen, dtype=bool)
    ious, total = counts.ious, int(matrix.sum())
    figures = {
        "mIoU": mean_of_defined(ious),
        "mIoU seen": mean_of_defined(ious[known]),
        "mIoU unseen": mean_of_defined(ious[~known]),
        "pixel accuracy": int(matrix.trace()) / total if total else math.nan,
        "mean accuracy": mean_of_defined(counts.accuracies),
    }
    return defined(figures)


def _ratio(above: Counts, below: Counts) -> Floats:
    return np.where(below > 0, above / np.maximum(below, 1), np.nan)
