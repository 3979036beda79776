"""Where COCO's JSON files and their pictures lie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bridger.data.label_layouts import by_split, folders_in, has_usual

_YEAR = re.compile(r"(\D+?)[_-]?\d{4}")
_INSTANCES = "instances_"
_EXPORTED = "_annotations.coco.json"

EXPECTED = """{root} holds no boxes; expected one of these layouts:
  {root}/annotations/instances_train2017.json and {root}/train2017/, as COCO unpacks
  {root}/annotations/train.json, and pictures in {root}/images/train/, {root}/images/ or \
{root}/train/
  {root}/train/_annotations.coco.json, and pictures beside it
each JSON file as COCO has them, with "images", "annotations" and "categories\""""


@dataclass(frozen=True)
class BoxedFiles:
    """The files of a split.

    Attributes:
        annotations: the JSON file.
        places: folders that its pictures may be in.
    """

    annotations: Path
    places: tuple[Path, ...]


def boxed_files(root: Path) -> dict[str, BoxedFiles]:
    """Find the files of every split, train, val and test first.

    A year is part of a split's name only where there are several of one ("train2014").

    Raises:
        FileNotFoundError: there are none; what was expected is said.
        ValueError: two files are of one split.
    """
    found = _in_annotations(root) or [
        (name, BoxedFiles(folder / _EXPORTED, (folder,)))
        for name, folder in folders_in(root)
        if (folder / _EXPORTED).is_file()
    ]
    splits = by_split(found)
    if not has_usual(_without_year(split) for split in splits):
        raise FileNotFoundError(EXPECTED.format(root=root))
    return splits


def _in_annotations(root: Path) -> list[tuple[str, BoxedFiles]]:
    paths = sorted((root / "annotations").glob("[!.]*.json"))
    instances = [path for path in paths if path.name.startswith(_INSTANCES)]
    # COCO's folder holds captions and keypoints too, under other names.
    names = {path: path.stem.removeprefix(_INSTANCES) for path in instances or paths}
    bare = [_without_year(name) for name in names.values()]
    found = []
    for path, name in names.items():
        images = root / "images"
        places = (root / name, images / name, images, root)
        short = _without_year(name)
        found.append((short if bare.count(short) == 1 else name, BoxedFiles(path, places)))
    return found


def _without_year(name: str) -> str:
    dated = _YEAR.fullmatch(name)
    return dated[1] if dated else name
