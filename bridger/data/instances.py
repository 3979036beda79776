"""Reading COCO's large JSON files without holding them whole."""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

import ijson


class Object(NamedTuple):
    """What is kept of an annotation: its picture, COCO's segmentation, whether it is a crowd."""

    image_id: int
    segmentation: Any
    crowd: bool


class Picture(NamedTuple):
    """What is kept of a picture: its file's name, and (h, w) where that is said."""

    name: str
    size: tuple[int, int] | None


class Instances(NamedTuple):
    """Some of the objects and pictures of an `instances.json`, by their ids."""

    objects: dict[int, Object]
    pictures: dict[int, Picture]


def stream(path: Path, prefix: str) -> Iterator[Any]:
    """Yield the items of one list in a JSON file, each when it has been read.

    Args:
        path: the file, in UTF-8.
        prefix: which list, in ijson's words: "item" for a file that is one, "images.item" for the
            list at the key "images".

    Raises:
        ValueError: the file is not JSON, or ends too early.
    """
    with open(path, "rb") as file:
        try:
            yield from ijson.items(file, prefix, use_float=True)
        except ijson.JSONError as error:
            raise ValueError(f"{path} is not a whole JSON file ({error})") from error


def read_instances(path: Path, object_ids: Set[int], image_ids: Set[int]) -> Instances:
    """Read what is wanted of an `instances.json`; what it lacks is left out.

    Args:
        path: the file, which may be several hundred megabytes.
        object_ids: ids of annotations.
        image_ids: ids of pictures.

    Raises:
        ValueError: the file is broken.
    """
    objects: dict[int, Object] = {}
    pictures: dict[int, Picture] = {}
    try:
        for entry in _wanted(path, "annotations.item", object_ids):
            crowd = bool(entry.get("iscrowd"))
            objects[entry["id"]] = Object(entry["image_id"], entry["segmentation"], crowd)
        for entry in _wanted(path, "images.item", image_ids):
            size = (entry["height"], entry["width"]) if "height" in entry else None
            pictures[entry["id"]] = Picture(entry["file_name"], size)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has an entry that is not like COCO's ({error!r})") from error
    return Instances(objects, pictures)


def _wanted(path: Path, prefix: str, ids: Set[int]) -> Iterator[dict[str, Any]]:
    """Yield the entries with the given ids, and stop reading after the last of them."""
    left = set(ids)
    entries = stream(path, prefix)
    while left and (entry := next(entries, None)) is not None:
        if entry["id"] in left:
            left.discard(entry["id"])
            yield entry
