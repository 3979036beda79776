"""Scenes with classes on disk, each layout read by the reader for such data of one's own.

- "segmented": `images/<split>/`, `labels/<split>/` and `classes.txt` (`open_segmented`); 0 is
  background. Objects of held-out classes do stand in the pictures of train, but their pixels are
  255 there, that is, ignored, and `classes_train.txt` does not list them.
- "boxed": COCO's `annotations/<split>.json` and `images/<split>/` (`open_boxed`). Held-out classes
  do not occur in the pictures of train at all: where there is no box, an object would be taken for
  background. They are no categories of `train.json` either.
- "classified": `<split>/<class>/` (`open_classified`), a main object among smaller things that are
  of no class. Train has no folders of held-out classes; `classes_train.txt` lists the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridger._files import filling
from bridger.data.class_lists import CLASSES_FILE
from bridger.data.scene_files import annotation, instances
from bridger.data.scene_labels import (
    LABEL_SPLITS,
    make_classified_scene,
    make_labelled_scene,
    scene_classes,
    seen_only,
)
from bridger.data.segmented_layouts import VOID
from bridger.data.sprites import Kind

if TYPE_CHECKING:
    from bridger.data.composing import Composition

_ENTRIES = ("images", "labels", "annotations", CLASSES_FILE, *LABEL_SPLITS)


def write_labelled_scenes(
    folder: Path, counts: Mapping[str, int], size: int, seed: int, layout: str, classes: int
) -> None:
    """Write scenes with classes; arguments and errors as of `bridger.data.scenes.write_scenes`."""
    if unknown := set(counts) - set(LABEL_SPLITS):
        raise ValueError(
            f"there are no splits {sorted(unknown)}; scenes with labels have {LABEL_SPLITS}"
        )
    chosen = scene_classes(classes)
    if there := [name for name in _ENTRIES if (folder / name).exists()]:
        raise FileExistsError(
            f"{folder} already holds a data set ({there[0]}): choose another folder"
        )
    wanted = {split: counts[split] for split in LABEL_SPLITS if counts.get(split)}
    with filling(folder) as fresh:
        LABEL_LAYOUTS[layout](fresh, wanted, chosen, size, seed)


def _write_segmented(
    folder: Path, counts: Mapping[str, int], classes: Sequence[Kind], size: int, seed: int
) -> None:
    from PIL import Image

    numbers = {kind.index: number for number, kind in enumerate(classes, 1)}
    for split, count in counts.items():
        places = [folder / name / split for name in ("images", "labels")]
        for place in places:
            place.mkdir(parents=True)
        for index in range(count):
            scene = make_labelled_scene(split, index, classes, seed, size)
            labels = np.zeros(scene.image.shape[:2], dtype=np.uint8)
            for thing in scene.objects:
                ignored = split == "train" and thing.kind.held_out
                labels[thing.mask] = VOID if ignored else numbers[thing.kind.index]
            _save(scene, places[0] / f"{index:06d}.jpg")
            drawn = Image.fromarray(labels)
            drawn.putpalette(_palette())  # numbers all the same; for people's eyes
            drawn.save(places[1] / f"{index:06d}.png")
    _write_classes(folder, lambda some: ["background", *(kind.name for kind in some)], classes)


def _write_boxed(
    folder: Path, counts: Mapping[str, int], classes: Sequence[Kind], size: int, seed: int
) -> None:
    (folder / "annotations").mkdir()
    for split, count in counts.items():
        place = folder / "images" / split
        place.mkdir(parents=True)
        shown = seen_only(classes) if split == "train" else classes
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            scene = make_labelled_scene(split, index, shown, seed, size)
            image = {"id": index, "file_name": f"{index:06d}.jpg", "height": size, "width": size}
            images.append(image)
            _save(scene, place / f"{index:06d}.jpg")
            first = len(annotations) + 1
            annotations += [annotation(o, first + i, index) for i, o in enumerate(scene.objects)]
        said = f"bridger's scenes, {split}"
        path = folder / "annotations" / f"{split}.json"
        path.write_text(json.dumps(instances(said, images, annotations, shown)), encoding="utf-8")


def _write_classified(
    folder: Path, counts: Mapping[str, int], classes: Sequence[Kind], size: int, seed: int
) -> None:
    for split, count in counts.items():
        for index in range(count):
            scene, kind = make_classified_scene(split, index, classes, seed, size)
            place = folder / split / _folder_name(kind)
            place.mkdir(parents=True, exist_ok=True)
            _save(scene, place / f"{index:06d}.jpg")
    _write_classes(folder, lambda some: map(_folder_name, some), classes)


LABEL_LAYOUTS = {
    "segmented": _write_segmented,
    "boxed": _write_boxed,
    "classified": _write_classified,
}


def _save(scene: Composition, path: Path) -> None:
    from PIL import Image

    Image.fromarray(scene.image).save(path, quality=95, subsampling=0)


def _folder_name(kind: Kind) -> str:
    return kind.name.replace(" ", "_")


def _write_classes(
    folder: Path, lines: Callable[[Sequence[Kind]], Iterable[str]], classes: Sequence[Kind]
) -> None:
    for name, some in (("classes_train.txt", seen_only(classes)), (CLASSES_FILE, classes)):
        (folder / name).write_text("".join(f"{line}\n" for line in lines(some)), encoding="utf-8")


def _palette() -> list[int]:
    """Return 256 colours, red, green, blue one after the other: black, hues, and white for 255."""
    return [value for colour in _colours() for value in colour]


def _colours() -> Iterator[tuple[int, int, int]]:
    from colorsys import hsv_to_rgb

    yield (0, 0, 0)
    for i in range(1, VOID):
        # Neighbours lie a golden angle apart, so that few colours are alike.
        red, green, blue = hsv_to_rgb(i * 0.618 % 1, 0.5 + 0.5 * (i % 2), 1 - 0.15 * (i % 3))
        yield (round(255 * red), round(255 * green), round(255 * blue))
    yield (255, 255, 255)
