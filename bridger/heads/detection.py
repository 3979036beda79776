"""Detection: boxes of all objects of any classes, given by their names or from a fixed list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from bridger.features import EncoderSpec
from bridger.heads.base import HeadOutput
from bridger.heads.boxes import BoxConfig, BoxHead, BoxOutput, find_boxes
from bridger.heads.class_names import ClassNamesConfig, ClassNamesHead, check_scores
from bridger.heads.registry import register_head
from bridger.predictions import DetectionPrediction
from bridger.processing import Placement, Processor
from bridger.texts import Texts

THRESHOLD = 0.3  # of scores that are means of two probabilities
CANDIDATES = 1000  # cells of a level that NMS looks at, as in FCOS


@dataclass(frozen=True)
class DetectionConfig(BoxConfig, ClassNamesConfig):
    """Options of `DetectionHead`, beside those of all heads with boxes and with class names.

    Attributes:
        scores: "text", likeness of cells and names, for any list of classes; or "fixed", a
            convolution with `classes`, and no others.
    """

    scores: str = "text"

    def __post_init__(self) -> None:
        ClassNamesConfig.__post_init__(self)
        BoxConfig.__post_init__(self)
        check_scores(self.scores, self.classes)


@register_head("detection")
class DetectionHead(BoxHead, ClassNamesHead):
    """Finds the boxes of all objects of the classes that it is asked about.

    A class that several rows mention (in several templates, or by synonyms in separate mode) is
    found by each of them, and the last NMS makes one of what they found.

    Args:
        spec: what the bridged towers offer.
        config: the options.
    """

    pipeline_tag = "zero-shot-object-detection"
    config_class = DetectionConfig
    config: DetectionConfig

    def __init__(self, spec: EncoderSpec, config: DetectionConfig) -> None:
        fixed = len(config.classes) if config.scores == "fixed" else 0
        super().__init__(spec, config, fixed)

    @property
    def fixed_classes(self) -> bool:
        """Whether its classes are; see `ClassNamesHead.fixed_classes`."""
        return self.config.scores == "fixed"

    def results(
        self,
        output: HeadOutput,
        processor: Processor,
        placements: Sequence[Placement],
        texts: Texts,
        threshold: float = THRESHOLD,
        nms: float = 0.6,
        most: int = 100,
        agnostic: bool = True,
    ) -> list[DetectionPrediction]:
        """Choose boxes, and bring them to the pictures' own pixels.

        Args:
            output: of B pictures.
            processor: what made their pixels.
            placements: (B) where each picture lies in the input.
            texts: what was asked.
            threshold: scores must be above it, 0 to 1; for mean average precision take 0.
            nms: of two boxes that overlap by more than that IoU, the worse one goes.
            most: boxes of a picture.
            agnostic: boxes of different classes, too, so that an object has one name; off, only
                those of one class, as mean average precision wants it.

        Raises:
            TypeError: an option is no number, or `most` no whole one.
            ValueError: an option is out of its range.
        """
        assert isinstance(output, BoxOutput)
        _check_options(threshold, nms, most)
        found = find_boxes(
            output,
            processor.image_size,
            score_thresh=threshold,
            nms_thresh=nms,
            detections_per_img=most,
            topk_candidates=CANDIDATES,
        )
        return [
            DetectionPrediction.from_tensors(
                *_join(rows, placement, nms, most, agnostic), texts.names, placement.size
            )
            for rows, placement in zip(found, placements, strict=True)
        ]


def _check_options(threshold: Any, nms: Any, most: Any) -> None:
    for name, value in (("threshold", threshold), ("nms", nms)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} is a number between 0 and 1, got {value!r}")
        if not 0 <= float(value) <= 1:
            raise ValueError(f"{name} lies between 0 and 1, got {value}")
    if isinstance(most, bool) or not isinstance(most, Integral):
        raise TypeError(f"most is a whole number of boxes, got {most!r}")
    if int(most) < 1:
        raise ValueError(f"most is a number of boxes, 1 or more, got {most}")


def _join(
    rows: Sequence[dict[str, Tensor]],
    placement: Placement,
    nms: float,
    most: int,
    agnostic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Join what the rows of a picture found: boxes in its pixels, scores, labels, best first."""
    from torchvision.ops import batched_nms

    boxes, scores, labels = (
        torch.cat([row[name] for row in rows]) for name in ("boxes", "scores", "labels")
    )
    kept = batched_nms(boxes, scores, torch.zeros_like(labels) if agnostic else labels, nms)
    boxes = placement.boxes_out_of_input(boxes[kept])
    inside = (boxes[:, :2] < boxes[:, 2:]).all(dim=1)  # and not wholly in the border
    kept, boxes = kept[inside][:most], boxes[inside][:most]
    return boxes, scores[kept], labels[kept]
