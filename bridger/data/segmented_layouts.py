"""Pictures with label maps on disk: folders of one's own, ADE20K and Pascal VOC as they unpack."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bridger.class_phrases import ClassName, names_of
from bridger.data.class_lists import (
    CLASSES_FILE,
    ClassList,
    class_names,
    classes_of_split,
    is_background,
    read_class_list,
    read_lines,
    split_names,
)
from bridger.data.folder import OWN
from bridger.data.label_layouts import by_split, folders_in, has_usual, pictures_below
from bridger.data.labelled import Complain, refuse
from bridger.labels import BACKGROUND, IGNORE

VOC_CLASSES = (
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, horse, "
    "motorbike, person, potted plant, sheep, sofa, train, tv monitor"
).split(", ")
_VOC_FOLDER = re.compile(r"VOC\d{4}\w*")
VOID, WIDE_VOID = 255, 65535
UNPAIRED = "pictures without a label map, or label maps without a picture"

EXPECTED = """{root} holds no pictures with label maps; expected one of these layouts:
  {root}/images/train/a.jpg and so on, {root}/labels/train/a.png with the number of a class in \
every pixel (255: ignored), and {root}/classes.txt with a class name on each line, 0 first
  {root}/ADEChallengeData2016, or what is in it: images/training, annotations/training and \
objectInfo150.txt
  {root}/VOCdevkit/VOC2012, or what is in it: JPEGImages, SegmentationClass and \
ImageSets/Segmentation/train.txt"""


@dataclass(frozen=True)
class Numbers:
    """What the numbers in label maps mean.

    Attributes:
        classes: the K classes of a split.
        labels: for every number 0 to K - 1, `BACKGROUND` or `IGNORE`.
        path: what says so, for errors.
        left_out: the names of classes that the split does not speak of, by number.
        used_path: what leaves them out.
    """

    classes: tuple[ClassName, ...]
    labels: Mapping[int, int]
    path: Path
    left_out: Mapping[int, str] = field(default_factory=dict)
    used_path: Path | None = None

    @classmethod
    def of_lines(cls, every: ClassList, used: ClassList) -> Numbers:
        """Take the place of a class in the list for its number.

        Args:
            every: the classes by number.
            used: those that the split speaks of.
        """
        # In lists so long that they are numbers of classes, 255 and 65535 mean nothing else.
        labels = {number: IGNORE for number in (VOID, WIDE_VOID) if number >= len(every.keys)}
        classes: list[ClassName] = []
        left_out: dict[int, str] = {}
        for number, (key, name) in enumerate(zip(every.keys, every.names, strict=True)):
            if is_background(name):
                labels[number] = BACKGROUND
            elif key in used.keys:
                labels[number] = len(classes)
                classes.append(name)
            else:
                left_out[number] = names_of(name)[0]
        if not classes:
            raise ValueError(f"{used.path} lists no class beside the background")
        return cls(tuple(classes), labels, every.path, left_out, used.path)

    def why_unknown(self, number: int) -> str:
        """Say why a number has no label, and what to do."""
        if number in self.left_out:
            return (
                f"{number} is the class {self.left_out[number]!r}, which {self.used_path} leaves "
                f"out: add it there"
            )
        count = len(self.classes) + len(self.left_out)
        return f"{self.path} has no class of {number} among its {count}: add it there"


@dataclass(frozen=True)
class SegmentedFiles:
    """The files of a split.

    Attributes:
        name: of the data set.
        pairs: a picture and its label map each.
        numbers: what those hold.
    """

    name: str
    pairs: tuple[tuple[Path, Path], ...]
    numbers: Numbers


class Layout(ABC):
    """One of the ways in which such data lie in a folder.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def splits(self) -> list[str]:
        """Return the names of the splits; none where the folder is something else."""

    @abstractmethod
    def files(self, split: str, report: Complain | None = None) -> SegmentedFiles:
        """Find the files of one of the splits.

        Args:
            split: name of the split.
            report: see `bridger.data.open_segmented`.

        Raises:
            FileNotFoundError, ValueError: some are missing, or are no good.
        """


class OwnFolder(Layout):
    """`images/<split>/x.jpg`, `labels/<split>/x.png` and `classes.txt`."""

    def splits(self) -> list[str]:
        """Return the folders that there are labels for."""
        found = list(self._places())
        return found if has_usual(found) else []

    def files(self, split: str, report: Complain | None = None) -> SegmentedFiles:
        """Pair pictures with label maps; `classes_<split>.txt` may narrow the classes."""
        every = read_class_list(self.root / CLASSES_FILE)
        numbers = Numbers.of_lines(every, classes_of_split(self.root, split, every))
        labels = self._places()[split]
        pairs = _pair(self.root / "images" / labels.name, labels, report)
        return SegmentedFiles(OWN, pairs, numbers)

    def _places(self) -> dict[str, Path]:
        return by_split(folders_in(self.root / "labels"))


class ADE20K(Layout):
    """The scene parsing challenge's `ADEChallengeData2016`: 150 classes; 0, other, is ignored."""

    def splits(self) -> list[str]:
        """Return train and val."""
        return list(self._places()) if self._classes.is_file() else []

    def files(self, split: str, report: Complain | None = None) -> SegmentedFiles:
        """Pair pictures with label maps."""
        annotations = self._places()[split]
        pictures = self._folder / "images" / annotations.name
        names = class_names(list(map(split_names, self._read_names())), self._classes)
        labels = {0: IGNORE, **{index + 1: index for index in range(len(names))}}
        numbers = Numbers(names, labels, self._classes)
        return SegmentedFiles("ade20k", _pair(pictures, annotations, report), numbers)

    @property
    def _folder(self) -> Path:
        inner = self.root / "ADEChallengeData2016"
        return inner if inner.is_dir() else self.root

    @property
    def _classes(self) -> Path:
        return self._folder / "objectInfo150.txt"

    def _places(self) -> dict[str, Path]:
        return by_split(folders_in(self._folder / "annotations"))

    def _read_names(self) -> list[str]:
        """Read the last column of a table whose first counts from 1, below a row of titles."""
        rows = [line.split("\t") for line in read_lines(self._classes)]
        rows = [row for row in rows if row[0].strip().isdigit()]
        if not rows or [int(row[0]) for row in rows] != list(range(1, len(rows) + 1)):
            raise ValueError(
                f"{self._classes} is not ADE20K's table; expected rows 1, 2, 3, ... with columns "
                f"between tabs, of which the last is the name"
            )
        return [row[-1] for row in rows]


class VOC(Layout):
    """Pascal VOC's `VOCdevkit/VOC2012` or another year: 20 classes and background; 255 is void."""

    def splits(self) -> list[str]:
        """Return those with a list of pictures: train, val, trainval."""
        return list(self._lists())

    def files(self, split: str, report: Complain | None = None) -> SegmentedFiles:
        """Pair the pictures of a split's list with their label maps."""
        path = self._lists()[split]
        folder = path.parents[2]
        pictures, maps = folder / "JPEGImages", folder / "SegmentationClass"
        have = {place: set(os.listdir(place)) for place in (pictures, maps) if place.is_dir()}
        pairs: list[tuple[Path, Path]] = []
        for name in filter(None, read_lines(path)):
            pair = (pictures / f"{name}.jpg", maps / f"{name}.png")
            missing = [file for file in pair if file.name not in have.get(file.parent, ())]
            if missing:
                wrong = f"{path} names {name!r}, but there is no {missing[0]}"
                refuse(UNPAIRED, FileNotFoundError(wrong), report)
            else:
                pairs.append(pair)
        labels = {0: BACKGROUND, VOID: IGNORE}
        labels |= {number: index for index, number in enumerate(range(1, len(VOC_CLASSES) + 1))}
        numbers = Numbers(tuple(VOC_CLASSES), labels, folder)
        return SegmentedFiles(folder.name.lower(), tuple(pairs), numbers)

    def _lists(self) -> dict[str, Path]:
        found = [lists for folder in self._folders() if (lists := _segmentation_lists(folder))]
        if len(found) > 1:
            years = ", ".join(str(lists[0][1].parents[2]) for lists in found)
            raise ValueError(f"{self.root} holds several years of VOC: give one of {years}")
        return by_split(found[0]) if found else {}

    def _folders(self) -> list[Path]:
        """Return the folders that VOC may lie in: this one, or one of a year below."""
        below = folders_in(self.root) + folders_in(self.root / "VOCdevkit")
        return [self.root, *(path for name, path in below if _VOC_FOLDER.fullmatch(name))]


def _segmentation_lists(folder: Path) -> list[tuple[str, Path]]:
    lists = sorted((folder / "ImageSets" / "Segmentation").glob("[!.]*.txt"))
    there = (folder / "SegmentationClass").is_dir()
    # Of the test split the label maps were never published.
    return [(path.stem, path) for path in lists if there and path.stem != "test"]


def _pair(pictures: Path, labels: Path, report: Complain | None) -> tuple[tuple[Path, Path], ...]:
    """Find the label map of every picture, which has the picture's name and ends in .png."""
    of_stem: dict[str, str] = {}
    for name in pictures_below(pictures):
        stem = os.path.splitext(name)[0]
        if stem in of_stem:
            raise ValueError(f"{pictures}: {name} and {of_stem[stem]} would share a label map")
        of_stem[stem] = name
    maps = {os.path.splitext(name)[0]: name for name in pictures_below(labels)}
    for stem, name in of_stem.items():
        if maps.get(stem) != f"{stem}.png":
            lossy = f"; {maps[stem]} is no PNG, which numbers need" if stem in maps else ""
            wrong = f"{pictures / name} has no label map {labels / stem}.png{lossy}"
            refuse(UNPAIRED, FileNotFoundError(wrong), report)
    for stem in sorted(set(maps) - set(of_stem)):
        wrong = f"{labels / maps[stem]} is the label map of a picture that is not in {pictures}"
        refuse(UNPAIRED, FileNotFoundError(wrong), report)
    if not of_stem:
        raise FileNotFoundError(f"there are no pictures in {pictures}")
    paired = ((name, f"{stem}.png") for stem, name in of_stem.items())
    return tuple(
        (pictures / name, labels / file)
        for name, file in paired
        if report is None or (labels / file).is_file()
    )


def find_layout(root: Path) -> Layout:
    """Return the layout that a folder is in.

    Raises:
        FileNotFoundError: it is in none; what was expected is said.
        ValueError: it holds several years of VOC, or two folders of one split.
    """
    for layout in (ADE20K(root), VOC(root), OwnFolder(root)):
        if layout.splits():
            return layout
    raise FileNotFoundError(EXPECTED.format(root=root))
