"""Referring data of one's own: a folder of JSON Lines files, one a split."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bridger.data.base import ReferringDataset, Sample, coco_key
from bridger.data.jsonlines import read_line

OWN = "folder"  # the name of a data set of one's own
ENDING = ".jsonl"
USUAL = ("train", "val", "test")  # splits in the order in which they are shown


class ReferringFolder(ReferringDataset):
    """The refs of one split: the lines of `<split>.jsonl`; `bridger.data.jsonlines` says how.

    Opening reads the file once, line by line, and checks every line; kept are their places, the
    number of sentences and the pictures, and a line is read again when it is asked for. A ref
    without an id has the number of its line. Where every line names the same "source", as after a
    conversion, that is the name of the data set.

    Args:
        root: the folder.
        split: name of the split.
        report: called with the error of every line that is wrong, which is then left out; by
            default the first one is raised.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is no such split, or a line is wrong; the message names it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        report: Callable[[ValueError], None] | None = None,
    ) -> None:
        self.root, self.split = Path(root), split
        splits = folder_splits(self.root)
        self.path = self.root / f"{split}{ENDING}"
        if split not in splits:
            array_file = self.path.with_suffix(".json")
            hint = f"; is {array_file} a list? Write it one object a line" * array_file.is_file()
            raise ValueError(
                f"{self.root} has no split {split!r} (no file {self.path}), it has "
                f"{', '.join(splits) or 'none'}{hint}"
            )
        places = array("q")  # of every ref its line, first byte, sentences and picture
        pictures, keys = _Pictures(self.root), dict[str, int]()
        sources: set[str | None] = set()
        for number, offset, text in _lines(self.path):
            try:
                line = read_line(text)
            except ValueError as error:
                wrong = ValueError(f"{self.path}, line {number}: {error}")
                if report is None:
                    raise wrong from error
                report(wrong)
                continue
            sources.add(line.source)
            key = keys.setdefault(line.picture or pictures[line.image], len(keys))
            places.extend((number, offset, len(line.sentences), key))
        if not places and report is None:
            raise ValueError(f"{self.path} is empty: expected a line for every ref")
        only = sources.pop() if len(sources) == 1 else None
        self.name = OWN if only is None else only
        columns = np.array(places).reshape(-1, 4).T
        self._numbers, self._offsets, counts, self._pictures = columns
        self._sentences = np.concatenate([[0], np.cumsum(counts)])  # of all refs before each
        self._keys = list(keys)

    def __len__(self) -> int:
        """Return the number of refs."""
        return len(self._offsets)

    def __getitem__(self, index: int) -> Sample:
        """Return a ref."""
        index = range(len(self))[index]
        number = int(self._numbers[index])
        # Opened anew each time: a file that is kept open could not go to workers.
        with self.path.open("rb") as file:
            file.seek(int(self._offsets[index]))
            text = file.readline()
        try:
            line = read_line(text)
        except ValueError as error:
            raise ValueError(
                f"{self.path}, line {number}: {error}; was it changed while it was in use?"
            ) from error
        return line.sample(self.root, f"{OWN}/{self.split}", number, int(self._sentences[index]))

    def sentence_counts(self) -> list[int]:
        """Return how many sentences each ref has."""
        counts: list[int] = np.diff(self._sentences).tolist()
        return counts

    def picture_keys(self) -> list[str]:
        """Return which picture each ref is of: the line's "picture", else as for all."""
        return [self._keys[number] for number in self._pictures]


def folder_splits(root: str | os.PathLike[str]) -> list[str]:
    """Return the splits of a folder of one's own; none where it is something else.

    It is one where a train, val or test split is there: other files may end alike.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    found = {
        path.stem for path in root.glob(f"*{ENDING}") if path.is_file() and path.name[0] != "."
    }
    usual = [name for name in USUAL if name in found]
    return usual and usual + sorted(found - set(USUAL))


def folder_source(root: str | os.PathLike[str]) -> str | None:
    """Return what the first line of a folder of one's own names as its source."""
    for split in folder_splits(root)[:1]:
        with (Path(root) / f"{split}{ENDING}").open("rb") as file:
            try:
                return read_line(next((text for text in file if not text.isspace()), b"")).source
            except ValueError:
                break  # opening it says what is wrong
    return None


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield (number, first byte, text) of every line that is not blank.

    Raises:
        ValueError: it begins as no file of JSON Lines does.
    """
    offset = 0
    with path.open("rb") as file:
        _check_start(path, file.read(64))
        file.seek(0)
        for number, text in enumerate(file, 1):
            if not text.isspace():
                yield number, offset, text
            offset += len(text)


def _check_start(path: Path, start: bytes) -> None:
    """Refuse what would be read whole as one line, or is no UTF-8 from its first byte on."""
    if start.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(
            f"{path}, line 1: it begins with a byte order mark; save the file as UTF-8 without one"
        )
    if start.lstrip().startswith(b"["):
        raise ValueError(
            f"{path}, line 1: expected a JSON object on every line, found a JSON array; write its "
            f"objects one a line, without the brackets and the commas between them"
        )


class _Pictures(dict[str, str]):
    """Picture keys by path; resolves links, but those of a picture's folder only once."""

    def __init__(self, root: Path) -> None:
        self.root, self.folders = root, dict[str, str]()

    def __missing__(self, image: str) -> str:
        folder, name = os.path.split(self.root / image)
        if (known := coco_key(name)) is not None:
            self[image] = known
            return known
        if folder not in self.folders:
            self.folders[folder] = os.path.realpath(folder)
        path = os.path.join(self.folders[folder], name)
        self[image] = os.path.realpath(path) if os.path.islink(path) or name == ".." else path
        return self[image]
