"""Judging one batch of pictures, each with as many expressions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bridger.data import ReferringDataset
from bridger.evaluation.expressions import Batch, Picture, encode
from bridger.evaluation.result import Case
from bridger.heads.dense import DenseHead
from bridger.model import BridgedModel
from bridger.predictions import NO_TARGET_THRESHOLD
from bridger.processing import Placement, Processor

_PIXELS_AT_ONCE = 1 << 24  # of probabilities at the picture's own size: 64 MB


class Judge:
    """Computes a batch, and counts the pixels of its masks.

    Args:
        model: the model, in eval mode.
        processor: its processor.
        head: which of its heads answers.
        dataset: the split.
        thresholds: at which masks are counted.
    """

    def __init__(
        self,
        model: BridgedModel,
        processor: Processor,
        head: DenseHead,
        dataset: ReferringDataset,
        thresholds: tuple[float, ...],
    ) -> None:
        self.model, self.processor, self.head = model, processor, head
        self.dataset, self.thresholds = dataset, thresholds
        self.keys = dataset.picture_keys()

    def __call__(self, batch: Batch) -> tuple[list[Case], float]:
        """Return the batch's cases, and the mean of their losses."""
        keys, dataset = self.keys, self.dataset
        pictures = [Picture.read(dataset, pairs, keys[pairs[0][0]]) for pairs in batch]
        features, placements = encode(self.model, self.processor, pictures)
        targets = torch.stack(
            [
                self._targets(picture, placement)
                for picture, placement in zip(pictures, placements, strict=True)
            ]
        )
        output = self.head(features, targets.to(features.sentence.device))
        probabilities = self.head.probabilities(output.logits).float().cpu()
        if output.no_target is not None:
            # Nothing is above any threshold where nothing is meant.
            nothing = output.no_target.sigmoid().cpu() > NO_TARGET_THRESHOLD
            probabilities = probabilities.masked_fill(nothing[..., None, None], 0.0)
        cases = [
            case
            for picture, placement, rows in zip(pictures, placements, probabilities, strict=True)
            for case in self._count(picture, placement, rows)
        ]
        return cases, float(output.loss)

    def _targets(self, picture: Picture, placement: Placement) -> Tensor:
        """Return the masks (N, H, W) in the model's input; sentences of a ref share theirs."""
        soft = {i: self.processor.target(mask, placement) for i, mask in picture.masks.items()}
        return torch.stack([soft[index] for index, _ in picture.pairs])

    def _count(self, picture: Picture, placement: Placement, rows: Tensor) -> Iterator[Case]:
        """Compare probabilities (N, h, w) with the true masks at the picture's own size."""
        height, width = placement.size
        together = max(1, _PIXELS_AT_ONCE // (height * width))
        about = picture.cases((height, width))
        for start in range(0, len(rows), together):
            restored = self.processor.restore(rows[start : start + together], placement)
            for own, (what, mask) in zip(restored, about, strict=False):
                truth = mask > 0
                intersections, predicted = count_pixels(own, truth, self.thresholds)
                area = int(np.count_nonzero(truth))
                yield Case(**what, area=area, intersections=intersections, predicted=predicted)


def count_pixels(
    probabilities: npt.NDArray[np.float32],
    truth: npt.NDArray[np.bool_],
    thresholds: Sequence[float],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Count what lies above each threshold: within the true mask, and in the whole picture.

    Args:
        probabilities: (h, w).
        truth: (h, w), the true mask.
        thresholds: as many as wanted.
    """
    inside = probabilities[truth]
    return (
        tuple(int(np.count_nonzero(inside > t)) for t in thresholds),
        tuple(int(np.count_nonzero(probabilities > t)) for t in thresholds),
    )
