"""Finding pictures with labels: the names that splits go by, and the pictures below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from bridger.data.folder import USUAL

# What folders and files of a split are called, beside its own name.
ALIASES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
PICTURE_ENDINGS = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
)

PlaceT = TypeVar("PlaceT")


def by_split(places: Iterable[tuple[str, PlaceT]]) -> dict[str, PlaceT]:
    """Sort places by the splits that their names stand for, train, val and test first.

    Raises:
        ValueError: two places are of one split, such as "val" and "valid".
    """
    found: dict[str, PlaceT] = {}
    for name, place in places:
        split = ALIASES.get(name.lower(), name)
        if split in found:
            raise ValueError(
                f"both {found[split]} and {place} would be the split {split!r}: rename one"
            )
        found[split] = place
    first = [name for name in USUAL if name in found]
    return {name: found[name] for name in first + sorted(set(found) - set(USUAL))}


def is_training(split: str) -> bool:
    """Whether a split is one to train on: "train", VOC's "trainval", COCO's "train2017"."""
    return split.startswith("train")


def has_usual(splits: Iterable[str]) -> bool:
    """Whether names are of splits: a train, val or test is among them, as in all data sets."""
    return bool(set(splits) & set(USUAL))


def pick_split(splits: Mapping[str, PlaceT], split: str, root: Path) -> PlaceT:
    """Return the place of a split.

    Raises:
        ValueError: there is no such split; those that there are are named.
    """
    if split not in splits:
        raise ValueError(f"{root} has no split {split!r}, it has {', '.join(splits) or 'none'}")
    return splits[split]


def folders_in(root: Path) -> list[tuple[str, Path]]:
    """Return the names and paths of the folders in a folder; none where it is missing."""
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:
        names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    return [(name, root / name) for name in sorted(names)]


def require_folder(root: str | os.PathLike[str]) -> Path:
    """Return a folder's path.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not (path := Path(root)).is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    return path


def pictures_below(folder: Path) -> list[str]:
    """Return the paths of all pictures below a folder, as seen from it, sorted."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inner = os.path.relpath(place, folder)
        for name in names:
            if os.path.splitext(name)[1].lower() in PICTURE_ENDINGS and name[0] != ".":
                found.append(name if inner == "." else f"{inner}/{name}".replace(os.sep, "/"))
    return sorted(found)
