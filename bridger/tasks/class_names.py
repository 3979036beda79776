"""What the tasks have in common that ask about classes by their names."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch.utils.data import Dataset

from bridger.class_phrases import ClassPhrases, name_key
from bridger.data.class_collate import ClassCollator, numbers_of
from bridger.data.class_questions import ClassQuestions
from bridger.data.labelled import LabelledDataset
from bridger.heads.class_names import ClassNamesHead
from bridger.tasks.base import Root, Task
from bridger.training.class_schedule import ClassSchedule

if TYPE_CHECKING:
    from bridger.model import BridgedModel
    from bridger.processing import Processor
    from bridger.training.recipes import Recipe

SEEN, UNSEEN = " seen", " unseen"
"""Endings of metrics over the classes that a head was trained on, and over the others."""


class ClassTask(Task):
    """A task on pictures with labels of classes."""

    augmentations: ClassVar[tuple[str, ...]] = ("flip", "colour")

    @abstractmethod
    def _open(self, root: Root, split: str) -> LabelledDataset[Any]:
        """Open a split."""

    def open(self, root: Root, split: str, dataset: str | None = None) -> LabelledDataset[Any]:
        """Open a split; a folder holds one data set."""
        if dataset is not None:
            raise ValueError(
                f"a folder holds one data set for {self.name}, which is found without a name, got "
                f"{dataset!r}"
            )
        return self._open(root, split)

    def size(self, data: LabelledDataset[Any]) -> str:
        """Return the number of pictures and classes."""
        return f"{len(data)} pictures, {len(data.classes)} classes"

    def head_options(self, data: LabelledDataset[Any]) -> dict[str, Any]:
        """Return the classes of the training split."""
        return {"classes": data.classes}

    def check(self, recipe: Recipe, data: LabelledDataset[Any], validation: Any) -> None:
        """Refuse classes that the data do not have, and metrics of classes that are not there."""
        trained = recipe.head["classes"]
        numbers_of(data.classes, trained)
        if validation is None or not recipe.metric.endswith((SEEN, UNSEEN)):
            return
        known, judged = set(map(name_key, trained)), set(map(name_key, validation.classes))
        if not (judged & known if recipe.metric.endswith(SEEN) else judged - known):
            kind = "that are" if recipe.metric.endswith(SEEN) else "that are not"
            raise ValueError(
                f"metric={recipe.metric!r} is over classes {kind} trained on, of which "
                f"{validation!r} has none: choose {self.metrics[0]!r}"
            )

    def check_words(self, processor: Processor, data: LabelledDataset[Any]) -> None:
        """Refuse class names of which the tokenizer knows nothing."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of long ones, which are cut
                ClassPhrases(processor, data.classes)
        except ValueError as error:
            raise ValueError(
                f"the classes of {data!r}: {error}; name them otherwise, or choose towers that "
                f"read such words"
            ) from error

    def pictures(self, recipe: Recipe, data: LabelledDataset[Any]) -> Sequence[int]:
        """Return the indices of the pictures that are trained on."""
        return range(len(data))

    def items(self, recipe: Recipe, data: LabelledDataset[Any]) -> int:
        """Return the number of pictures."""
        return len(self.pictures(recipe, data))

    def schedule(self, recipe: Recipe, data: LabelledDataset[Any], length: int) -> Dataset[Any]:
        """Return the order of pictures."""
        pictures = self.pictures(recipe, data)
        return ClassSchedule(data, pictures, length, recipe.seed, recipe.augment)

    def collator(
        self,
        recipe: Recipe,
        model: BridgedModel,
        head: str,
        data: LabelledDataset[Any],
        cache: int,
    ) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """Return what makes batches that ask each picture about `recipe.expressions` classes."""
        chosen = model.heads[head]
        assert isinstance(chosen, ClassNamesHead) and model.processor is not None
        config = chosen.config
        questions = ClassQuestions(
            model.processor,
            config.classes,
            config.text_mode,
            config.templates,
            most=len(config.classes) if chosen.fixed_classes else recipe.expressions,
            seed=recipe.seed,
        )
        labels = numbers_of(data.classes, config.classes)
        return self._collator(chosen)(model.processor, questions, labels, cache)

    def _predict(
        self, model: BridgedModel, data: LabelledDataset[Any], head: str, index: int
    ) -> Any:
        """Return what the model says about a picture, asked as in `evaluate`."""
        from bridger.evaluation.pictures import asked_of

        asked = asked_of(model.heads[head], data)
        return model.predict(data[index].picture, asked, head=head)

    @abstractmethod
    def _collator(self, head: Any) -> Callable[..., ClassCollator[Any]]:
        """Return what makes the task's own collator for a head, of `ClassCollator`'s arguments."""
