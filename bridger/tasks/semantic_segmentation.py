"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bridger.class_phrases import names_of
from bridger.data.class_collate import SemanticCollator
from bridger.data.labelled import LabelledDataset
from bridger.data.segmented import open_segmented, segmented_splits
from bridger.predictions import SemanticPrediction
from bridger.predictions.maps import PictureMaps, Piece
from bridger.processing import Placement
from bridger.tasks.base import Report, Root
from bridger.tasks.class_names import ClassTask
from bridger.tasks.registry import register_task

if TYPE_CHECKING:
    from PIL import Image

    from bridger.evaluation import SemanticEvaluation
    from bridger.model import BridgedModel


@register_task
class SemanticSegmentation(ClassTask):
    """A class for every pixel."""

    name = "semantic_segmentation"
    metrics = ("mIoU", "mIoU seen", "mIoU unseen", "pixel accuracy")
    recipe = "scenes-semantic"

    def splits(self, root: Root, dataset: str | None = None) -> list[str]:
        """Return the names of the splits; errors as of `segmented_splits`."""
        return segmented_splits(root)

    def _open(self, root: Root, split: str) -> LabelledDataset[Any]:
        return open_segmented(root, split)

    def _collator(self, head: Any) -> Callable[..., SemanticCollator]:
        return partial(SemanticCollator, multi_label=head.config.multi_label)

    def evaluate(
        self,
        model: BridgedModel,
        data: LabelledDataset[Any],
        head: str,
        *,
        report: Report | None = None,
        batch_size: int = 8,
    ) -> SemanticEvaluation:
        """Judge every pixel; see `bridger.evaluation.evaluate_semantic`."""
        from bridger.evaluation import evaluate_semantic

        return evaluate_semantic(model, data, head, batch_size, report)

    def draw(
        self, model: BridgedModel, data: LabelledDataset[Any], head: str, index: int
    ) -> list[Image.Image]:
        """Draw the classes of a picture, asked about all of the split's, and the true ones."""
        picture = data[index]
        predicted = self._predict(model, data, head, index)
        truth = _as_prediction(picture.labels, [names_of(entry)[0] for entry in data.classes])
        shown = picture.picture
        return [predicted.overlay(shown), truth.overlay(shown, scores=False)]


def _as_prediction(labels: Any, names: Sequence[str]) -> SemanticPrediction:
    """Write true labels (h, w) as what a head is quite sure of."""
    shown = [label for label in np.unique(labels).tolist() if label >= 0]
    masks = np.array([labels == label for label in shown], dtype=np.float32)
    cells = torch.from_numpy(masks.reshape(len(shown), *labels.shape))
    placement = Placement.fit(labels.shape, labels.shape)
    maps = PictureMaps((Piece(cells, placement),), labels.shape, lambda cells, _: cells.numpy())
    return SemanticPrediction.single_label(maps, [names[label] for label in shown], True)
