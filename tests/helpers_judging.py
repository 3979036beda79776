"""Small data sets with labels, and untrained heads to judge on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

import bridger
from bridger import attach_bridgers
from bridger.data.labelled import (
    BoxedPicture,
    ClassifiedPicture,
    LabelledDataset,
    LabelledPicture,
    SegmentedPicture,
)
from bridger.heads.registry import get_head
from bridger.labels import BACKGROUND, IGNORE
from bridger.model import BridgedModel
from bridger.texts import ClassName

CLASSES: tuple[ClassName, ...] = (("owl", "night bird"), "drum", "car", "tree")
TRAINED = ("owl", "car")
SMALL = {"width": 64}
HEADS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "regions": ("semantic_segmentation", {**SMALL, "background": False, "classes": TRAINED}),
    "boxes": ("detection", {**SMALL, "classes": TRAINED}),
    "phrases": ("referring_comprehension", SMALL),
    "label": ("classification", {"classes": TRAINED}),
    "masks": ("referring_segmentation", {**SMALL, "num_layers": 1, "num_heads": 2}),
}
"""Untrained heads by name: the registered name and options of each."""


def model_with(*names: str, **options: Any) -> BridgedModel:
    """The embedded pair with some of `HEADS`, the options added to the first one's."""
    vision, text, processor = bridger.load_tiny_clip()
    heads = {name: (get_head(HEADS[name][0]), dict(HEADS[name][1])) for name in names}
    heads[names[0]][1].update(options)
    model = BridgedModel.build(attach_bridgers(vision, text, 2), heads)
    model.processor = processor
    return model.eval()


class Labelled(LabelledDataset[Any]):
    """The pictures that it is given."""

    def __init__(
        self,
        pictures: Sequence[LabelledPicture],
        classes: Sequence[ClassName] = CLASSES,
        split: str = "val",
    ) -> None:
        self.pictures, self.classes = list(pictures), tuple(classes)
        self.name, self.split = "few", split

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        return self.pictures[index]


def noise(folder: Path, count: int) -> list[tuple[Path, tuple[int, int]]]:
    """Write pictures of noise in several sizes: their files and (h, w)."""
    numbers = np.random.default_rng(0)
    made = []
    for index in range(count):
        size = (36 + 4 * index, 60 - 4 * index)
        path = folder / f"{index}.png"
        if not path.exists():
            pixels = numbers.integers(0, 256, (*size, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(path)
        made.append((path, size))
    return made


def segmented(folder: Path, count: int = 5) -> Labelled:
    """Pictures with label maps of quarters, with background and pixels to ignore."""

    def quarters(size: tuple[int, int], first: int) -> Callable[[], npt.NDArray[np.int64]]:
        labels = np.full(size, BACKGROUND, dtype=np.int64)
        middle = size[0] // 2, size[1] // 2
        labels[: middle[0], : middle[1]] = first % len(CLASSES)
        labels[middle[0] :, middle[1] :] = (first + 1) % len(CLASSES)
        labels[-3:, :5] = IGNORE
        return lambda: labels

    return Labelled(
        [
            SegmentedPicture(path, str(index), "few", quarters(size, index))
            for index, (path, size) in enumerate(noise(folder, count))
        ]
    )


def boxed(folder: Path, count: int = 5) -> Labelled:
    """Pictures with two boxes each, one of them of a crowd now and then."""
    pictures = []
    for index, (path, size) in enumerate(noise(folder, count)):
        boxes = np.array([[2, 3, 22, 25], [10, 8, size[1] - 1, size[0] - 2]], dtype=np.float32)
        labels = np.array([index, index + 1]) % len(CLASSES)
        crowd = np.array([False, index == 2])
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        pictures.append(BoxedPicture(path, str(index), "few", boxes, labels, crowd, areas, size))
    return Labelled(pictures)


def classified(folder: Path, count: int = 5) -> Labelled:
    """Pictures of one class each."""
    return Labelled(
        [
            ClassifiedPicture(path, str(index), "few", (index % len(CLASSES),))
            for index, (path, _) in enumerate(noise(folder, count))
        ]
    )
