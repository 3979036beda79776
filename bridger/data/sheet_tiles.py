"""How one picture and what is said of it are drawn on a contact sheet; part of `sheet.py`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from bridger.class_phrases import names_of
from bridger.data.base import ReferringDataset, Sample
from bridger.data.labelled import (
    BoxedPicture,
    ClassifiedPicture,
    LabelledDataset,
    LabelledPicture,
    SegmentedPicture,
)
from bridger.labels import IGNORE
from bridger.pictures import ImageLike, read_picture
from bridger.predictions import COLOURS, DetectionPrediction, Prediction

Split: TypeAlias = ReferringDataset | LabelledDataset[Any]
Colour: TypeAlias = tuple[int, int, int]
Word: TypeAlias = tuple[str, Colour]

SIDE = 256  # pixels
INK, PALE = (240, 240, 240), (150, 156, 166)


class Tile(NamedTuple):
    """A picture that fits a square of `SIDE` pixels, the words below it, and which one it is."""

    picture: Image.Image
    words: list[Word]
    label: str


def draw_tile(split: Split, index: int, rng: random.Random) -> Tile:
    """Draw an entry of a split; of several sentences one is chosen.

    Raises:
        FileNotFoundError, ValueError: the picture or its labels cannot be read.
    """
    if isinstance(split, ReferringDataset):
        return _ref(split[index], rng)
    picture, names = split[index], [names_of(entry)[0] for entry in split.classes]
    return Tile(*_labelled(picture, names), picture.image_path.name)


def in_words(text: str, colour: Colour) -> list[Word]:
    """Split a text into words of one colour."""
    return [(word, colour) for word in text.split()]


def _ref(sample: Sample, rng: random.Random) -> Tile:
    words = in_words(rng.choice(sample.sentences), INK)
    picture, mask = _opened(sample.image_path), Image.fromarray(sample.mask * 255)
    if mask.size != picture.size:
        raise ValueError(f"the mask is {mask.size}, the picture {picture.size} (width, height)")
    picture = _fitted(picture)
    mask = mask.resize(picture.size, Image.Resampling.BOX)
    drawn = _painted(picture, [np.asarray(mask, dtype=np.float32) / 255])
    return Tile(drawn, words, f"ref {sample.ref_id}")


def _labelled(picture: LabelledPicture, names: Sequence[str]) -> tuple[Image.Image, list[Word]]:
    opened = _opened(picture.image_path)
    if isinstance(picture, SegmentedPicture):
        return _regions(picture, opened, names)
    if isinstance(picture, BoxedPicture):
        return _boxes(picture, opened, names)
    assert isinstance(picture, ClassifiedPicture)
    return _fitted(opened), in_words(", ".join(names[k] for k in picture.labels), INK)


def _regions(
    picture: SegmentedPicture, opened: Image.Image, names: Sequence[str]
) -> tuple[Image.Image, list[Word]]:
    """Paint the largest classes, and write their names in the same colours."""
    drawn, labels = _fitted(opened), picture.labels
    counts = Counter(labels.ravel().tolist())
    largest = [k for k, _ in counts.most_common() if k >= 0][: len(COLOURS)]
    # Nearest: numbers of classes have no mean.
    small = Image.fromarray(labels.astype(np.int32)).resize(drawn.size, Image.Resampling.NEAREST)
    masks = [(np.asarray(small) == k).astype(np.float32) for k in largest]
    words = [
        word
        for k, colour in zip(largest, COLOURS, strict=False)
        for word in in_words(f"{names[k]}{',' * (k != largest[-1])}", colour)
    ]
    if ignored := counts[IGNORE] / labels.size:
        words += in_words(f"({ignored:.0%} ignored)", PALE)
    return _painted(drawn, masks), words


def _boxes(
    picture: BoxedPicture, opened: Image.Image, names: Sequence[str]
) -> tuple[Image.Image, list[Word]]:
    """Draw all boxes with their names, and count them."""
    picture.require_size((opened.height, opened.width))
    drawn = _fitted(opened)
    crowd = [f"{name} (crowd)" for name in names]
    found = DetectionPrediction(
        picture.boxes * np.float32(drawn.width / opened.width),
        np.ones(len(picture.boxes), dtype=np.float32),
        picture.labels + len(names) * picture.crowd,
        (*names, *crowd),
        (drawn.height, drawn.width),
    )
    counts = Counter(found.names[label] for label in found.labels)
    said = ", ".join(f"{name} x {n}" if n > 1 else name for name, n in counts.items())
    return found.overlay(drawn, least_side=SIDE, scores=False), in_words(said, INK)


def _opened(image: ImageLike) -> Image.Image:
    return Image.fromarray(read_picture(image).permute(1, 2, 0).numpy())


def _fitted(picture: Image.Image) -> Image.Image:
    return ImageOps.contain(picture, (SIDE, SIDE), Image.Resampling.BICUBIC)


def _painted(picture: Image.Image, masks: Iterable[Any]) -> Image.Image:
    size = (picture.height, picture.width)
    probabilities = np.array([*masks], dtype=np.float32).reshape(-1, *size)
    return Prediction.from_probabilities(probabilities, 0.5).overlay(picture, least_side=SIDE)
