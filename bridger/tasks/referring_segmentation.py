"""Referring segmentation: a mask for each expression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bridger.data import RaggedRefCollator, RefCollator, ReferringDataset, Sample
from bridger.predictions import Prediction
from bridger.tasks.base import Report
from bridger.tasks.referring import ReferringTask
from bridger.tasks.registry import register_task

if TYPE_CHECKING:
    from PIL import Image

    from bridger.evaluation import Evaluation
    from bridger.model import BridgedModel
    from bridger.training.recipes import Recipe

GENERALIZED_METRICS = ("gIoU", "cIoU", "N-acc", "T-acc")
"""Metrics of expressions that mean nothing, or several objects."""


@register_task
class ReferringSegmentation(ReferringTask):
    """A mask for each expression."""

    name = "referring_segmentation"
    metrics: ClassVar[tuple[str, ...]] = (
        "mIoU",
        "oIoU",
        *(f"P@0.{tenth}" for tenth in range(5, 10)),
        *GENERALIZED_METRICS,
    )
    recipe = "quickstart"

    def check(self, recipe: Recipe, data: ReferringDataset, validation: Any) -> None:
        """Refuse a metric that the validation split cannot give."""
        metric = recipe.metric
        if validation is None or metric not in GENERALIZED_METRICS:
            return
        meant = {len(validation[index].ann_ids) for index in range(len(validation))}
        generalized = bool(meant - {1})
        shown = generalized and meant != {0}  # whether there is a mask to find
        given = {"N-acc": 0 in meant, "T-acc": shown, "cIoU": shown}
        if not given.get(metric, generalized):
            of_one = [name for name in self.metrics if name not in GENERALIZED_METRICS]
            names = [*of_one, *(n for n in GENERALIZED_METRICS if given.get(n, generalized))]
            raise ValueError(
                f"metric={metric!r} needs expressions that mean nothing, one object or several, "
                f"of a kind that {validation!r} does not have: choose one of {', '.join(names)}"
            )

    def collator(
        self, recipe: Recipe, model: BridgedModel, head: str, data: ReferringDataset, cache: int
    ) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """Return what makes batches with one mask for each expression."""
        assert model.processor is not None
        if recipe.expressions == 1:
            return _Single(RefCollator(model.processor, cache=cache))
        return RaggedRefCollator(model.processor, cache=cache)

    def evaluate(
        self,
        model: BridgedModel,
        data: ReferringDataset,
        head: str,
        *,
        report: Report | None = None,
        batch_size: int = 32,
        threshold: float = 0.35,
        first_sentence: bool = False,
    ) -> Evaluation:
        """Judge every sentence, or the first of every ref; see `bridger.evaluation.evaluate`."""
        from bridger.evaluation import evaluate

        return evaluate(
            model,
            data,
            threshold,
            batch_size,
            first_sentence=first_sentence,
            head=head,
            report=report,
        )

    def draw(
        self, model: BridgedModel, data: ReferringDataset, head: str, index: int
    ) -> list[Image.Image]:
        """Draw the mask of a ref's first sentence, and the true one."""
        sample = data[index]
        picture, words = sample.image_path, sample.sentences[0]
        predicted = model.predict(picture, words, head=head)
        truth = Prediction.from_probabilities((sample.mask[None] > 0).astype(np.float32))
        return [predicted.overlay(picture, words), truth.overlay(picture, "truth", scores=False)]


class _Single:
    """Batches with one expression per picture from lists of one."""

    def __init__(self, collator: RefCollator) -> None:
        self.collator = collator

    def __call__(self, items: Sequence[list[Sample]]) -> dict[str, Any]:
        return self.collator([item[0] for item in items])
