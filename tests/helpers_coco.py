"""Small data sets in the published layouts, for the tests of their readers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 6, 8


def runs(mask: Any) -> list[int]:
    """COCO's uncompressed run lengths, column by column, starting with zeros."""
    counts, value, length = [], 0, 0
    for pixel in np.asarray(mask).T.reshape(-1):
        if int(pixel) != value:
            counts.append(length)
            value, length = int(pixel), 0
        length += 1
    return [*counts, length]


def box_mask(height: int, width: int, top: int, left: int, bottom: int, right: int) -> Any:
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def mask_of(ann_id: int) -> Any:
    """The mask of the object of this id: another one for each of the first 40."""
    top, left = divmod(ann_id % 40, WIDTH)
    return box_mask(HEIGHT, WIDTH, top, left, top + 1 + ann_id % 2, left + 1)


def file_name(image_id: int) -> str:
    return f"COCO_train2014_{image_id:012d}.jpg"


def ref(ref_id: int, split: str, image_id: int, ann_id: Any, *sentences: str, **more: Any) -> Any:
    """An entry as in the published files; without sentences it gets one that names its id."""
    said = sentences or (f"thing {ref_id}",)
    return {
        "ref_id": ref_id,
        "split": split,
        "image_id": image_id,
        "ann_id": ann_id,
        "category_id": 1,
        "file_name": file_name(image_id).replace(".jpg", f"_{ann_id}.jpg"),
        "sentences": [
            {"sent_id": 10 * ref_id + i, "sent": s, "raw": s, "tokens": s.split()}
            for i, s in enumerate(said)
        ],
        "sent_ids": [10 * ref_id + i for i in range(len(said))],
        **more,
    }


def write_refs(path: Path, refs: list[Any]) -> None:
    """The refs and, beside them, an `instances.json` with all their objects and others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".p":
        path.write_bytes(pickle.dumps(refs, protocol=2))
    else:
        path.write_text(json.dumps(refs))
    pairs = {(99_999, 99_999)}
    for entry in refs:
        ids = entry["ann_id"] if isinstance(entry["ann_id"], list) else [entry["ann_id"]]
        pairs |= {(i, entry["image_id"]) for i in ids if i >= 0}
    instances = path.with_name("instances.json")
    there = json.loads(instances.read_text()) if instances.exists() else {}
    annotations = {a["id"]: a for a in there.get("annotations", [])}
    images = {i["id"]: i for i in there.get("images", [])}
    for ann_id, image_id in sorted(pairs):
        segmentation = {"size": [HEIGHT, WIDTH], "counts": runs(mask_of(ann_id))}
        annotations[ann_id] = {
            "id": ann_id,
            "image_id": image_id,
            "segmentation": segmentation,
            "iscrowd": 0,
        }
    for image_id in {entry["image_id"] for entry in refs} | {99_999}:
        name = file_name(image_id)
        images[image_id] = {"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH}
    whole = {
        "info": {},
        "images": list(images.values()),
        "annotations": list(annotations.values()),
    }
    instances.write_text(json.dumps(whole))


def write_prepared(root: Path, name: str, refs: list[Any]) -> None:
    """What ETRIS' `tools/data_process.py` leaves of these refs."""
    for folder in ("anns", "masks"):
        (root / folder / name).mkdir(parents=True, exist_ok=True)
    for split in {entry["split"] for entry in refs}:
        rows = [
            {
                "bbox": [0, 0, 1, 1],
                "cat": 0,
                "segment_id": entry["ref_id"],
                "img_name": file_name(entry["image_id"]),
                "sentences": [
                    {"idx": i, "sent_id": s["sent_id"], "sent": s["sent"].strip()}
                    for i, s in enumerate(entry["sentences"])
                ],
                "sentences_num": len(entry["sentences"]),
            }
            for entry in refs
            if entry["split"] == split
        ]
        (root / "anns" / name / f"{split}.json").write_text(json.dumps(rows))
    for entry in refs:
        mask = Image.fromarray(mask_of(entry["ann_id"]) * 255)
        mask.save(root / "masks" / name / f"{entry['ref_id']}.png")


def write_pictures(folder: Path, image_ids: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image_id in image_ids:
        pixels = np.full((HEIGHT, WIDTH, 3), image_id % 256, np.uint8)
        Image.fromarray(pixels).save(folder / file_name(image_id))
