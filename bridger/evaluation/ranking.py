"""The figures by which classification is judged, from scores.

Shapes: E pictures, K classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bridger.evaluation.metrics import Counts, Floats

Scores = npt.NDArray[np.floating]


def ranks(scores: Scores, labels: Counts) -> Counts:
    """Return how many classes (E,) come before the true one; of equal scores the first does.

    Args:
        scores: (E, K).
        labels: (E,), the true classes.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1]) < labels[:, None]
    counted: Counts = ((scores > own) | ((scores == own) & before)).sum(axis=1)
    return counted


def average_precision(scores: Scores, true: npt.NDArray[np.bool_]) -> float:
    """Return the area under the precision-recall curve of one class, as a sum of steps.

    AP = sum over n of (R_n - R_(n-1)) P_n, with P_n and R_n the precision and recall at the n-th
    of the different scores from above, so that the order of equal scores plays no part: nothing
    is interpolated, as in scikit-learn's average_precision_score.

    Args:
        scores: (E,).
        true: (E,), which pictures show the class.

    Returns:
        The figure, nan where no picture shows it.
    """
    if not true.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(true[order])
    # Where the score changes, and at the end.
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def average_precisions(scores: Scores, true: npt.NDArray[np.bool_]) -> Floats:
    """Return the average precision (K,) of every class; scores and truth are (E, K)."""
    return np.array(
        [average_precision(*column) for column in zip(scores.T, true.T, strict=True)], np.float64
    )
