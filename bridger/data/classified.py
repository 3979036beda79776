"""Classification: pictures with the classes that they show, sorted into folders or in a table."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bridger.data.class_lists import CLASSES_FILE, ClassList, classes_of_split, read_class_list
from bridger.data.folder import OWN
from bridger.data.label_layouts import (
    by_split,
    folders_in,
    has_usual,
    is_training,
    pick_split,
    pictures_below,
    require_folder,
)
from bridger.data.labelled import ClassifiedPicture, Complain, LabelledDataset, refuse

EXPECTED = """{root} holds no pictures with classes; expected one of these layouts:
  {root}/train/owl/a.jpg: a folder for each class, with pictures in it
  {root}/train.csv with the columns image and label, or image and labels with ; between them
and, in both, {root}/classes.txt where classes should be in another order or have other names"""
_SEVERAL = ";"
UNKNOWN_CLASSES = "classes that are not in the list of classes"
EMPTY_FOLDERS = "classes whose folder holds no picture"
WRONG_ROWS = "wrong rows of tables"


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


def open_classified(
    root: str | os.PathLike[str], split: str, report: Complain | None = None
) -> ClassifiedPictures:
    """Open one split of a data set for classification; which layout it is in is seen.

    - Folders: `<split>/<class>/x.jpg`, any format, inner folders as well.
    - Tables: `<split>.csv` in UTF-8 with the columns "image" (a file, relative to `root`) and
      "label". A column "labels" instead makes it multi-label: any number of classes, separated by
      semicolons.

    The classes are those of all splits, sorted, with "_" in names for blanks; of a split to train
    on, those of them that it has itself, as others are not learned. A `classes.txt` lists them in
    another order and with other names, for every split, a class on every line: what the folder or
    the table calls it, a tab, its name and synonyms, separated by commas ("n01440764<TAB>tench,
    Tinca tinca"); without a tab, the first name is what they call it. A `classes_<split>.txt`
    lists those that the split speaks of.

    Args:
        root: the folder.
        split: "train", "val" and so on; "valid", "validation" and so on are found as "val".
        report: called with every row, class and folder that is wrong, which is then left out; by
            default the first one is raised.

    Raises:
        FileNotFoundError: there is no such folder, or it is in neither layout.
        ValueError: there is no such split; a class is not in the list, or has no picture's folder;
            names are empty or stand twice; a row of a table is broken.
    """
    root = require_folder(root)
    places = _places(root)
    place = pick_split(places, split, root)
    every = _classes(root, places.values(), report)
    some = classes_of_split(root, split, every)
    if place.is_dir():
        own: dict[str, Path | str] = {name: place for name, _ in folders_in(place)}
        some = _shown(split, own, some, root)
        rows = _in_folders(place, _known(own, some, report), report)
        return ClassifiedPictures(split, place, rows, some, False)
    by_line, multi_label = _read_table(place, report)
    lines = {key: line for line, row in reversed(by_line.items()) for key in row.keys}
    own = {key: f"{place}, line {line}" for key, line in lines.items()}
    some = _shown(split, own, some, root)
    known = set(_known(own, some, report))
    kept = [row for row in by_line.values() if known.issuperset(row.keys)]
    return ClassifiedPictures(split, root, kept, some, multi_label)


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


def _classes(root: Path, places: Iterable[Path], report: Complain | None) -> ClassList:
    """Return the classes of the whole data set."""
    if (path := root / CLASSES_FILE).is_file():
        return read_class_list(path)
    keys: set[str] = set()
    for place in places:
        if place.is_dir():
            keys |= {name for name, _ in folders_in(place)}
        else:
            # Whoever hears of wrong rows does so where the split itself is opened.
            rows = _read_table(place, report and (lambda *_: None))[0]
            keys |= {key for row in rows.values() for key in row.keys}
    return ClassList.of_keys(sorted(keys), root)


def _shown(split: str, own: Collection[str], classes: ClassList, root: Path) -> ClassList:
    """Leave out what a split to train on does not show, unless a file lists its classes."""
    if not own or not is_training(split) or classes.path != root:
        return classes
    return classes.only(own, root)


def _known(
    keys: Mapping[str, Path | str], classes: ClassList, report: Complain | None
) -> list[str]:
    """Return those of some keys that are classes, in order; where each was found is for errors."""
    for key, place in keys.items():
        try:
            classes.require([key], place)
        except ValueError as error:
            refuse(UNKNOWN_CLASSES, error, report)
    known = set(classes.keys)
    return [key for key in keys if key in known]


def _in_folders(place: Path, keys: Iterable[str], report: Complain | None) -> list[Row]:
    """Return the pictures below a split's folder, by class."""
    rows: list[Row] = []
    for key in keys:
        found = pictures_below(place / key)
        if not found:
            wrong = f"there are no pictures in {place / key}: fill the folder, or remove it"
            refuse(EMPTY_FOLDERS, ValueError(wrong), report)
        rows += [Row(f"{key}/{name}", (key,)) for name in found]
    return rows


def _read_table(path: Path, report: Complain | None) -> tuple[dict[int, Row], bool]:
    """Return each picture of a table and its classes, by line, and whether it is multi-label."""
    rows: dict[int, Row] = {}
    lines: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            column = _label_column(path, reader.fieldnames or ())
            for row in reader:
                try:
                    found = _read_row(row, column, lines)
                except ValueError as error:
                    wrong = ValueError(f"{path}, line {reader.line_num}: {error}")
                    refuse(WRONG_ROWS, wrong, report)
                    continue
                rows[reader.line_num] = found
                lines[found.name] = reader.line_num
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a table in UTF-8 ({error})") from error
    if not rows and report is None:
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


def _read_row(row: Mapping[str, str | None], column: str, lines: Mapping[str, int]) -> Row:
    """Check a row of a table, given the lines of the pictures above it."""
    image, text = row["image"], row[column]
    if not image or text is None:
        raise ValueError(f"expected an image and its {column}, found {row}")
    if image in lines:
        raise ValueError(f"{image} was in line {lines[image]} already")
    keys = tuple(key.strip() for key in text.split(_SEVERAL) if key.strip())
    if column == "label" and len(keys) != 1:
        raise ValueError(
            f"expected one class, found {text!r}; where pictures may show several, or none, call "
            f"the column labels"
        )
    return Row(image, keys)
