"""The published data sets by name, and opening any data set by the folder that it is in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bridger.config import did_you_mean
from bridger.data.base import ReferringDataset
from bridger.data.refcoco import RefCOCO


@dataclass(frozen=True)
class Published:
    """What is known of a published data set.

    Attributes:
        folder: name of the folder that holds its annotations.
        split_by: who made the splits.
        splits: the published number of refs and of sentences in every split, None where unknown.
        word_length: tokens that the released ETRIS code cuts its sentences to, ends included.
    """

    folder: str
    split_by: str
    splits: Mapping[str, tuple[int | None, int | None]]
    word_length: int


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
}


def open_split(
    root: str | os.PathLike[str], split: str, dataset: str | None = None
) -> ReferringDataset:
    """Open one split of the data set in a folder.

    Args:
        root: the folder.
        split: name of the split.
        dataset: a name in `PUBLISHED`; None: the only one that is there.

    Raises:
        FileNotFoundError: a file or folder is missing; the expected layout is said.
        ValueError: an unknown data set or split, or files that do not fit together.
        pickle.UnpicklingError: a file of refs holds more than plain data.
    """
    name = dataset or "refcoco"
    if name not in PUBLISHED:
        raise ValueError(f"there is no data set {name!r}: {did_you_mean(name, list(PUBLISHED))}")
    known = PUBLISHED[name]
    return RefCOCO(Path(root), split, known.folder, known.split_by)
