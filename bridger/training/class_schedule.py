"""The order in which a run sees pictures with labels of classes, fixed before its first step."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import Generic

from torch.utils.data import Dataset

from bridger.class_phrases import names_of
from bridger.data.augment import draw_transform
from bridger.data.augment_words import holds_under_colour, mirror_words
from bridger.data.class_collate import ClassItem
from bridger.data.labelled import ClassifiedPicture, LabelledDataset, PictureT
from bridger.texts import ClassName
from bridger.training.schedule import Shuffled


class ClassSchedule(Dataset[ClassItem[PictureT]], Generic[PictureT]):
    """What a run of `length` items sees, item by item.

    Item k depends on (seed, k) alone, as that of `Schedule`. Every picture is seen once before one
    is seen again.

    Args:
        dataset: the split.
        indices: of the pictures in it that are seen.
        length: items of the run: steps times batch size.
        seed: of the order and the draws.
        augment: "flip" and "colour".
    """

    def __init__(
        self,
        dataset: LabelledDataset[PictureT],
        indices: Sequence[int],
        length: int,
        seed: int,
        augment: Sequence[str] = (),
    ) -> None:
        self.dataset, self.indices, self.length, self.seed = dataset, indices, length, seed
        self.augment = allowed(augment, dataset.classes)
        self._shuffled = Shuffled(len(indices), seed)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> ClassItem[PictureT]:
        """Return an item."""
        if not 0 <= index < self.length:
            raise IndexError(f"the run has {self.length} items, there is no item {index}")
        picture = self.dataset[self.indices[self._shuffled[index]]]
        dice = random.Random(f"{self.seed}/{index}/augment")
        return ClassItem(picture, index, draw_transform(self.augment, (), dice)[0])


def allowed(augment: Sequence[str], classes: Sequence[ClassName]) -> tuple[str, ...]:
    """Return the augmentations that leave every class what its names say.

    "left hand" forbids to flip pictures, "orange" to change their colours, which is warned of.
    """
    names = [name for entry in classes for name in names_of(entry)]
    forbidding = {
        "flip": [name for name in names if mirror_words(name) != name],
        "colour": [name for name in names if not holds_under_colour(name)],
    }
    for name in augment:
        if found := forbidding[name]:
            warnings.warn(
                f"augment leaves out {name!r}, which would make {len(found)} of the class names "
                f"wrong, such as {found[0]!r}",
                UserWarning,
                stacklevel=3,
            )
    return tuple(name for name in augment if not forbidding[name])


def few_shots(
    dataset: LabelledDataset[ClassifiedPicture],
    shots: int,
    seed: int,
    labels: Sequence[int] | None = None,
) -> list[int]:
    """Draw pictures of a split so that each class has `shots` of them, or all that it has.

    The draw for a class depends on the seed and its name alone. A picture of several classes that
    is drawn for more than one of them is seen once all the same.

    Args:
        dataset: the split.
        shots: see above.
        seed: of the draws.
        labels: numbers in it of the classes that are drawn for; None: all.

    Returns:
        Their indices, in order.
    """
    asked = range(len(dataset.classes)) if labels is None else labels
    showing: dict[int, list[int]] = {label: [] for label in asked}
    for index in range(len(dataset)):
        for label in dataset[index].labels:
            if label in showing:
                showing[label].append(index)
    drawn: set[int] = set()
    for label, own in showing.items():
        dice = random.Random(f"{seed}/shots/{names_of(dataset.classes[label])[0]}")
        drawn |= set(dice.sample(own, min(shots, len(own))))
    return sorted(drawn)
