"""Pictures with labels of classes to batches: semantic segmentation, detection, classification.

Shapes: B batch, N classes asked of each picture, H W the processor's image size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import torch
from torch import Tensor

from bridger.class_phrases import name_key, names_of
from bridger.config import did_you_mean
from bridger.data.augment import Transform
from bridger.data.box_collate import boxes_in_input, mirrored
from bridger.data.class_questions import ClassQuestions
from bridger.data.collate import CACHE_BYTES, Fitted
from bridger.data.labelled import BoxedPicture, ClassifiedPicture, PictureT, SegmentedPicture
from bridger.labels import BACKGROUND, IGNORE
from bridger.processing import Placement, Processor
from bridger.texts import ClassName


@dataclass(frozen=True)
class ClassItem(Generic[PictureT]):
    """A picture on its way into a batch.

    Attributes:
        picture: the picture.
        number: of the item in its run, which decides what is drawn for it.
        transform: what is done to picture and labels; None: nothing.
    """

    picture: PictureT
    number: int
    transform: Transform | None = None


class ClassCollator(ABC, Generic[PictureT]):
    """What the collators share: pictures, the questions, and the numbers of classes.

    Every batch has pixel_values (B, 3, H, W), the text of its questions (see `ClassQuestions`),
    and labels, in which classes are numbered as the picture is asked about them, from 0.

    Args:
        processor: turns pictures into tensors.
        questions: what pictures are asked.
        labels: for each class of the data, its number among the classes of the questions; None:
            it is not trained on.
        cache: keep fitted pictures and labels in memory: True for up to 2 GiB, a number of bytes,
            or False. Every worker of a DataLoader keeps its own.
    """

    def __init__(
        self,
        processor: Processor,
        questions: ClassQuestions,
        labels: Sequence[int | None],
        cache: bool | int = True,
    ) -> None:
        self.processor, self.questions, self.labels = processor, questions, tuple(labels)
        self.fitted = Fitted(processor, CACHE_BYTES if cache is True else int(cache))

    def __call__(self, items: Sequence[ClassItem[PictureT]]) -> dict[str, Any]:
        """Collate B pictures."""
        fitted = [self.fitted.picture(item.picture) for item in items]
        found = [
            self._find(item.picture, placement)
            for item, (_, placement) in zip(items, fitted, strict=True)
        ]
        shown = [self._shown(each) for each in found]
        asked, text = self.questions.ask([item.number for item in items], shown)
        pixels, labels = [], []
        for item, (picture, _), each, classes in zip(items, fitted, found, asked, strict=True):
            if item.transform is not None:
                picture, _ = item.transform(picture, picture[:0])
                if item.transform.flip:
                    each = self._flip(each)
            pixels.append(picture)
            labels.append(self._label(each, self._table(classes), len(classes)))
        return {
            "pixel_values": self.processor.normalize(torch.stack(pixels)),
            **text,
            "labels": self._batch(labels),
        }

    def _table(self, asked: Sequence[int]) -> Tensor:
        """Return for each class of the data its number among those asked, int64.

        BACKGROUND where the picture is not asked about it: it is none of those that it is asked
        about. IGNORE where it is not trained on.
        """
        places = {k: place for place, k in enumerate(asked)}
        numbers = (IGNORE if k is None else places.get(k, BACKGROUND) for k in self.labels)
        return torch.tensor(list(numbers))

    def _known(self, labels: Sequence[int]) -> set[int]:
        """Return the classes of the questions among some of the data."""
        return {k for label in labels if (k := self.labels[label]) is not None}

    @abstractmethod
    def _find(self, picture: PictureT, placement: Placement) -> Any:
        """Return what is true of a fitted picture, in the numbers of the data."""

    @abstractmethod
    def _shown(self, found: Any) -> set[int]:
        """Return the classes of the questions that are shown."""

    def _flip(self, found: Any) -> Any:
        """Return what is true of the mirrored picture."""
        return found

    @abstractmethod
    def _label(self, found: Any, table: Tensor, count: int) -> Any:
        """Return what is true in the numbers of `count` classes that are asked about."""

    def _batch(self, labels: list[Any]) -> Any:
        """Return the labels of a batch."""
        return torch.stack(labels)


class MultiLabelCollator(ClassCollator[PictureT]):
    """A collator whose labels may be of one class each, or of any number.

    Args:
        processor, questions, labels, cache: see `ClassCollator`.
        multi_label: whether they may be of any number.
    """

    def __init__(
        self,
        processor: Processor,
        questions: ClassQuestions,
        labels: Sequence[int | None],
        cache: bool | int = True,
        *,
        multi_label: bool = False,
    ) -> None:
        super().__init__(processor, questions, labels, cache)
        self.multi_label = multi_label


class SemanticCollator(MultiLabelCollator[SegmentedPicture]):
    """Batches for semantic segmentation.

    Labels are (B, H, W) int64: the classes asked about, IGNORE outside of the picture, and
    BACKGROUND on all that is none of the classes asked about, be it another class. With
    `multi_label` they are (B, N, H, W) float, 1 on a class and 0 elsewhere; what is IGNORE is so
    for every class, as a float: nobody knows what is there.
    """

    def _find(self, picture: SegmentedPicture, placement: Placement) -> Tensor:
        def fit() -> Tensor:
            labels = torch.from_numpy(picture.labels.astype(np.int16))
            return placement.labels_into_input(labels, IGNORE)

        return self.fitted.kept((picture.source, picture.key), fit)

    def _shown(self, found: Tensor) -> set[int]:
        return self._known([label for label in torch.unique(found).tolist() if label >= 0])

    def _flip(self, found: Tensor) -> Tensor:
        return found.flip(-1)

    def _label(self, found: Tensor, table: Tensor, count: int) -> Tensor:
        labels = torch.where(found >= 0, table[found.clamp(min=0).long()], found.long())
        if not self.multi_label:
            return labels
        masks = (labels == torch.arange(count)[:, None, None]).float()
        return masks.masked_fill(labels == IGNORE, IGNORE)


class DetectionCollator(ClassCollator[BoxedPicture]):
    """Batches for detection.

    Labels are a list of B dicts: boxes (n, 4) float32, x0 y0 x1 y1 in pixels of the input, labels
    (n,) int64 and crowd (n,) bool. Boxes of classes that a picture is not asked about are left
    out: they are none of those.
    """

    def _find(self, picture: BoxedPicture, placement: Placement) -> dict[str, Tensor]:
        picture.require_size(placement.size)
        boxes = boxes_in_input(torch.from_numpy(picture.boxes), placement)
        found = {
            "boxes": boxes,
            "labels": torch.from_numpy(picture.labels).long(),
            "crowd": torch.from_numpy(picture.crowd),
        }
        return _chosen(found, (boxes[:, :2] < boxes[:, 2:]).all(dim=1))

    def _shown(self, found: dict[str, Tensor]) -> set[int]:
        return self._known(found["labels"].tolist())

    def _flip(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**found, "boxes": mirrored(found["boxes"], self.processor.image_size[1])}

    def _label(self, found: dict[str, Tensor], table: Tensor, count: int) -> dict[str, Tensor]:
        numbered = {**found, "labels": table[found["labels"]]}
        return _chosen(numbered, numbered["labels"] >= 0)

    def _batch(self, labels: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        return labels


class ClassificationCollator(MultiLabelCollator[ClassifiedPicture]):
    """Batches for classification.

    Labels are (B,) int64, IGNORE where a picture's class is not trained on; or with `multi_label`
    (B, N) float, 1 for each class that is shown.
    """

    def _find(self, picture: ClassifiedPicture, placement: Placement) -> tuple[int, ...]:
        return picture.labels

    def _shown(self, found: tuple[int, ...]) -> set[int]:
        return self._known(found)

    def _label(self, found: tuple[int, ...], table: Tensor, count: int) -> Tensor:
        numbers = table[list(found)]
        if not self.multi_label:
            return numbers[0]
        labels = torch.zeros(count)
        labels[numbers[numbers >= 0]] = 1
        return labels


def numbers_of(classes: Sequence[ClassName], trained: Sequence[ClassName]) -> list[int | None]:
    """Return the number of each of the data's classes among those trained on, by their names.

    Raises:
        ValueError: a class to be trained on is none of the data's.
    """
    names = {name_key(entry): names_of(entry)[0] for entry in classes}
    places = {name_key(entry): place for place, entry in enumerate(trained)}
    if unknown := [names_of(trained[places[key]])[0] for key in places if key not in names]:
        raise ValueError(
            f"head.classes names {unknown[0]!r}, which the training data do not have: "
            f"{did_you_mean(unknown[0], [*names.values()])} (head.classes=[] trains on all of them)"
        )
    return [places.get(key) for key in names]


def _chosen(found: dict[str, Tensor], kept: Tensor) -> dict[str, Tensor]:
    return {name: values[kept] for name, values in found.items()}
