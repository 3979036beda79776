"""Where the files of the published data sets lie, in the layouts that people have them in.

Under one root, with DATASET "refcoco", "refcoco+", "refcocog" or "grefcoco":

- `DATASET/refs(unc).p` and `DATASET/instances.json`, as the archives unpack;
- the same two files in the root itself, which then holds one data set;
- `anns/DATASET/<split>.json` and `masks/DATASET/<ref id>.png`, which is what ETRIS' preparation
  guide leaves; G-Ref is `refcocog_u` or `refcocog_g` there.

Pictures lie in one of the folders of `PICTURES`; the second is where refer's README wants them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PICTURES = ("images/train2014", "images/mscoco/images/train2014", "train2014", "images", "")
_PICTURE_ENDINGS = (".jpg", ".jpeg")  # COCO has no others
_PREPARED_NAMES = {("refcocog", "umd"): "refcocog_u", ("refcocog", "google"): "refcocog_g"}


@dataclass(frozen=True)
class Original:
    """The files as their authors publish them."""

    refs: Path
    instances: Path
    pictures: Path


@dataclass(frozen=True)
class Prepared:
    """What ETRIS' preparation leaves: a list of refs for each split, and a picture of each mask."""

    refs: Path
    masks: Path
    pictures: Path

    @property
    def splits(self) -> list[str]:
        """Names of the splits; G-Ref by Google is left with a test that is an empty list."""
        files = (path for path in self.refs.glob("*.json") if path.stat().st_size > len("[]"))
        return sorted(path.stem for path in files)


def locate(root: Path, dataset: str, split_by: str) -> Original | Prepared:
    """Find the files of a data set.

    Args:
        root: the folder that everything lies in.
        dataset: "refcoco", "refcoco+", "refcocog" or "grefcoco".
        split_by: who made the splits: "unc", "umd" or "google".

    Raises:
        FileNotFoundError: something is missing; every place that was looked at is said.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    candidates = _refs_files(root, dataset, split_by)
    refs = next((path for path in candidates if path.is_file()), None)
    if refs is not None:
        instances = refs.with_name("instances.json")
        _demand("the annotations of the objects", [instances], instances.is_file())
        return Original(refs, instances, _pictures(root))
    name = _PREPARED_NAMES.get((dataset, split_by), dataset)
    prepared = root / "anns" / name
    _demand(
        f"the refs of {dataset} (split by {split_by})",
        [*candidates, prepared / "<split>.json"],
        any(prepared.glob("*.json")),
    )
    masks = root / "masks" / name
    _demand("the masks", [masks], masks.is_dir())
    return Prepared(prepared, masks, _pictures(root))


def is_there(root: Path, dataset: str, split_by: str) -> bool:
    """Whether a folder holds the refs of a data set.

    Refs in the root itself could be RefCOCO's or RefCOCO+'s, which differ in nothing but their
    contents: they count as RefCOCO+ where the folder has that name.
    """
    prepared = root / "anns" / _PREPARED_NAMES.get((dataset, split_by), dataset)
    places = {path.parent for path in _refs_files(root, dataset, split_by) if path.is_file()}
    called_plus = root.resolve().name == "refcoco+"
    if dataset in ("refcoco", "refcoco+") and (dataset == "refcoco+") != called_plus:
        places.discard(root)
    return bool(places) or any(prepared.glob("*.json"))


def _refs_files(root: Path, dataset: str, split_by: str) -> list[Path]:
    """Return where the refs may be, the most likely place first."""
    if dataset == "grefcoco":
        names = [f"grefs({split_by}).json", f"grefs({split_by}).p"]
    else:
        names = [f"refs({split_by}).p"]
    return [folder / name for folder in (root / dataset, root) for name in names]


def _pictures(root: Path) -> Path:
    """Return the first folder with a picture in it, or else the first that is there."""
    folders = [root / place for place in PICTURES]
    there = [folder for folder in folders if folder.is_dir()]
    found = next((folder for folder in there if _has_picture(folder)), there[0])
    _demand("the pictures, COCO's train2014,", folders, found != root or _has_picture(root))
    return found


def _has_picture(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(_PICTURE_ENDINGS) for entry in entries)


def _demand(what: str, places: list[Path], there: bool) -> None:
    if not there:
        looked = "\n".join(f"  {place}" for place in places)
        raise FileNotFoundError(f"{what} are missing; looked for:\n{looked}")
