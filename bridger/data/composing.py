"""Pictures of several objects, each with the mask of what is visible of it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bridger.data.expressions import Seen
from bridger.data.sprites import TINTS, Kind, kinds
from bridger.predictions import box_of

if TYPE_CHECKING:
    from bridger.data.painting import Placement

MIN_VISIBLE = 0.7  # share of an object that nothing may hide
SIZES = (0.22, 0.42)  # longer side of an object, as a fraction of the picture's side
CROWDED = (0.22, 0.36)  # that of each of five and more

Range = tuple[float, float]


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        kind: what it is.
        mask: (H, W) bool, what is visible of it.
        box: (x, y, width, height) of the mask in pixels.
        seen: what can be said about it.
    """

    kind: Kind
    mask: npt.NDArray[np.bool_]
    box: tuple[int, int, int, int]
    seen: Seen


@dataclass(frozen=True)
class Composition:
    """A picture of objects.

    Attributes:
        image: (H, W, 3) uint8.
        objects: the farthest first; their masks are disjoint.
        hidden: (K, K), how many pixels of object i are hidden by object j.
    """

    image: npt.NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    hidden: npt.NDArray[np.int64]


def check_size(size: int) -> None:
    """Refuse pictures that would be too small to show anything.

    Raises:
        ValueError: the side has less than 32 pixels.
    """
    if size < 32:
        raise ValueError(f"scenes need at least 32 x 32 pixels to be read, got {size}")


def usual_sizes(count: int) -> list[Range]:
    """Return the range of sizes of each of so many objects."""
    return [SIZES if count < 5 else CROWDED] * count


def compose(
    chosen: list[Kind],
    ranges: list[Range],
    rng: np.random.Generator,
    words: random.Random,
    size: int,
) -> Composition | None:
    """Place objects of some kinds at random, and paint them.

    Args:
        chosen: the kinds, the farthest object first.
        ranges: the least and the largest size of each object, as fractions of the picture's side.
        rng: draws the background.
        words: draws everything else.
        size: the picture's side in pixels.

    Returns:
        The picture, or None where too much of an object would be hidden: try again.
    """
    from bridger.data.painting import paint, paint_background

    placements = _arrange(chosen, ranges, words)
    image, masks, hidden = paint(placements, paint_background(rng, size, size))
    covered = masks.sum(axis=(1, 2))
    if not covered.all() or (covered < MIN_VISIBLE * (covered + hidden.sum(axis=1))).any():
        return None
    objects = []
    for placement, mask in zip(placements, masks, strict=True):
        kind = kinds()[placement.kind]
        x0, y0, x1, y1 = box_of(mask)
        box = (x0, y0, x1 - x0, y1 - y0)
        seen = Seen(
            kind,
            x=(box[0] + box[2] / 2) / size,
            y=(box[1] + box[3] / 2) / size,
            size=placement.size,
            colour=placement.tint or kind.colour,
        )
        objects.append(SceneObject(kind, mask, box, seen))
    return Composition(image, tuple(objects), hidden)


def _arrange(chosen: list[Kind], ranges: list[Range], words: random.Random) -> list[Placement]:
    """Place the objects so that they hardly overlap; sizes and tints differ among equals."""
    from bridger.data.painting import Placement

    tinted = words.random() < 0.6
    sizes = [words.uniform(*between) for between in ranges]
    spots = _spread(sizes, words)
    placements = []
    for kind, size, (x, y) in zip(chosen, sizes, spots, strict=True):
        tint = None
        if tinted and kind.tintable and words.random() < 0.7:
            tint = words.choice(list(TINTS))
        placements.append(
            Placement(
                kind=kind.index,
                x=x,
                y=y,
                size=size,
                angle=words.uniform(-20, 20),
                flip=words.random() < 0.5,
                light=words.uniform(0.85, 1.15),
                tint=tint,
            )
        )
    return placements


def _spread(sizes: list[float], words: random.Random) -> list[tuple[float, float]]:
    """Draw centres until objects keep apart; the wanted distance shrinks with every failure."""
    apart = 0.5
    while True:
        spots: list[tuple[float, float]] = []
        for i, size in enumerate(sizes):
            margin = 0.45 * size
            for _ in range(20):
                x, y = words.uniform(margin, 1 - margin), words.uniform(margin, 1 - margin)
                if all(
                    (x - a) ** 2 + (y - b) ** 2 > (apart * (size + sizes[j])) ** 2
                    for j, (a, b) in enumerate(spots)
                ):
                    spots.append((x, y))
                    break
            if len(spots) <= i:
                break
        if len(spots) == len(sizes):
            return spots
        apart *= 0.97
