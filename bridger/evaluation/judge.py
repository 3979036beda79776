"""Judging one batch of pictures, each with as many expressions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

from bridger.data import ReferringDataset, Sample
from bridger.data.masks import Mask
from bridger.evaluation.result import Case
from bridger.heads.dense import DenseHead
from bridger.model import BridgedModel
from bridger.predictions import NO_TARGET_THRESHOLD
from bridger.processing import Placement, Processor

Batch: TypeAlias = list[list[tuple[int, int]]]
"""Pictures of expressions: (index of the ref, index of the sentence)."""

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
        pictures = [self._read(pairs) for pairs in batch]
        pixels, placements = self.processor.images([picture.path for picture in pictures])
        targets = [
            self._targets(picture, placement)
            for picture, placement in zip(pictures, placements, strict=True)
        ]
        words = self.processor.text([text for picture in pictures for text in picture.sentences])
        device = next(self.model.parameters()).device
        ids, mask = (
            rearrange(words[key], "(b n) l -> b n l", b=len(batch)).to(device)
            for key in ("input_ids", "attention_mask")
        )
        features = self.model.encode(pixels.to(device), ids, mask)
        output = self.head(features, torch.stack(targets).to(device))
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

    def _read(self, pairs: list[tuple[int, int]]) -> _Picture:
        samples = {index: self.dataset[index] for index, _ in pairs}
        return _Picture(pairs, samples, {index: each.mask for index, each in samples.items()})

    def _targets(self, picture: _Picture, placement: Placement) -> Tensor:
        """Return the masks (N, H, W) in the model's input; sentences of a ref share theirs."""
        soft = {i: self.processor.target(mask, placement) for i, mask in picture.masks.items()}
        return torch.stack([soft[index] for index, _ in picture.pairs])

    def _count(self, picture: _Picture, placement: Placement, rows: Tensor) -> Iterator[Case]:
        """Compare probabilities (N, h, w) with the true masks at the picture's own size."""
        height, width = placement.size
        together = max(1, _PIXELS_AT_ONCE // (height * width))
        for start in range(0, len(rows), together):
            restored = self.processor.restore(rows[start : start + together], placement)
            for (index, order), own in zip(picture.pairs[start:], restored, strict=False):
                sample, truth = picture.samples[index], picture.masks[index] > 0
                intersections, predicted = count_pixels(own, truth, self.thresholds)
                yield Case(
                    index=index,
                    order=order,
                    image=str(sample.image_path),
                    picture=self.keys[index],
                    ref_id=sample.ref_id,
                    sent_id=sample.sent_ids[order],
                    sentence=sample.sentences[order],
                    kind=sample.kinds[order],
                    source=sample.source,
                    objects=len(sample.ann_ids),
                    size=(height, width),
                    area=int(np.count_nonzero(truth)),
                    intersections=intersections,
                    predicted=predicted,
                )


@dataclass(frozen=True)
class _Picture:
    """A picture's expressions, with what they refer to by the index of the ref."""

    pairs: list[tuple[int, int]]
    samples: Mapping[int, Sample]
    masks: Mapping[int, Mask]

    @property
    def path(self) -> Path:
        return self.samples[self.pairs[0][0]].image_path

    @property
    def sentences(self) -> list[str]:
        return [self.samples[index].sentences[order] for index, order in self.pairs]


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
