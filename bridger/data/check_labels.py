"""The tasks of pictures with labels, as looking their data through knows them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from bridger.data.boxed import boxed_splits, open_boxed
from bridger.data.catalog import data_sets
from bridger.data.check_pictures import OTHER_SIZE
from bridger.data.classified import classified_splits, open_classified
from bridger.data.labelled import (
    BoxedPicture,
    ClassifiedPicture,
    Complain,
    LabelledDataset,
    SegmentedPicture,
)
from bridger.data.segmented import (
    OtherSizeError,
    UnknownNumbersError,
    open_segmented,
    segmented_splits,
)

Size = tuple[int, int]

UNREADABLE_MAPS = "label maps that cannot be read"
OTHER_MAPS = "label maps of another size than their picture"
UNKNOWN_NUMBERS = "label maps with numbers of no class"

EXPECTED = """{root} holds no data set; expected data for one of the tasks:
  referring expressions: {root}/train.jsonl and so on, or refcoco/refs(unc).p and its like
  semantic_segmentation: {root}/images/train, labels/train and classes.txt, or ADE20K, or VOC
  detection: {root}/annotations/train.json as COCO has them, and images/train
  classification: {root}/train/owl/a.jpg and so on, or train.csv
`bridger data check DIR --task NAME` tells all layouts of a task"""


class _Opener(Protocol):
    def __call__(
        self, root: str | os.PathLike[str], split: str, *, report: Complain
    ) -> LabelledDataset[Any]:
        """Open a split, and report what is wrong with it."""


class Kind(NamedTuple):
    """The data of a task.

    Attributes:
        splits: finds the splits of a folder.
        open: opens one.
        labels: returns the labels of a picture, given the size of its file where that could be
            read, and tells what is wrong with them; None where they cannot be read.
    """

    splits: Callable[[str | os.PathLike[str]], list[str]]
    open: _Opener
    labels: Callable[[Any, Size | None, Complain], Sequence[int] | None]


def _labels_of_map(
    picture: SegmentedPicture, size: Size | None, wrong: Complain
) -> Sequence[int] | None:
    kinds: dict[type[Exception], str] = {
        OtherSizeError: OTHER_MAPS,
        UnknownNumbersError: UNKNOWN_NUMBERS,
    }
    if size is None:  # by which the map is judged
        return None
    try:
        labels = picture.labels
    except (OSError, ValueError) as error:
        wrong(kinds.get(type(error), UNREADABLE_MAPS), str(error))
        return None
    shown: list[int] = np.flatnonzero(np.bincount(labels[labels >= 0])).tolist()
    return shown


def _labels_of_boxes(picture: BoxedPicture, size: Size | None, wrong: Complain) -> Sequence[int]:
    try:
        picture.require_size(size or picture.size)
    except ValueError as error:
        wrong(OTHER_SIZE, str(error))
    labels: list[int] = picture.labels.tolist()
    return labels


def _labels_of_classes(
    picture: ClassifiedPicture, size: Size | None, wrong: Complain
) -> Sequence[int]:
    return picture.labels


KINDS: Mapping[str, Kind] = {
    "semantic_segmentation": Kind(segmented_splits, open_segmented, _labels_of_map),
    "detection": Kind(boxed_splits, open_boxed, _labels_of_boxes),
    "classification": Kind(classified_splits, open_classified, _labels_of_classes),
}
"""The tasks of pictures with labels."""


def labelled_task(root: str | os.PathLike[str]) -> str | None:
    """Return the task whose data are in a folder; None: referring expressions are.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no data of any task.
        ValueError: it holds data of several tasks, and no referring expressions.
    """
    if data_sets(root):
        return None
    found = [task for task, kind in KINDS.items() if _holds(kind, root)]
    if not found:
        raise FileNotFoundError(EXPECTED.format(root=root))
    if len(found) > 1:
        raise ValueError(f"{root} holds data for several tasks: say which of {', '.join(found)}")
    return found[0]


def _holds(kind: Kind, root: str | os.PathLike[str]) -> bool:
    try:
        return bool(kind.splits(root))
    except FileNotFoundError:
        return False
    except ValueError:  # two of its files would be one split
        return True
