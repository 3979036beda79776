"""Referring comprehension: one box for one expression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridger.heads.base import HeadOutput
from bridger.heads.box_labels import Boxes
from bridger.heads.boxes import BoxConfig, BoxHead, BoxOutput, find_boxes
from bridger.heads.registry import register_head
from bridger.predictions import DetectionPrediction
from bridger.processing import Placement, Processor
from bridger.texts import Texts

CANDIDATES = 20  # best cells of a level, among which a box that shows in the picture is looked for


@dataclass(frozen=True)
class ComprehensionConfig(BoxConfig):
    """Options of `ComprehensionHead`: those of all heads that find boxes."""


@register_head("referring_comprehension")
class ComprehensionHead(BoxHead):
    """Finds the one object that each expression means: detection with a class for each of them.

    Labels are those of detection: the label of a box is the number of its expression, and every
    expression that is not padding has exactly one box.

    Args:
        spec: what the bridged towers offer.
        config: the options.
    """

    pipeline_tag = "zero-shot-object-detection"
    config_class = ComprehensionConfig
    config: ComprehensionConfig

    def check_labels(self, pictures: Sequence[Boxes], real: Tensor) -> None:
        """Refuse expressions without a box, or with several.

        Raises:
            ValueError: there are such.
        """
        for i, (picture, asked) in enumerate(zip(pictures, real, strict=True)):
            counts = picture.labels[~picture.crowd].bincount(minlength=len(asked))
            if (wrong := asked & (counts != 1)).any():
                expression = int(wrong.nonzero()[0])
                raise ValueError(
                    f"labels of picture {i}: expression {expression} must have exactly one box, "
                    f"found {int(counts[expression])}; detection takes any number of them"
                )

    def results(
        self,
        output: HeadOutput,
        processor: Processor,
        placements: Sequence[Placement],
        texts: Texts,
    ) -> list[DetectionPrediction]:
        """Take each expression's best cell: N boxes in the picture's pixels, in their order.

        A cell whose box is empty in the picture, as it may be in the border around it, is taken
        only where no other of the best cells has a box.

        Args:
            output: of B pictures.
            processor: what made their pixels.
            placements: (B) where each picture lies in the input.
            texts: what was asked.
        """
        assert isinstance(output, BoxOutput)
        found = find_boxes(
            output,
            processor.image_size,
            score_thresh=-1.0,  # the best one, however bad
            nms_thresh=1.0,
            detections_per_img=CANDIDATES,
            topk_candidates=CANDIDATES,
        )
        predictions = []
        for rows, placement in zip(found, placements, strict=True):
            best = [_best(row, placement) for row in rows]
            boxes, scores, labels = (torch.stack(parts) for parts in zip(*best, strict=True))
            predictions.append(
                DetectionPrediction.from_tensors(boxes, scores, labels, texts.names, placement.size)
            )
        return predictions


def _best(row: dict[str, Tensor], placement: Placement) -> tuple[Tensor, Tensor, Tensor]:
    """Choose one of a row's boxes, the best first: (4,) in the picture, its score and label."""
    boxes = placement.boxes_out_of_input(row["boxes"])
    shown = (boxes[:, :2] < boxes[:, 2:]).all(dim=1)
    first = shown.int().argmax()  # 0 where none is shown
    return boxes[first], row["scores"][first], row["labels"][first]
