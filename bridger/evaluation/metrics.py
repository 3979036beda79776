"""The figures by which referring segmentation is judged: ratios of sums over expressions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

Mask: TypeAlias = npt.NDArray[Any] | Tensor
Counts: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
EPSILON = 1e-6  # the reference implementation's, so that figures can be compared


@dataclass(frozen=True)
class Ratio:
    """A figure: the sum of one number per expression over the sum of another.

    Since sums are rounded once, at their end, the figure depends neither on the order of the
    expressions nor on how they were shared out.

    Attributes:
        above: (E,), of every expression.
        below: (E,), of every expression.
        epsilon: added to the sum below.
    """

    above: Floats
    below: Floats
    epsilon: float = 0.0

    @property
    def defined(self) -> bool:
        """Whether there is anything to divide by."""
        return bool(self.below.any()) or self.epsilon > 0

    @property
    def value(self) -> float:
        """The figure."""
        return math.fsum(self.above.tolist()) / (math.fsum(self.below.tolist()) + self.epsilon)


def intersections_over_unions(intersections: Counts, unions: Counts) -> Floats:
    """Return the IoU (E,) of every expression, I / (U + 1e-6)."""
    return intersections.astype(np.float64) / (unions.astype(np.float64) + EPSILON)


def referring_ratios(intersections: Counts, unions: Counts) -> dict[str, Ratio]:
    """Return "mIoU", "oIoU", "P@0.5" ... "P@0.9"; `SegmentationMetrics` says what they are.

    Args:
        intersections: (E,), pixels of every expression's predicted and true mask.
        unions: (E,), pixels of either.
    """
    ious = intersections_over_unions(intersections, unions)
    each = np.ones_like(ious)
    return {
        "mIoU": Ratio(ious, each),
        "oIoU": Ratio(intersections.astype(np.float64), unions.astype(np.float64), EPSILON),
        **{f"P@{x}": Ratio((ious > x).astype(np.float64), each) for x in THRESHOLDS},
    }


def values_of(ratios: Mapping[str, Ratio]) -> dict[str, float]:
    """Return the figures that are defined."""
    return {name: ratio.value for name, ratio in ratios.items() if ratio.defined}


class SegmentationMetrics:
    """Mean IoU, overall IoU and precision, accumulated over expressions.

    With I and U the intersection and union of an expression's predicted and true mask in pixels,
    IoU = I / (U + 1e-6). mIoU is the mean of the expressions' IoU; oIoU is the sum of all I over
    the sum of all U, so that large objects weigh more; P@X is the share of expressions whose IoU
    is above X. Papers do not always say which IoU they give: always name it.

    Example:
        >>> import numpy as np
        >>> metrics = SegmentationMetrics()
        >>> iou = metrics.update(np.array([[True, True]]), np.array([[True, False]]))
        >>> round(metrics.compute()["oIoU"], 3)
        0.5
    """

    def __init__(self) -> None:
        self._intersections: list[int] = []
        self._unions: list[int] = []

    def __len__(self) -> int:
        """Return how many expressions have been counted."""
        return len(self._unions)

    def update(self, pred: Mask, target: Mask) -> float:
        """Count one expression.

        Args:
            pred: predicted mask (h, w), bool.
            target: true mask (h, w), bool.

        Returns:
            The expression's IoU.

        Raises:
            ValueError: masks of different or unusable shapes.
            TypeError: masks that are not bool.
        """
        first, second = _as_bool(pred, "pred"), _as_bool(target, "target")
        if first.shape != second.shape:
            raise ValueError(
                f"pred is {first.shape} and target {second.shape}; compare masks at the picture's "
                f"own size, one expression at a time"
            )
        intersection = int(np.count_nonzero(first & second))
        union = int(np.count_nonzero(first | second))
        self._intersections.append(intersection)
        self._unions.append(union)
        return intersection / (union + EPSILON)

    def merge(self, other: SegmentationMetrics) -> None:
        """Add the expressions that another process or run has counted.

        Args:
            other: counted on other expressions.
        """
        self._intersections += other._intersections
        self._unions += other._unions

    @property
    def ious(self) -> Floats:
        """IoU of every expression in the order of the updates."""
        return intersections_over_unions(*self._counts())

    def compute(self) -> dict[str, float]:
        """Return "mIoU", "oIoU", "P@0.5" ... "P@0.9", all from 0 to 1.

        Raises:
            RuntimeError: nothing was counted.
        """
        if not len(self):
            raise RuntimeError("there is nothing to compute yet; call update(pred, target) first")
        return values_of(referring_ratios(*self._counts()))

    def _counts(self) -> tuple[Counts, Counts]:
        return np.array(self._intersections, np.int64), np.array(self._unions, np.int64)


def _as_bool(mask: Mask, name: str) -> npt.NDArray[np.bool_]:
    values = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if values.dtype != np.bool_:
        raise TypeError(
            f"{name} is {values.dtype}, expected bool: compare a probability with a threshold, "
            f"and an integer mask with 0, first"
        )
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} must be one mask (h, w), got shape {values.shape}")
    return values
