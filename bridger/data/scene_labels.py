"""Scenes with classes in place of sentences: for segmentation, detection and classification.

Three splits: `train`, `val` and `test`. The classes are some of the embedded kinds; about a sixth
of them are held out: no mask, box or label of theirs is in `train`, while `val` and `test` ask for
all of them. Scene i of a split depends on (seed, split, i, size) and the classes alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np

from bridger.data.composing import Composition, check_size, compose, usual_sizes
from bridger.data.sprites import Kind, kinds

LABEL_SPLITS = ("train", "val", "test")
FEWEST_CLASSES, MOST_CLASSES = 6, 254  # scenes show five; label maps of 8 bits know no more
MAIN_SIZE = (0.34, 0.5)  # of the object that a picture is classified by
CLUTTER_SIZE = (0.14, 0.22)  # so that embedded CLIP is right about three times of four
_SEEDS = {"train": 4, "val": 5, "test": 6}  # scenes with sentences have 0 to 3


def scene_classes(count: int = 48) -> tuple[Kind, ...]:
    """Return the kinds that scenes with labels ask for, in the order of the atlas.

    A fixed hash of their names chooses them; those that are chosen for few classes are among those
    for more. A sixth of them are `Kind.held_out`, as far as there are so many.

    Args:
        count: how many.

    Raises:
        ValueError: less than 6, or more than 254.
    """
    if not FEWEST_CLASSES <= count <= MOST_CLASSES:
        raise ValueError(
            f"scenes can have {FEWEST_CLASSES} to {MOST_CLASSES} classes, asked were {count}"
        )
    in_line = sorted(
        kinds(), key=lambda kind: hashlib.sha256(f"class {kind.name}".encode()).hexdigest()
    )
    held_out = [kind for kind in in_line if kind.held_out][: round(count / 6)]
    seen = [kind for kind in in_line if not kind.held_out][: count - len(held_out)]
    return tuple(sorted(held_out + seen, key=lambda kind: kind.index))


def seen_only(classes: Sequence[Kind]) -> tuple[Kind, ...]:
    """Return the classes that training may show."""
    return tuple(kind for kind in classes if not kind.held_out)


def make_labelled_scene(
    split: str, index: int, classes: Sequence[Kind], seed: int = 0, size: int = 128
) -> Composition:
    """Make a picture of three to five objects, in a good third of the cases two of one class.

    Args:
        split: "train", "val" or "test".
        index: number of the scene in its split.
        classes: the kinds that may occur, at least five.
        seed: another seed gives another world of scenes.
        size: the picture's side in pixels.

    Raises:
        ValueError: there is no such split, or the picture would be too small to show anything.
    """
    rng, words = _draws(split, index, seed, size)
    while True:
        chosen = words.sample(list(classes), words.randint(3, 5))
        if words.random() < 0.4:
            chosen[1] = chosen[0]
        words.shuffle(chosen)
        composed = compose(chosen, usual_sizes(len(chosen)), rng, words, size)
        if composed is not None:
            return composed


def make_classified_scene(
    split: str, index: int, classes: Sequence[Kind], seed: int = 0, size: int = 128
) -> tuple[Composition, Kind]:
    """Make a picture of one object of a class among smaller things that are of no class.

    Classes take turns, so that each has as many pictures. Arguments and errors as of
    `make_labelled_scene`; `classes` are those of the whole data set, also in train.

    Returns:
        The picture, and the class.
    """
    rng, words = _draws(split, index, seed, size)
    asked = seen_only(classes) if split == "train" else tuple(classes)
    main = asked[index % len(asked)]
    others = [kind for kind in kinds() if kind not in classes]
    while True:
        clutter = words.sample(others, words.randint(1, 3))
        sizes = [*[CLUTTER_SIZE] * len(clutter), MAIN_SIZE]
        composed = compose([*clutter, main], sizes, rng, words, size)
        if composed is not None:
            return composed, main


def _draws(
    split: str, index: int, seed: int, size: int
) -> tuple[np.random.Generator, random.Random]:
    if split not in LABEL_SPLITS:
        raise ValueError(
            f"there is no split {split!r}; scenes with labels have {', '.join(LABEL_SPLITS)}"
        )
    check_size(size)
    rng = np.random.default_rng((seed, _SEEDS[split], index))
    return rng, random.Random(int(rng.integers(2**62)))
