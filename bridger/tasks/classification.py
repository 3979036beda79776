"""Classification: the classes that a picture shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bridger.class_phrases import names_of
from bridger.data.class_collate import ClassificationCollator, numbers_of
from bridger.data.classified import classified_splits, open_classified
from bridger.data.labelled import LabelledDataset
from bridger.predictions import ClassificationPrediction
from bridger.tasks.base import Report, Root
from bridger.tasks.class_names import ClassTask
from bridger.tasks.registry import register_task
from bridger.training.class_schedule import few_shots

if TYPE_CHECKING:
    from PIL import Image

    from bridger.evaluation import ClassificationEvaluation
    from bridger.model import BridgedModel
    from bridger.training.recipes import Recipe

OF_ONE = ("top1", "top5", "mean per class", "top1 seen", "top1 unseen")
OF_SEVERAL = ("mAP", "mAP seen", "mAP unseen")
"""Metrics where pictures show one class each, and where they show any number."""


@register_task
class Classification(ClassTask):
    """The classes that a picture shows."""

    name = "classification"
    metrics = (*OF_ONE, *OF_SEVERAL)
    recipe = "scenes-classification"
    takes_shots = True

    def splits(self, root: Root, dataset: str | None = None) -> list[str]:
        """Return the names of the splits; errors as of `classified_splits`."""
        return classified_splits(root)

    def _open(self, root: Root, split: str) -> LabelledDataset[Any]:
        return open_classified(root, split)

    def head_options(self, data: Any) -> dict[str, Any]:
        """Return the classes of the training split, and whether it is multi-label."""
        return {**super().head_options(data), "multi_label": data.multi_label}

    def usual_metric(self, options: Mapping[str, Any]) -> str:
        """Return "top1", or "mAP" where pictures show any number of classes."""
        if "multi_label" not in options:
            return ""
        return OF_SEVERAL[0] if options["multi_label"] else OF_ONE[0]

    def check(self, recipe: Recipe, data: Any, validation: Any) -> None:
        """Refuse labels or a metric of the other kind as well."""
        from bridger.evaluation.classification import TOP

        super().check(recipe, data, validation)
        several = recipe.head["multi_label"]
        for split in (data, validation):
            if split is not None and split.multi_label and not several:
                raise ValueError(
                    f"the head is for pictures that show one class each (multi_label is false), "
                    f"but pictures of {split!r} show any number: give all splits labels of one "
                    f"kind, or choose head.multi_label=true"
                )
        if not self.pictures(recipe, data):
            raise ValueError(f"no picture of {data!r} shows a class of head.classes")
        fitting = OF_SEVERAL if several else OF_ONE
        if validation is None:
            return
        if recipe.metric not in fitting:
            shown = "any number of classes" if several else "one class each"
            raise ValueError(
                f"metric={recipe.metric!r} does not fit {data!r}, whose pictures show {shown}: "
                f"choose one of {', '.join(fitting)}"
            )
        if recipe.metric == "top5" and len(validation.classes) <= TOP:
            raise ValueError(
                f"metric='top5' needs more than {TOP} classes, and {validation!r} has "
                f"{len(validation.classes)}: choose {OF_ONE[0]!r}"
            )

    def pictures(self, recipe: Recipe, data: LabelledDataset[Any]) -> Sequence[int]:
        """Return the pictures that are drawn, or all.

        Of pictures with one label each, those of classes that are not trained on are left out:
        they teach nothing.
        """
        trained = recipe.head.get("classes") or data.classes
        numbers = [k for k, own in enumerate(numbers_of(data.classes, trained)) if own is not None]
        if recipe.shots is not None:
            return few_shots(data, recipe.shots, recipe.seed, numbers)
        # With every class trained on there is nothing to look for in a million pictures.
        if recipe.head.get("multi_label") or len(numbers) == len(data.classes):
            return range(len(data))
        chosen = set(numbers)
        return [index for index in range(len(data)) if not chosen.isdisjoint(data[index].labels)]

    def _collator(self, head: Any) -> Callable[..., ClassificationCollator]:
        return partial(ClassificationCollator, multi_label=head.config.multi_label)

    def evaluate(
        self,
        model: BridgedModel,
        data: LabelledDataset[Any],
        head: str,
        *,
        report: Report | None = None,
        batch_size: int = 32,
    ) -> ClassificationEvaluation:
        """Judge every picture; see `bridger.evaluation.evaluate_classification`."""
        from bridger.evaluation import evaluate_classification

        return evaluate_classification(model, data, head, batch_size, report)

    def draw(
        self, model: BridgedModel, data: LabelledDataset[Any], head: str, index: int
    ) -> list[Image.Image]:
        """Draw a picture's best classes, asked about all of the split's, and the true ones."""
        picture = data[index]
        predicted = self._predict(model, data, head, index)
        shown = np.zeros(len(data.classes), dtype=np.float32)
        shown[list(picture.labels)] = 1
        names = tuple(names_of(entry)[0] for entry in data.classes)
        truth = ClassificationPrediction(names, shown, 0.5)
        return [each.overlay(picture.picture) for each in (predicted, truth)]
