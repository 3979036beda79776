"""The published data sets by name, and opening any data set by the folder that it is in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridger.config import did_you_mean
from bridger.data.base import ReferringDataset
from bridger.data.folder import OWN, ReferringFolder, folder_source, folder_splits
from bridger.data.layouts import is_there
from bridger.data.refcoco import LoadedRefs, pictures_of_splits, read_splits

LAYOUTS = """{root} holds no data set; expected one of these layouts:
  {root}/refcoco/refs(unc).p and instances.json (refcoco+ and refcocog likewise), \
and the pictures in {root}/images/train2014 or {root}/images/mscoco/images/train2014
  {root}/grefcoco/grefs(unc).json and instances.json, and the pictures as above
  {root}/refs(unc).p and instances.json, and the pictures there, in images or in train2014
  {root}/anns/refcoco/train.json, masks/refcoco and images/train2014, as ETRIS prepares them
  {root}/train.jsonl and others: data of your own, a line for every object, such as \
{{"image": "pictures/a.jpg", "sentence": "the dog on the left", "mask": "masks/a.png"}}"""


@dataclass(frozen=True)
class Published:
    """What is known of a published data set.

    Attributes:
        folder: name of the folder that holds its annotations.
        split_by: who made the splits.
        splits: the published number of refs and of sentences in every split, None where unknown.
        word_length: tokens that the released ETRIS code cuts its sentences to, ends included; None
            where it does not know the data set.
    """

    folder: str
    split_by: str
    splits: Mapping[str, tuple[int | None, int | None]]
    word_length: int | None


# Refs: rows of the released ETRIS code's lists. Sentences of RefCOCO: FlagEval's documentation.
# RefCOCO+: val and tests sum up to the 21,373 of Ref-L4's dataset card (JierunChen/Ref-L4), and
# with train to the 141,564 that are quoted for the whole. G-Ref by UMD: 85,408 in train and val and
# 9,602 in test (varun-nagaraja/referring-expressions, issue 2), 14,498 in val and test (Ref-L4).
# G-Ref by Google: the same 95,010 in all as by UMD (luogen1996/MCN, issue 7), of which train's
# 85,474 are often quoted. gRefCOCO: the released file holds 259,859 of the paper's 278,232
# sentences (henghuiding/gRefCOCO, issue 6); how many in each split is not said.
PUBLISHED: dict[str, Published] = {
    "refcoco": Published(
        "refcoco",
        "unc",
        {
            "train": (42404, 120624),
            "val": (3811, 10834),
            "testA": (1975, 5657),
            "testB": (1810, 5095),
        },
        17,
    ),
    "refcoco+": Published(
        "refcoco+",
        "unc",
        {
            "train": (42278, 120191),
            "val": (3805, 10758),
            "testA": (1975, 5726),
            "testB": (1798, 4889),
        },
        17,
    ),
    "refcocog": Published(
        "refcocog",
        "umd",
        {"train": (42226, 80512), "val": (2573, 4896), "test": (5023, 9602)},
        22,
    ),
    "refcocog/google": Published(
        "refcocog", "google", {"train": (44822, 85474), "val": (5000, 9536)}, 22
    ),
    "grefcoco": Published(
        "grefcoco", "unc", dict.fromkeys(("train", "val", "testA", "testB"), (None, None)), None
    ),
}


def data_sets(root: str | os.PathLike[str]) -> list[str]:
    """Return the names of the data sets in a folder, the published ones first.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    names = [n for n, d in PUBLISHED.items() if is_there(Path(root), d.folder, d.split_by)]
    if not folder_splits(root):
        return names
    converted = _converted(root)
    return [*names, OWN if converted is None or converted in names else converted]


def _converted(root: str | os.PathLike[str]) -> str | None:
    """Return the name of the published data set that a folder's JSON Lines were converted from."""
    source = folder_source(root)
    names = (n for n, d in PUBLISHED.items() if source == f"{d.folder}/{d.split_by}")
    return next(names, None)


def _in_lines(root: str | os.PathLike[str], name: str) -> bool:
    """Whether a data set is to be read from JSON Lines."""
    if name == OWN:
        return True
    known = published(name)
    return not is_there(Path(root), known.folder, known.split_by) and _converted(root) == name


def the_only(root: str | os.PathLike[str]) -> str:
    """Return the name of the only data set in a folder.

    Raises:
        FileNotFoundError: there is none; the layouts are said.
        ValueError: there are several; they are named.
    """
    names = data_sets(root)
    if not names:
        raise FileNotFoundError(LAYOUTS.format(root=root))
    if len(names) > 1:
        raise ValueError(f"{root} holds several data sets: say which of {', '.join(names)}")
    return names[0]


def open_split(
    root: str | os.PathLike[str], split: str, dataset: str | None = None
) -> ReferringDataset:
    """Open one split of the data set in a folder; errors as of `open_splits`.

    Args:
        root: the folder.
        split: name of the split.
        dataset: its name; None: the only data set that is there.
    """
    return open_splits(root, [split], dataset)[split]


def open_splits(
    root: str | os.PathLike[str],
    splits: Sequence[str] | None = None,
    dataset: str | None = None,
) -> dict[str, ReferringDataset]:
    """Open splits of the data set in a folder; large files are read once for all of them.

    Args:
        root: the folder, in one of the layouts of `bridger.data.layouts` and
            `bridger.data.folder`.
        splits: names of the splits; None: all that there are.
        dataset: a name in `PUBLISHED`, which JSON Lines keep that were converted from it, or
            "folder"; None: the only one that is there.

    Raises:
        FileNotFoundError: a file or folder is missing; the places looked at are said.
        ValueError: an unknown data set or split, several data sets of which none is named, or
            files that do not fit together.
        pickle.UnpicklingError: a file of refs holds more than plain data.
    """
    name = dataset or the_only(root)
    if _in_lines(root, name):
        wanted = folder_splits(root) if splits is None else splits
        return {split: ReferringFolder(root, split) for split in wanted}
    known = published(name)
    entries = read_splits(root, splits, known.folder, known.split_by)
    source = f"{known.folder}/{known.split_by}"
    return {split: LoadedRefs(source, split, entries[split]) for split in entries}


def pictures_of(root: str | os.PathLike[str], dataset: str) -> tuple[str, dict[str, set[str]]]:
    """Return a data set's source, such as "refcoco/unc", and the picture keys of all its splits.

    Arguments and errors as of `open_splits`; masks and pictures are not looked at.
    """
    if _in_lines(root, dataset):
        splits = open_splits(root, dataset=dataset)
        keys = {split: set(data.picture_keys()) for split, data in splits.items()}
        return next((data.name for data in splits.values()), OWN), keys
    known = published(dataset)
    pictures = pictures_of_splits(root, known.folder, known.split_by)
    return f"{known.folder}/{known.split_by}", pictures


def published(name: str) -> Published:
    """Return what is known of a published data set.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in PUBLISHED:
        near = did_you_mean(name, [*PUBLISHED, OWN])
        raise ValueError(f"there is no data set {name!r}: {near}")
    return PUBLISHED[name]
