"""Boxes in the model's input, and batches for referring comprehension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bridger.data.base import Sample
from bridger.data.collate import RaggedRefCollator
from bridger.predictions import box_of
from bridger.processing import Placement


class RefBoxCollator(RaggedRefCollator):
    """Batches as of `RaggedRefCollator`, with a box for each expression in place of a mask.

    Labels are a list of B dicts: boxes (n, 4) float32 around the masks of what is meant, x0 y0 x1
    y1 in pixels of the input, and labels (n,) int64, 0 to n - 1: of each the number of its
    expression. A `transform` may flip and colour, but not crop.
    """

    def _fit(
        self, groups: Sequence[Sequence[Sample]], longest: int
    ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        pictures, labels = [], []
        for group in groups:
            picture, placement = self._fitted.picture(group[0])
            boxes = torch.stack([self._box(sample, placement) for sample in group])
            if (transform := group[0].transform) is not None:
                picture, _ = transform(picture, picture[:0])
                boxes = mirrored(boxes, picture.shape[-1]) if transform.flip else boxes
            pictures.append(picture)
            labels.append({"boxes": boxes, "labels": torch.arange(len(group))})
        return pictures, labels

    def _box(self, sample: Sample, placement: Placement) -> Tensor:
        def fit() -> Tensor:
            box = torch.tensor(box_of(sample.mask > 0), dtype=torch.float32)
            if not bool((box[:2] < box[2:]).all()):
                raise ValueError(
                    f"ref {sample.ref_id} of {sample.source} means nothing in its picture (its "
                    f"mask is empty), so that it has no box: leave it out"
                )
            return boxes_in_input(box, placement)

        return self._fitted.kept(("box", *sample.key), fit)


def boxes_in_input(boxes: Tensor, placement: Placement) -> Tensor:
    """Map a picture's boxes (..., 4) into the input, cut at its edges.

    The outermost pixels would reach further, where a picture is enlarged.
    """
    height, width = placement.input_size
    mapped = placement.boxes_into_input(boxes).clamp(min=0)
    return mapped.minimum(boxes.new_tensor([width, height, width, height]))


def mirrored(boxes: Tensor, width: int) -> Tensor:
    """Mirror boxes (..., 4), x0 y0 x1 y1 at pixels' edges, in an input of so many columns."""
    x0, y0, x1, y1 = boxes.unbind(dim=-1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=-1)
