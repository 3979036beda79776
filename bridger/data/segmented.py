"""Semantic segmentation: pictures with a class for every pixel."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bridger.data.label_layouts import require_folder
from bridger.data.labelled import Complain, LabelledDataset, SegmentedPicture
from bridger.data.masks import picture_size
from bridger.data.segmented_layouts import Numbers, SegmentedFiles, find_layout

_NUMBERED = frozenset(("1", "L", "P", "I", "I;16"))  # Pillow's modes of one whole number


class OtherSizeError(ValueError):
    """A label map is of another size than its picture."""


class UnknownNumbersError(ValueError):
    """A label map holds numbers of no class."""


@dataclass(frozen=True)
class LabelMap:
    """A file with a number in every pixel.

    Attributes:
        path: a PNG of 8 or 16 bits, with a palette or without one.
        image_path: the picture that it belongs to.
        numbers: what the numbers mean.
    """

    path: Path
    image_path: Path
    numbers: Numbers

    def __call__(self) -> npt.NDArray[np.int64]:
        """Read (h, w) labels; see `SegmentedPicture.labels`."""
        values = self._read()
        if values.shape != (size := picture_size(self.image_path)):
            raise OtherSizeError(
                f"the label map {self.path} is {values.shape} but its picture {self.image_path} "
                f"is {size} (height, width): save the map at the picture's size, unsmoothed"
            )
        meaning = self._labels_of(values)
        table = np.zeros(max(meaning) + 1, dtype=np.int64)
        table[list(meaning)] = list(meaning.values())
        return table.take(values)

    def _labels_of(self, values: npt.NDArray[Any]) -> dict[int, int]:
        """Return what every number that occurs means."""
        occurring: list[int] = np.flatnonzero(np.bincount(values.ravel())).tolist()
        known = self.numbers.labels
        if unknown := [number for number in occurring if number not in known]:
            raise UnknownNumbersError(
                f"the label map {self.path} holds {unknown[:5]}, but "
                f"{self.numbers.why_unknown(unknown[0])}, or write 255 for what is not to count"
            )
        return {number: known[number] for number in occurring}

    def _read(self) -> npt.NDArray[Any]:
        """Read (h, w) numbers."""
        from PIL import Image

        if not self.path.is_file():
            raise FileNotFoundError(f"there is no label map {self.path}")
        try:
            with Image.open(self.path) as image:
                mode, values = image.mode, np.asarray(image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"the label map {self.path} cannot be read ({error})") from error
        if mode not in _NUMBERED:
            raise ValueError(
                f"the label map {self.path} is a picture of mode {mode}; expected one number a "
                f"pixel, grey or with a palette: turn its colours into the numbers of classes"
            )
        return values.astype(np.uint8) if mode == "1" else values


class SegmentedFolder(LabelledDataset[SegmentedPicture]):
    """The pictures of one split, see `open_segmented`.

    Args:
        split: name of the split.
        files: its files.
    """

    def __init__(self, split: str, files: SegmentedFiles) -> None:
        self.name, self.split = files.name, split
        self.classes = files.numbers.classes
        self._files = files

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._files.pairs)

    def __getitem__(self, index: int) -> SegmentedPicture:
        """Return a picture; neither it nor its label map is read."""
        image_path, path = self._files.pairs[index]
        read = LabelMap(path, image_path, self._files.numbers)
        return SegmentedPicture(image_path, self._keys[index], self.name, read)

    @cached_property
    def _keys(self) -> list[str]:
        """Paths as seen from the folder that holds all of the pictures."""
        folder = os.path.commonpath([image_path.parent for image_path, _ in self._files.pairs])
        return [path.relative_to(folder).as_posix() for path, _ in self._files.pairs]


def open_segmented(
    root: str | os.PathLike[str], split: str, report: Complain | None = None
) -> SegmentedFolder:
    """Open one split of a data set with label maps; which layout it is in is seen.

    - Folders: `images/<split>/x.jpg` (any format, inner folders as well), `labels/<split>/x.png`
      with the number of a class in every pixel, and `classes.txt` with a class on every line:
      its name, then synonyms, separated by commas. Numbers count lines from 0; a class called
      "background" is `bridger.labels.BACKGROUND` and no class; 255 (in 16 bits 65535, too) is
      `IGNORE`. A `classes_<split>.txt` lists those that the split speaks of; others must not
      occur in its label maps.
    - ADE20K: `ADEChallengeData2016`, whose training and validation are "train" and "val"; 0
      ("other") is `IGNORE`.
    - Pascal VOC: `VOCdevkit/VOC2012`; 0 is `BACKGROUND`, 255 (void) `IGNORE`.

    Opening looks whether every picture has a label map and the other way round; what those hold is
    checked when they are read.

    Args:
        root: the folder.
        split: "train", "val" and so on; "training", "valid", "validation" and "testing" are found
            as "train", "val" and "test".
        report: called with every picture and label map of which the other is missing, which are
            then left out; by default the first one is raised.

    Raises:
        FileNotFoundError: there is no such folder, it is in none of the layouts, or a picture or
            label map is missing.
        ValueError: there is no such split; the list of classes is not fit to be one.
    """
    layout = find_layout(require_folder(root))
    if split not in (splits := layout.splits()):
        raise ValueError(f"{root} has no split {split!r}, it has {', '.join(splits)}")
    return SegmentedFolder(split, layout.files(split, report))


def segmented_splits(root: str | os.PathLike[str]) -> list[str]:
    """Return the splits of a data set with label maps, train, val and test first.

    Raises:
        FileNotFoundError: there is no such folder, or it is in no layout of `open_segmented`.
        ValueError: two of its folders would be the same split.
    """
    return find_layout(require_folder(root)).splits()
