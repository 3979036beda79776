"""Scenes: small pictures of everyday objects with expressions that mean exactly one of them.

Four splits: `train`; `val`, of the same sort; `testA`, where several objects of one kind stand in
the picture and the words must decide; `testB`, which asks for kinds that no expression in training
ever named. Scene i of a split depends on (seed, split, i, size) alone.
"""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bridger._files import replacing
from bridger.data.expressions import Describer, Expression, Seen
from bridger.data.sprites import TINTS, Kind, kinds
from bridger.prediction import box_of

SPLITS = ("train", "val", "testA", "testB")
IDS_PER_SPLIT = 1_000_000  # image ids of a split start at its number times this
MIN_VISIBLE = 0.7  # share of an object that nothing may hide
ANNOTATIONS = Path("refcoco", "refs(unc).p")  # comes last: where it is, the scenes are complete
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
    folder: str | os.PathLike[str], counts: Mapping[str, int], size: int = 128, seed: int = 0
) -> None:
    """Write scenes to disk in RefCOCO's own format, so that the same reader serves both.

    The folder then holds `refcoco/refs(unc).p`, `refcoco/instances.json` and
    `images/train2014/`. Masks are run-length encoded, and thus exact.

    Args:
        folder: where to write.
        counts: how many scenes of each split, such as {"train": 2000, "val": 200}.
        size: the pictures' side in pixels.
        seed: see `make_scene`.

    Raises:
        ValueError: there is no such split.
    """
    if unknown := set(counts) - set(SPLITS):
        raise ValueError(f"there are no splits {sorted(unknown)}; scenes have {SPLITS}")
    folder = Path(folder)
    (folder / "images" / "train2014").mkdir(parents=True, exist_ok=True)
    writer = _Writer(folder)
    for split in SPLITS:
        for index in range(counts.get(split, 0)):
            number = SPLITS.index(split) * IDS_PER_SPLIT + index
            writer.add(split, number, make_scene(split, index, seed, size))
    writer.close()


class _Writer:
    """Gathers what RefCOCO's two annotation files hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refs: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.sentences = 0

    def add(self, split: str, number: int, scene: Scene) -> None:
        from PIL import Image

        name = f"COCO_train2014_{number:012d}.jpg"
        path = self.folder / "images" / "train2014" / name
        Image.fromarray(scene.image).save(path, quality=95, subsampling=0)
        height, width = scene.image.shape[:2]
        self.images.append({"id": number, "file_name": name, "height": height, "width": width})
        for i, thing in enumerate(scene.objects):
            self._add_annotation(number, thing)
            said = [e.sentence for e in scene.expressions if e.target == i]
            if said:
                self._add_ref(split, self.annotations[-1], name, said)

    def _add_annotation(self, image_id: int, thing: SceneObject) -> None:
        from pycocotools import mask as rle

        encoded = rle.encode(np.asfortranarray(thing.mask, dtype=np.uint8))
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image_id,
                "category_id": thing.kind.index + 1,
                "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
                "bbox": list(map(float, thing.box)),
                "area": float(thing.mask.sum()),
                "iscrowd": 0,
            }
        )

    def _add_ref(
        self, split: str, annotation: dict[str, Any], file_name: str, said: list[str]
    ) -> None:
        sent_ids = list(range(self.sentences, self.sentences + len(said)))
        self.sentences += len(said)
        self.refs.append(
            {
                "ref_id": len(self.refs),
                "ann_id": annotation["id"],
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "file_name": file_name,
                "split": split,
                "sent_ids": sent_ids,
                "sentences": [
                    {"sent_id": i, "sent": s, "raw": s, "tokens": s.split()}
                    for i, s in zip(sent_ids, said, strict=True)
                ],
            }
        )

    def close(self) -> None:
        categories = [
            {
                "id": k.index + 1,
                "name": k.name,
                "supercategory": k.hypernyms[0] if k.hypernyms else "",
            }
            for k in kinds()
        ]
        instances = {
            "info": {"description": "bridger's scenes in the format of RefCOCO"},
            "images": self.images,
            "annotations": self.annotations,
            "categories": categories,
        }
        annotations = self.folder / ANNOTATIONS
        annotations.parent.mkdir(exist_ok=True)
        with replacing(annotations.with_name("instances.json")) as path:
            path.write_text(json.dumps(instances))
        with replacing(annotations) as path:
            path.write_bytes(pickle.dumps(self.refs, protocol=2))
