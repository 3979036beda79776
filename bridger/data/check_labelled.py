"""Looking pictures with labels through before anything is trained on them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bridger.class_phrases import name_key, names_of
from bridger.data.check_labels import KINDS, Kind
from bridger.data.check_pictures import PictureReader
from bridger.data.check_report import (
    LEAKS,
    DataReport,
    Findings,
    Remark,
    Report,
    SplitCounts,
    in_threads,
)
from bridger.data.label_layouts import is_training
from bridger.data.labelled import LabelledDataset

UNREADABLE_SPLITS = "splits that cannot be opened"
EMPTY_SPLITS = "splits without a picture"
UNSHOWN = "classes that no picture of a split shows"
UNSEEN = "classes that train lacks, so that they are unseen"
UNLABELLED = "pictures without any label"
NOTES = {UNSHOWN, UNSEEN, UNLABELLED}


@dataclass(frozen=True)
class LabelledCounts(SplitCounts):
    """How large a split of pictures with labels is.

    Attributes:
        classes: number of classes.
        labels: number of labels: of boxes, or of classes that pictures show, over all pictures.
        per_class: number of labels of each class.
    """

    classes: int
    labels: int
    per_class: Mapping[str, int]

    def columns(self) -> dict[str, str]:
        """Return what a table shows of it."""
        counts = self.per_class.values()
        return {
            "data set": self.dataset,
            "split": self.split,
            "pictures": str(self.pictures),
            "classes": str(self.classes),
            "labels": str(self.labels),
            "of a class": f"{min(counts)} to {max(counts)}",
        }


def check_labelled(
    root: str | os.PathLike[str],
    task: str,
    *,
    decode: bool = True,
    report: Report | None = None,
) -> DataReport:
    """Open every split, picture and label of a folder, and say what is there and what is wrong.

    Problems are: splits that cannot be opened, for example because class names are empty or stand
    twice; pictures that are missing, broken or of another size than annotated; label maps that
    are missing, broken, of another size, or with unknown numbers; boxes without area or outside
    of their picture; classes that are not in the list; wrong rows of tables; pictures of train in
    another split. Notes are: classes that no picture shows, classes of other splits that train
    lacks, pictures without any label, and others.

    Args:
        root: the folder.
        task: one of `KINDS`, the tasks of such data.
        decode: read pictures whole, which alone finds truncated ones, and copies of train's
            pictures under other names.
        report: called with how many pictures are done, of how many.

    Raises:
        FileNotFoundError: there is no such folder, or no data of the task in it.
        ValueError: two files or folders would be the same split.
    """
    kind, findings = KINDS[task], Findings(set(NOTES))
    splits = kind.splits(root)
    for split in ("train", "val"):
        if split not in splits:
            findings.add_missing(split, split)
    opened = [data for split in splits if (data := _open(kind, root, split, findings)) is not None]
    looked = _look(kind, opened, PictureReader(decode), findings, report)
    train = next((each for each in looked if each.data.split == "train"), None)
    for each in looked:
        _find_empty(each, findings)
        if train is not None and not is_training(each.data.split):
            _find_unseen(each, train, findings)
            _find_leaks(each, train, findings)
    return DataReport(
        Path(root),
        tuple(each.counts() for each in looked),
        findings.of(notes=False),
        findings.of(notes=True),
        tuple(opened),
    )


@dataclass
class _Looked:
    """A split and what was found in it.

    Attributes:
        data: the split.
        labels: number of labels of each class.
        pictures: the files that could be read, by what tells them apart.
    """

    data: LabelledDataset[Any]
    labels: Counter[int] = field(default_factory=Counter)
    pictures: dict[str, Path] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The classes' main names."""
        return [names_of(entry)[0] for entry in self.data.classes]

    def counts(self) -> LabelledCounts:
        """Return how large the split is."""
        names = self.names
        return LabelledCounts(
            self.data.name,
            self.data.split,
            len(self.data),
            len(names),
            self.labels.total(),
            {name: self.labels[k] for k, name in enumerate(names)},
        )


def _open(
    kind: Kind, root: str | os.PathLike[str], split: str, findings: Findings
) -> LabelledDataset[Any] | None:
    """Open a split as far as it can be."""

    def wrong(what: str, example: str) -> None:
        findings.add(what, f"{split}: {example}")

    try:
        return kind.open(root, split, report=wrong)
    # Whatever a file of another format may cause is what the caller wants to hear of.
    except Exception as error:
        wrong(UNREADABLE_SPLITS, str(error))
        return None


def _look(
    kind: Kind,
    opened: Sequence[LabelledDataset[Any]],
    reader: PictureReader,
    findings: Findings,
    report: Report | None,
) -> list[_Looked]:
    """Look every picture of every split through."""
    total, done = sum(map(len, opened)), 0
    looked: list[_Looked] = []
    for data in opened:
        each = _Looked(data)
        look = partial(_look_at, kind, data, reader)
        for index, (remarks, labels, identity) in enumerate(in_threads(look, range(len(data)))):
            for remark in remarks:
                findings.remark(remark)
            path = data[index].image_path
            if identity is not None:
                each.pictures[identity] = path
            if labels is not None:
                each.labels.update(labels)
                if not labels:
                    findings.add(UNLABELLED, f"{data.split}: {path}")
            done += 1
            if report is not None:
                report(done, total)
        looked.append(each)
    return looked


def _look_at(
    kind: Kind, data: LabelledDataset[Any], reader: PictureReader, index: int
) -> tuple[list[Remark], Sequence[int] | None, str | None]:
    """Look one picture through.

    Returns:
        What was found, its labels, and what tells it from other pictures, where it can be read.
    """
    picture = data[index]
    path: Path = picture.image_path
    remarks: list[Remark] = []
    if path not in reader.sizes:
        remarks += reader.read(data.split, path)
    size = reader.sizes[path]
    labels = kind.labels(
        picture, size, lambda what, text: remarks.append(Remark(what, f"{data.split}: {text}"))
    )
    return remarks, labels, None if size is None else _identity(path, reader.decode)


def _identity(path: Path, by_content: bool) -> str:
    """Return what is the same for the same picture: its bytes, or its place alone."""
    if not by_content:
        return str(path.resolve())
    return hashlib.blake2b(path.read_bytes()).hexdigest()


def _find_empty(looked: _Looked, findings: Findings) -> None:
    """Find splits without pictures, and classes without labels."""
    if not len(looked.data):
        findings.add(EMPTY_SPLITS, looked.data.split)
        return
    for k, name in enumerate(looked.names):
        if not looked.labels[k]:
            findings.add(UNSHOWN, f"{looked.data.split}: {name}")


def _find_unseen(looked: _Looked, train: _Looked, findings: Findings) -> None:
    known = set(map(name_key, train.names))
    for name in looked.names:
        if name_key(name) not in known:
            findings.add(UNSEEN, f"{looked.data.split}: {name}")


def _find_leaks(looked: _Looked, train: _Looked, findings: Findings) -> None:
    for identity, path in looked.pictures.items():
        if identity in train.pictures:
            same = train.pictures[identity]
            copied = f" is the same as {same}" if same != path else ""
            findings.add(LEAKS, f"{looked.data.split}: {path}{copied}")
