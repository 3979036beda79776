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

import numpy as np
import numpy.typing as npt

from bridger.data.composing import SceneObject, check_size, compose, usual_sizes
from bridger.data.expressions import Describer, Expression
from bridger.data.generalized import Said, generalize
from bridger.data.scene_files import LAYOUTS, SceneWriter
from bridger.data.scene_label_files import LABEL_LAYOUTS, write_labelled_scenes
from bridger.data.sprites import Kind, kinds

SPLITS = ("train", "val", "testA", "testB")
IDS_PER_SPLIT = 1_000_000  # image ids of a split start at its number times this
ANNOTATIONS = LAYOUTS["refcoco"]


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
    check_size(size)
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    words = random.Random(int(rng.integers(2**62)))
    while True:
        scene = _try_scene(split, rng, words, size)
        if scene is not None:
            return scene


def _try_scene(
    split: str, rng: np.random.Generator, words: random.Random, size: int
) -> Scene | None:
    chosen, asked = _choose_kinds(split, words)
    composed = compose(chosen, usual_sizes(len(chosen)), rng, words, size)
    if composed is None:
        return None
    objects = composed.objects
    may_name = [i for i, o in enumerate(objects) if split == "testB" or not o.kind.held_out]
    hidden = composed.hidden * (128 / size) ** 2
    describer = Describer([o.seen for o in objects], hidden.tolist(), may_name, words)
    targets = [i for i in may_name if objects[i].kind.index in asked]
    expressions = [e for target in targets for e in describer.describe(target)]
    return Scene(composed.image, objects, tuple(expressions)) if expressions else None


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


def write_scenes(
    folder: str | os.PathLike[str],
    counts: Mapping[str, int],
    size: int = 128,
    seed: int = 0,
    layout: str = "refcoco",
    classes: int = 48,
) -> None:
    """Write scenes to disk in a published data set's own format, so that the same reader serves.

    - "refcoco", where every expression means one object, and "grefcoco", where about a third of
      them mean one object, several and none each (see `bridger.data.generalized`): the folder then
      holds `refcoco/refs(unc).p` or `grefcoco/grefs(unc).json`, `instances.json` beside it, and
      `images/train2014/`. Both may be written to one folder: their pictures are the same.
    - "segmented", "boxed" and "classified", with classes in place of expressions: see
      `bridger.data.scene_label_files`.

    Masks are exact. After an interrupt nothing is there that would be read as a data set.

    Args:
        folder: where to write.
        counts: how many scenes of each split, such as {"train": 2000, "val": 200}; splits are
            train, val, testA and testB, or with classes train, val and test.
        size: the pictures' side in pixels.
        seed: see `make_scene`.
        layout: one of the five.
        classes: how many classes there are, see `bridger.data.scene_labels.scene_classes`; scenes
            with expressions have none.

    Raises:
        ValueError: there is no such split or layout, or no such number of classes.
        FileExistsError: scenes with classes want a folder of their own, and this one is used.
    """
    if layout in LABEL_LAYOUTS:
        write_labelled_scenes(Path(folder), counts, size, seed, layout, classes)
        return
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
