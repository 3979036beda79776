"""Detection: boxes around all objects of some classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from bridger.class_phrases import names_of
from bridger.data.boxed import boxed_splits, open_boxed
from bridger.data.class_collate import DetectionCollator
from bridger.data.labelled import LabelledDataset
from bridger.predictions import DetectionPrediction
from bridger.tasks.base import Report, Root
from bridger.tasks.class_names import ClassTask
from bridger.tasks.registry import register_task

if TYPE_CHECKING:
    from PIL import Image

    from bridger.evaluation import DetectionEvaluation
    from bridger.model import BridgedModel


@register_task
class Detection(ClassTask):
    """Boxes around all objects of some classes.

    Boxes that are broken are left out of every split, with a warning that counts them. COCO's own
    training split has a few without area, which no run should end at; and a model could neither
    learn nor find them, since no point lies in them and no box overlaps with them. A split to
    judge on is opened by the same rule, so that a box which cannot be found is no miss.
    `bridger data check` names them all.
    """

    name = "detection"
    metrics = ("mAP", "mAP50", "mAP75", "mAP seen", "mAP unseen")
    recipe = "scenes-detection"

    def splits(self, root: Root, dataset: str | None = None) -> list[str]:
        """Return the names of the splits; errors as of `boxed_splits`."""
        return boxed_splits(root)

    def _open(self, root: Root, split: str) -> LabelledDataset[Any]:
        return open_boxed(root, split, broken="drop")

    def _collator(self, head: Any) -> Callable[..., DetectionCollator]:
        return DetectionCollator

    def evaluate(
        self,
        model: BridgedModel,
        data: LabelledDataset[Any],
        head: str,
        *,
        report: Report | None = None,
        batch_size: int = 8,
    ) -> DetectionEvaluation:
        """Judge boxes by COCO's figures; see `bridger.evaluation.evaluate_detection`."""
        from bridger.evaluation import evaluate_detection

        return evaluate_detection(model, data, head, batch_size, report)

    def draw(
        self, model: BridgedModel, data: LabelledDataset[Any], head: str, index: int
    ) -> list[Image.Image]:
        """Draw boxes, asked about all of the split's classes, and the true ones."""
        picture = data[index]
        predicted = self._predict(model, data, head, index)
        names = tuple(names_of(entry)[0] for entry in data.classes)
        scores = np.ones(len(picture.boxes), dtype=np.float32)
        truth = DetectionPrediction(picture.boxes, scores, picture.labels, names, picture.size)
        shown = picture.picture
        return [predicted.overlay(shown), truth.overlay(shown, scores=False)]
