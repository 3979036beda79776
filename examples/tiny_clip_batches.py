"""Batches for pretraining Tiny CLIP: which groups of pictures with captions stand in one.

Across groups a caption may happen to be true of another group's picture ("the bird"); such pairs
are marked and are no negatives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tiny_clip_captions import Captioner, Example

from bridger.data.painting import paint, paint_background
from bridger.data.sprites import kinds, kinds_called


@dataclass(frozen=True)
class Batch:
    """A batch of pictures and captions.

    Attributes:
        images: (B, H, W, 3), uint8.
        captions: B sentences.
        ignore: (B, B), true where caption i may be true of picture j without belonging to it.
        groups: names of the groups' sorts, one per picture.
    """

    images: npt.NDArray[np.uint8]
    captions: list[str]
    ignore: npt.NDArray[np.bool_]
    groups: list[str]


@dataclass(frozen=True)
class Recipe:
    """What a batch is made of.

    Attributes:
        batch_size: pictures in a batch.
        image_size: their side in pixels.
        smallest: the least size of an object whose size is drawn freely, a share of the picture.
        groups: how many groups of each sort; the rest of the batch are single objects.
    """

    batch_size: int
    image_size: int
    smallest: float
    groups: dict[str, int]


# Names and colours need many pictures but few pixels. At half of the side a picture costs a
# quarter; its objects are drawn larger, so that they keep their size in pixels.
NAMES = Recipe(
    batch_size=256,
    image_size=64,
    smallest=0.35,
    groups={"scene": 40, "colours": 14, "own_colour": 16, "places": 6},
)
SCENES = Recipe(
    batch_size=128,
    image_size=128,
    smallest=0.2,
    groups={
        "scene": 20,
        "places": 4,
        "colours": 4,
        "own_colour": 3,
        "two_colours": 2,
        "sizes": 2,
        "relations": 3,
        "nearness": 1,
        "overlap": 2,
        "between": 1,
        "ordinals": 2,
        "twins": 3,
    },
)


def make_batch(recipe: Recipe, seed: int, index: int) -> Batch:
    """Batch number `index`; it depends on the arguments alone."""
    captioner = Captioner(np.random.default_rng((seed, 7, index)), recipe.smallest)
    names = [name for name, count in recipe.groups.items() for _ in range(count)]
    examples: list[Example] = []
    groups: list[tuple[int, str]] = []
    for number, name in enumerate(names + ["single"] * recipe.batch_size):
        draw: Callable[[], list[Example]] = getattr(captioner, name)
        group = draw()[: recipe.batch_size - len(examples)]
        examples += group
        groups += [(number, name)] * len(group)
        if len(examples) == recipe.batch_size:
            break
    size = recipe.image_size
    images = np.stack(
        [
            paint(list(e.placements), paint_background(captioner.rng, size, size))[0]
            for e in examples
        ]
    )
    ignore = _may_be_true(examples) & ~_same([number for number, _ in groups])
    return Batch(images, [e.caption for e in examples], ignore, [name for _, name in groups])


def _same(numbers: list[int]) -> npt.NDArray[np.bool_]:
    column = np.array(numbers)
    return column[:, None] == column[None, :]


def _may_be_true(examples: list[Example]) -> npt.NDArray[np.bool_]:
    """(B, B): whether picture j shows something for each noun of caption i."""
    shown = np.zeros((len(examples), len(kinds())), dtype=np.bool_)
    for j, example in enumerate(examples):
        shown[j, [spot.kind for spot in example.placements]] = True
    answer = np.ones((len(examples), len(examples)), dtype=np.bool_)
    for i, example in enumerate(examples):
        for noun in example.nouns:
            answer[i] &= shown[:, list(kinds_called(noun))].any(axis=1)
    return answer
