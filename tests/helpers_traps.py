"""A copy of scenes in RefCOCO's layout with what real files hold, wrong parts included."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from bridger.data.masks import decode_mask

LONG = "the thing " + " ".join(f"which is near thing {i}" for i in range(11)) + " and so on"
FOREIGN = "le café rouge à gauche 左の赤い車"


def set_traps(folder: Path) -> dict[str, Any]:
    """Put traps into scenes of RefCOCO's layout.

    Returns:
        What was done, by name: "missing" (a picture's file name, in train), "tiny" (the ref whose
        picture is one pixel, in train), "twice" (a ref id that two refs of train have), "foreign"
        and "long" (ids of refs with such sentences, in val), "empty" (a ref without a mask, in
        train).
    """
    refs_file, instances_file = (
        folder / "refcoco" / "refs(unc).p",
        folder / "refcoco/instances.json",
    )
    refs = pickle.loads(refs_file.read_bytes())
    instances = json.loads(instances_file.read_text())
    images = {image["id"]: image for image in instances["images"]}
    annotations = {a["id"]: a for a in instances["annotations"]}
    train = [ref for ref in refs if ref["split"] == "train"]
    val = [ref for ref in refs if ref["split"] == "val"]
    _vary_masks(instances["annotations"], images)
    by_image: dict[int, list[Any]] = {}
    for ref in train:
        by_image.setdefault(ref["image_id"], []).append(ref)
    first, second, third, fourth = list(by_image.values())[:4]

    missing = images[first[0]["image_id"]]["file_name"]
    (folder / "images" / "train2014" / missing).unlink()

    tiny = images[second[0]["image_id"]]
    tiny.update(height=1, width=1)
    Image.new("RGB", (1, 1), "red").save(folder / "images" / "train2014" / tiny["file_name"])
    for ref in second:
        encoded = rle.encode(np.ones((1, 1), np.uint8, order="F"))
        annotation = annotations[ref["ann_id"]]
        annotation["segmentation"] = {"size": [1, 1], "counts": encoded["counts"].decode()}

    annotations[third[0]["ann_id"]]["segmentation"] = []
    fourth[0]["ref_id"] = third[-1]["ref_id"]
    _say(val[0], FOREIGN)
    _say(val[1], LONG)
    refs_file.write_bytes(pickle.dumps(refs, protocol=2))
    instances_file.write_text(json.dumps(instances))
    return {
        "missing": missing,
        "tiny": second[0]["ref_id"],
        "twice": fourth[0]["ref_id"],
        "empty": third[0]["ref_id"],
        "foreign": val[0]["ref_id"],
        "long": val[1]["ref_id"],
    }


def _vary_masks(annotations: list[Any], images: dict[int, Any]) -> None:
    """Every third mask as polygons, every third as uncompressed run lengths."""
    for index, annotation in enumerate(annotations):
        image = images[annotation["image_id"]]
        mask = decode_mask(annotation["segmentation"], image["height"], image["width"])
        if index % 3 == 1:
            annotation["segmentation"] = rows_as_polygons(mask)
        elif index % 3 == 2:
            annotation["segmentation"] = uncompressed(mask)


def rows_as_polygons(mask: Any) -> list[list[float]]:
    """A polygon for every run of pixels in a row: clumsy, and the same mask but for its edge."""
    polygons = []
    for y in np.flatnonzero(mask.any(axis=1)):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask[y], [0]])))
        for start, end in edges.reshape(-1, 2).tolist():
            polygons.append([start, y, end, y, end, y + 1, start, y + 1])
    return [[float(number) for number in polygon] for polygon in polygons]


def uncompressed(mask: Any) -> dict[str, Any]:
    """COCO's run lengths as a list of numbers, as crowds have them."""
    flat = np.asarray(mask, dtype=np.uint8).flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    ends = np.concatenate([[0], edges])
    counts = np.diff(ends).tolist()
    return {"size": list(mask.shape), "counts": counts}


def _say(ref: Any, sentence: str) -> None:
    ref["sentences"][0].update(sent=sentence, raw=sentence, tokens=sentence.split())
