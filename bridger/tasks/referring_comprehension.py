"""Referring comprehension: a box for each expression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bridger.data import ReferringDataset
from bridger.data.box_collate import RefBoxCollator
from bridger.predictions import DetectionPrediction, box_of
from bridger.tasks.base import Report
from bridger.tasks.referring import ReferringTask
from bridger.tasks.registry import register_task

if TYPE_CHECKING:
    from PIL import Image

    from bridger.evaluation import ComprehensionEvaluation
    from bridger.model import BridgedModel
    from bridger.training.recipes import Recipe


@register_task
class ReferringComprehension(ReferringTask):
    """A box for each expression: around the mask of what it means."""

    name = "referring_comprehension"
    metrics = ("Acc@0.5", "mean IoU")
    recipe = "scenes-comprehension"
    augmentations = ("flip", "colour")

    def check(self, recipe: Recipe, data: ReferringDataset, validation: Any) -> None:
        """Refuse expressions that mean nothing: they have no box."""
        empty = sum(not data[index].ann_ids for index in range(len(data)))
        if empty:
            raise ValueError(
                f"{empty} of the {len(data)} refs of {data!r} mean nothing in their pictures, so "
                f"that they have no box: {self.name} needs data that mean something"
            )

    def collator(
        self, recipe: Recipe, model: BridgedModel, head: str, data: ReferringDataset, cache: int
    ) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """Return what makes batches with one box for each expression."""
        assert model.processor is not None
        return RefBoxCollator(model.processor, cache=cache)

    def evaluate(
        self,
        model: BridgedModel,
        data: ReferringDataset,
        head: str,
        *,
        report: Report | None = None,
        batch_size: int = 32,
        first_sentence: bool = False,
    ) -> ComprehensionEvaluation:
        """Judge sentences; see `bridger.evaluation.evaluate_comprehension`."""
        from bridger.evaluation import evaluate_comprehension

        return evaluate_comprehension(
            model, data, head, batch_size, first_sentence=first_sentence, report=report
        )

    def draw(
        self, model: BridgedModel, data: ReferringDataset, head: str, index: int
    ) -> list[Image.Image]:
        """Draw the box of a ref's first sentence, and the true one."""
        sample = data[index]
        picture, words = sample.picture, sample.sentences[0]
        predicted = model.predict(picture, words, head=head)
        mask = sample.mask
        truth = DetectionPrediction(
            np.array([box_of(mask > 0)], dtype=np.float32),
            np.ones(1, dtype=np.float32),
            np.zeros(1, dtype=np.int64),
            ("truth",),
            (mask.shape[0], mask.shape[1]),
        )
        return [predicted.overlay(picture), truth.overlay(picture, scores=False)]
