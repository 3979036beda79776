"""Scenes on disk, in the formats of RefCOCO and gRefCOCO."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridger._files import replacing
from bridger.data.generalized import Said
from bridger.data.refs import NO_TARGET
from bridger.data.sprites import Kind, kinds

if TYPE_CHECKING:
    from bridger.data.composing import SceneObject
    from bridger.data.scenes import Scene

# The refs come last: where they are, the scenes are complete.
LAYOUTS = {
    "refcoco": Path("refcoco", "refs(unc).p"),
    "grefcoco": Path("grefcoco", "grefs(unc).json"),
}


class SceneWriter:
    """Writes pictures, and gathers what the two files of annotations hold.

    Args:
        folder: where to write, made where it is missing.
        layout: "refcoco" or "grefcoco".

    Raises:
        ValueError: there is no such layout.
    """

    def __init__(self, folder: Path, layout: str) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"there is no layout {layout!r}; scenes have {', '.join(LAYOUTS)}")
        self.folder, self.layout = folder, layout
        self.pictures = folder / "images" / "train2014"
        self.pictures.mkdir(parents=True, exist_ok=True)
        self.refs: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.sentences = 0

    def add(self, split: str, number: int, scene: Scene, said: Iterable[Said]) -> None:
        """Write a scene's picture; `said` about the same objects becomes one ref."""
        from PIL import Image

        name = f"COCO_train2014_{number:012d}.jpg"
        Image.fromarray(scene.image).save(self.pictures / name, quality=95, subsampling=0)
        height, width = scene.image.shape[:2]
        image = {"id": number, "file_name": name, "height": height, "width": width}
        self.images.append(image)
        first = len(self.annotations) + 1
        added = [annotation(thing, first + i, number) for i, thing in enumerate(scene.objects)]
        self.annotations += added
        of_targets: dict[tuple[int, ...], list[Said]] = {}
        for one in said:
            of_targets.setdefault(one.targets, []).append(one)
        for targets, sentences in sorted(of_targets.items()):
            self._add_ref(split, image, [added[i] for i in targets], sentences)

    def _add_ref(
        self,
        split: str,
        image: dict[str, Any],
        objects: list[dict[str, Any]],
        said: list[Said],
    ) -> None:
        sent_ids = list(range(self.sentences, self.sentences + len(said)))
        self.sentences += len(said)
        ids: dict[str, Any] = {"ann_id": [thing["id"] for thing in objects] or [NO_TARGET]}
        ids["category_id"] = [thing["category_id"] for thing in objects] or [NO_TARGET]
        if self.layout == "refcoco":
            ids = {key: value for key, (value,) in ids.items()}
        self.refs.append(
            {
                "ref_id": len(self.refs),
                "ann_id": ids["ann_id"],
                "image_id": image["id"],
                "category_id": ids["category_id"],
                "file_name": image["file_name"],
                "split": split,
                "sent_ids": sent_ids,
                "sentences": [
                    {
                        "sent_id": i,
                        "sent": one.sentence,
                        "raw": one.sentence,
                        "tokens": one.sentence.split(),
                        "kind": one.kind,
                    }
                    for i, one in zip(sent_ids, said, strict=True)
                ],
            }
        )

    def close(self) -> None:
        """Write the annotations."""
        said = "bridger's scenes in the format of RefCOCO"
        whole = instances(said, self.images, self.annotations, kinds())
        refs = self.folder / LAYOUTS[self.layout]
        refs.parent.mkdir(exist_ok=True)
        with replacing(refs.with_name("instances.json")) as path:
            path.write_text(json.dumps(whole), encoding="utf-8")
        with replacing(refs) as path:
            if self.layout == "refcoco":
                path.write_bytes(pickle.dumps(self.refs, protocol=2))
            else:
                path.write_text(json.dumps(self.refs), encoding="utf-8")


def annotation(thing: SceneObject, number: int, image_id: int) -> dict[str, Any]:
    """Return an object as COCO has it; its category is known by the kind's place in the atlas."""
    from pycocotools import mask as rle

    encoded = rle.encode(np.asfortranarray(thing.mask, dtype=np.uint8))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": thing.kind.index + 1,
        "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
        "bbox": list(map(float, thing.box)),
        "area": float(thing.mask.sum()),
        "iscrowd": 0,
    }


def instances(
    description: str,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: Sequence[Kind],
) -> dict[str, Any]:
    """Return the whole of COCO's `instances.json`."""
    return {
        "info": {"description": description},
        "images": images,
        "annotations": annotations,
        "categories": [
            {
                "id": kind.index + 1,
                "name": kind.name,
                "supercategory": kind.hypernyms[0] if kind.hypernyms else "",
            }
            for kind in categories
        ],
    }
