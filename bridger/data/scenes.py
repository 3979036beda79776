"""Scenes: small pictures of everyday objects with expressions that mean exactly one of them.

Four splits: `train`; `val`, of the same sort; `testA`, where several objects of one kind stand in
the picture and the words must decide; `testB`, which asks for kinds that no expression in training
ever named. Scene i of a split depends on (seed, split, i, size) alone.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bridger.data.expressions import Describer, Expression, Seen
from bridger.data.generalized import Said, generalize
from bridger.data.scene_files import LAYOUTS, SceneWriter
from bridger.data.sprites import TINTS, Kind, kinds
from bridger.predictions import box_of

SPLITS = ("train", "val", "testA", "testB")
IDS_PER_SPLIT = 1_000_000  # image ids of a split start at its number times this
MIN_VISIBLE = 0.7  # share of an object that nothing may hide
ANNOTATIONS = LAYOUTS["refcoco"]
SIZES = (0.22, 0.42)  # longer side of an object, as a fraction of the picture's side


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
class Scene:
    """A picture and what can be asked of it.

    Attributes:
        image: (H, W, 3) uint8.
        objects: the farthest first; their masks are disjoint.
        expressions: every one true of exactly one object.
    """

    image: npt.NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    expressions: tuple[Expression, ...]


def make_scene(split: str, index: int, seed: int = 0, size: int = 128) -> Scene:
    """Make one scene.

    Args:
        split: "train", "val", "testA" or "testB".
        index: number of the scene in its split.
        seed: another seed gives another world of scenes.
        size: the picture's side in pixels.

    Returns:
        The scene, with at least one expression.

    Raises:
        ValueError: there is no such split, or the picture would be too small to show anything.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; scenes have {', '.join(SPLITS)}")
    if size < 32:
        raise ValueError(f"scenes need at least 32 x 32 pixels to be read, got {size}")
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    words = random.Random(int(rng.integers(2**62)))
    while True:
        scene = _try_scene(split, rng, words, size)
        if scene.expressions:
            return scene


def _try_scene(split: str, rng: np.random.Generator, words: random.Random, size: int) -> Scene:
    from bridger.data.painting import paint, paint_background

    chosen, asked = _choose_kinds(split, words)
    placements = _arrange(chosen, words)
    image, masks, hidden = paint(placements, paint_background(rng, size, size))
    covered = masks.sum(axis=(1, 2))
    objects = []
    for placement, mask in zip(placements, masks, strict=True):
        if not mask.any():
            return Scene(image, (), ())
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
    whole = covered + hidden.sum(axis=1)
    if (covered < MIN_VISIBLE * whole).any():
        return Scene(image, (), ())
    may_name = [i for i, o in enumerate(objects) if split == "testB" or not o.kind.held_out]
    scale = (128 / size) ** 2
    describer = Describer([o.seen for o in objects], (hidden * scale).tolist(), may_name, words)
    targets = [i for i in may_name if objects[i].kind.index in asked]
    expressions = [e for target in targets for e in describer.describe(target)]
    return Scene(image, tuple(objects), tuple(expressions))


def _choose_kinds(split: str, words: random.Random) -> tuple[list[Kind], set[int]]:
    """Return the kinds of a scene's objects, and the indices of those that may be asked for."""
    everything = kinds()
    count = words.randint(3, 5)
    chosen = words.sample(everything, count)
    if split == "testB":
        chosen[0] = words.choice([kind for kind in everything if kind.held_out])
    else:
        chosen[0] = words.choice([kind for kind in everything if not kind.held_out])
    several = 1
    if split == "testA" or words.random() < 0.55:
        several = words.choice((2, 2, 3, 4) if split == "testA" else (2, 2, 3))
        chosen = [chosen[0]] * several + chosen[1 : max(2, count - several + 1)]
    if split == "testA":
        asked = {chosen[0].index}
    elif split == "testB":
        asked = {kind.index for kind in chosen if kind.held_out}
    else:
        asked = {kind.index for kind in chosen if not kind.held_out}
    words.shuffle(chosen)
    return chosen, asked


def _arrange(chosen: list[Kind], words: random.Random) -> list[Any]:
    """Place the objects so that they hardly overlap; sizes and tints differ among equals."""
    from bridger.data.painting import Placement

    largest = SIZES[1] if len(chosen) < 5 else 0.36
    tinted = words.random() < 0.6
    sizes = [words.uniform(SIZES[0], largest) for _ in chosen]
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


def write_scenes(
    folder: str | os.PathLike[str],
    counts: Mapping[str, int],
    size: int = 128,
    seed: int = 0,
    layout: str = "refcoco",
) -> None:
    """Write scenes to disk in a published data set's own format, so that the same reader serves.

    The folder then holds `refcoco/refs(unc).p` or `grefcoco/grefs(unc).json`, `instances.json`
    beside it, and `images/train2014/`. Masks are run-length encoded, and thus exact. Both layouts
    may be written to one folder: their pictures are the same.

    Args:
        folder: where to write.
        counts: how many scenes of each split, such as {"train": 2000, "val": 200}.
        size: the pictures' side in pixels.
        seed: see `make_scene`.
        layout: "refcoco", every expression means one object; or "grefcoco", about a third of them
            mean one object, several and none each (see `bridger.data.generalized`).

    Raises:
        ValueError: there is no such split or layout.
    """
    if unknown := set(counts) - set(SPLITS):
        raise ValueError(f"there are no splits {sorted(unknown)}; scenes have {SPLITS}")
    writer = SceneWriter(Path(folder), layout)
    for split in SPLITS:
        for index in range(counts.get(split, 0)):
            number = SPLITS.index(split) * IDS_PER_SPLIT + index
            scene = make_scene(split, index, seed, size)
            if layout == "refcoco":
                said = [Said(e.sentence, (e.target,), e.kind) for e in scene.expressions]
            else:
                words = random.Random(f"generalized/{seed}/{split}/{index}")
                seen = [thing.seen for thing in scene.objects]
                said = generalize(seen, scene.expressions, split, words)
            writer.add(split, number, scene, said)
    writer.close()
