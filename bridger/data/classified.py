"""Classification: pictures with the classes that they show, sorted into folders or in a table."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from bridger.data.class_lists import CLASSES_FILE, ClassList, classes_of_split, read_class_list
from bridger.data.folder import OWN
from bridger.data.label_layouts import (
    by_split,
    folders_in,
    has_usual,
    pick_split,
    pictures_below,
    require_folder,
)
from bridger.data.labelled import ClassifiedPicture, LabelledDataset

EXPECTED = """{root} holds no pictures with classes; expected one of these layouts:
  {root}/train/owl/a.jpg: a folder for each class, with pictures in it
  {root}/train.csv with the columns image and label, or image and labels with ; between them
and, in both, {root}/classes.txt where classes should be in another order or have other names"""
_SEVERAL = ";"


class Row(NamedTuple):
    """A picture's file, and the keys of its classes."""

    name: str
    keys: tuple[str, ...]


class ClassifiedPictures(LabelledDataset[ClassifiedPicture]):
    """The pictures of one split, see `open_classified`.

    Attributes:
        multi_label: whether a picture may show several classes, or none.

    Args:
        split: name of the split.
        folder: what the pictures' files are relative to.
        rows: the pictures.
        classes: those that the split speaks of, all of the rows' among them.
        multi_label: see above.
    """

    def __init__(
        self,
        split: str,
        folder: Path,
        rows: Sequence[Row],
        classes: ClassList,
        multi_label: bool,
    ) -> None:
        self.name, self.split, self.classes = OWN, split, classes.names
        self.multi_label = multi_label
        numbers = {key: number for number, key in enumerate(classes.keys)}
        self._folder, self._names = folder, [row.name for row in rows]
        self._labels = [tuple(sorted({numbers[key] for key in row.keys})) for row in rows]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._names)

    def __getitem__(self, index: int) -> ClassifiedPicture:
        """Return a picture; its file is not read."""
        name = self._names[index]
        return ClassifiedPicture(self._folder / name, name, self.name, self._labels[index])

    def labels_of(self, index: int) -> tuple[int, ...]:
        """Return the classes that a picture shows."""
        return self._labels[index]


def open_classified(root: str | os.PathLike[str], split: str) -> ClassifiedPictures:
    """Open one split of a data set for classification; which layout it is in is seen.

    - Folders: `<split>/<class>/x.jpg`, any format, inner folders as well.
    - Tables: `<split>.csv` in UTF-8 with the columns "image" (a file, relative to `root`) and
      "label". A column "labels" instead makes it multi-label: any number of classes, separated by
      semicolons.

    The classes are those of all splits, sorted, with "_" in names for blanks. A `classes.txt` gives
    another order and other names, a class on every line: what the folder or the table calls it, a
    tab, its name and synonyms, separated by commas ("n01440764<TAB>tench, Tinca tinca"); without
    a tab, the first name is what they call it. A `classes_<split>.txt` lists those that the split
    speaks of.

    Args:
        root: the folder.
        split: "train", "val" and so on; "valid", "validation" and so on are found as "val".

    Raises:
        FileNotFoundError: there is no such folder, or it is in neither layout.
        ValueError: there is no such split; a class is not in the list, or has no picture's folder;
            names are empty or stand twice; a row of a table is broken.
    """
    root = require_folder(root)
    places = _places(root)
    place = pick_split(places, split, root)
    every = _classes(root, places.values())
    some = classes_of_split(root, split, every)
    if place.is_dir():
        folders = [name for name, _ in folders_in(place)]
        some.require(folders, place)
        return ClassifiedPictures(split, place, _in_folders(place, folders), some, False)
    rows, multi_label = _read_table(place)
    keys = {key: line for line, row in reversed(rows.items()) for key in row.keys}
    for key, line in keys.items():
        some.require([key], f"{place}, line {line}")
    return ClassifiedPictures(split, root, list(rows.values()), some, multi_label)


def classified_splits(root: str | os.PathLike[str]) -> list[str]:
    """Return the splits of a data set for classification, train, val and test first.

    Raises:
        FileNotFoundError: there is no such folder, or it is in no layout of `open_classified`.
        ValueError: two folders or tables would be the same split.
    """
    return list(_places(require_folder(root)))


def _places(root: Path) -> dict[str, Path]:
    """Return the folder or the table of each split."""
    tables = [(path.stem, path) for path in sorted(root.glob("[!.]*.csv"))]
    folders = [(name, path) for name, path in folders_in(root) if folders_in(path)]
    for found in (by_split(tables), by_split(folders)):
        if has_usual(found):
            return found
    raise FileNotFoundError(EXPECTED.format(root=root))


def _classes(root: Path, places: Iterable[Path]) -> ClassList:
    """Return the classes of the whole data set."""
    if (path := root / CLASSES_FILE).is_file():
        return read_class_list(path)
    keys: set[str] = set()
    for place in places:
        if place.is_dir():
            keys |= {name for name, _ in folders_in(place)}
        else:
            keys |= {key for row in _read_table(place)[0].values() for key in row.keys}
    return ClassList.of_keys(sorted(keys), root)


def _in_folders(place: Path, keys: Sequence[str]) -> list[Row]:
    """Return the pictures below a split's folder, by class."""
    rows: list[Row] = []
    for key in keys:
        found = pictures_below(place / key)
        if not found:
            raise ValueError(
                f"there are no pictures in {place / key}: fill the folder, or remove it"
            )
        rows += [Row(f"{key}/{name}", (key,)) for name in found]
    return rows


def _read_table(path: Path) -> tuple[dict[int, Row], bool]:
    """Return each picture of a table and its classes, by line, and whether it is multi-label."""
    rows: dict[int, Row] = {}
    seen: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            column = _label_column(path, reader.fieldnames or ())
            for row in reader:
                image, text = row["image"], row[column]
                where = f"{path}, line {reader.line_num}"
                if not image or text is None:
                    raise ValueError(f"{where}: expected an image and its {column}, found {row}")
                if image in seen:
                    raise ValueError(f"{where}: {image} was in line {seen[image]} already")
                seen[image] = reader.line_num
                rows[reader.line_num] = Row(image, _labels_in(text, column, where))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a table in UTF-8 ({error})") from error
    if not rows:
        raise ValueError(f"{path} has no line with a picture")
    return rows, column == "labels"


def _label_column(path: Path, columns: Sequence[str]) -> str:
    found = [name for name in ("label", "labels") if name in columns]
    if "image" not in columns or len(found) != 1:
        raise ValueError(
            f"{path}: expected columns image and label, or image and labels, between commas in the "
            f"first line; found {', '.join(columns) or 'nothing'}"
        )
    return found[0]


def _labels_in(text: str, column: str, where: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(_SEVERAL) if key.strip())
    if column == "label" and len(keys) != 1:
        raise ValueError(
            f"{where}: expected one class, found {text!r}; where pictures may show several, or "
            f"none, call the column labels"
        )
    return keys
