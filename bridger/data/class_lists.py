"""Lists of class names as data sets have them: text files, COCO's categories, names of folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridger.class_phrases import ClassName, check_class_names, name_key

CLASSES_FILE = "classes.txt"
# ImageNet's lists name a folder first: "n01440764 tench, Tinca tinca".
_WORDNET_ID = re.compile(r"(n\d{8})[\s,]+(.+)")


@dataclass(frozen=True)
class ClassList:
    """Classes in order, and what annotations call them.

    Attributes:
        keys: K different strings, as the data set's own files write them.
        names: K names for people and texts, with synonyms where they are known.
        path: the file that lists them, or the folder that they were found in.
    """

    keys: tuple[str, ...]
    names: tuple[ClassName, ...]
    path: Path

    @classmethod
    def of_keys(cls, keys: Iterable[str], path: Path) -> ClassList:
        """Make a list of keys that are names themselves, with "_" for blanks.

        Raises:
            ValueError: a name is empty or stands twice.
        """
        found = tuple(keys)
        return cls(found, class_names([[_readable(key)] for key in found], path), path)

    def require(self, keys: Iterable[str], path: Path | str) -> None:
        """Make sure that some keys are in the list.

        Args:
            path: where they were found, for errors.

        Raises:
            ValueError: one is not.
        """
        if unknown := sorted(set(keys).difference(self.keys)):
            named = ", ".join(map(repr, unknown[:3]))
            raise ValueError(
                f"{path}: found {named}, not among the {len(self.keys)} classes of {self.path}: "
                f"correct the spelling, or add a line there"
            )

    def only(self, keys: Iterable[str], path: Path) -> ClassList:
        """Return those of some keys, which a file lists, in the order of the whole list."""
        wanted = set(keys)
        kept = [i for i, key in enumerate(self.keys) if key in wanted]
        return ClassList(
            tuple(self.keys[i] for i in kept), tuple(self.names[i] for i in kept), path
        )


def read_class_list(path: Path) -> ClassList:
    """Read a file with a class on every line: its name, then synonyms, separated by commas.

    What the data set itself calls the class may stand before a tab ("n01440764<TAB>tench, Tinca
    tinca"; after an id of WordNet a blank or a comma will do); without one, that is the name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no UTF-8; there is no class; a name is empty, or stands twice.
    """
    lines = read_lines(path)
    pairs = [_key_and_names(line) for line in lines]
    names = class_names([names for _, names in pairs], path)
    keys = tuple(key for key, _ in pairs)
    if repeated := [key for key, count in Counter(keys).items() if count > 1]:
        raise ValueError(f"{path}: {repeated[0]!r} stands before two names: keep one line of it")
    return ClassList(keys, names, path)


def classes_of_split(root: Path, split: str, every: ClassList) -> ClassList:
    """Return the classes that a split speaks of: those in `classes_<split>.txt`, or all.

    Raises:
        ValueError: that file lists something that is no class.
    """
    path = root / f"classes_{split}.txt"
    if not path.is_file():
        return every
    keys = [_key_and_names(line)[0] for line in read_lines(path)]
    every.require(keys, path)
    return every.only(keys, path)


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file, without blank ones at its end.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no UTF-8, or empty.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no list of classes {path}; expected a name on each line")
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
    if not text:
        raise ValueError(f"{path} is empty; expected a class name on each line")
    return [line.strip() for line in text.splitlines()]


def split_names(text: str) -> list[str]:
    """Split "tench, Tinca tinca" into a name and its synonyms, each once."""
    return list(dict.fromkeys(_readable(name) for name in text.split(",")))


def class_names(entries: Sequence[Sequence[str]], path: Path) -> tuple[ClassName, ...]:
    """Check names and synonyms, and bring them into one form.

    A synonym that another class has too (ADE20K calls both earth and land "ground") is left out:
    it would not tell the two apart.

    Args:
        entries: for each class its name, then synonyms.
        path: the file that they are from, for errors.

    Raises:
        ValueError: there is no class, a name is empty, or two classes have the same.
    """
    owners = Counter(name_key(name) for names in entries for name in set(names))
    kept: list[ClassName] = []
    for names in entries:
        name, *synonyms = names
        synonyms = [synonym for synonym in synonyms if owners[name_key(synonym)] == 1]
        kept.append((name, *synonyms) if synonyms else name)
    try:
        check_class_names(kept)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return tuple(kept)


def is_background(name: ClassName) -> bool:
    """Whether a class stands for all pixels that belong to none: "background" and the like."""
    return name_key(name) == "background"


def _key_and_names(line: str) -> tuple[str, list[str]]:
    key, tab, rest = line.partition("\t")
    if tab:
        return key.strip(), split_names(rest)
    if numbered := _WORDNET_ID.fullmatch(line):
        return numbered[1], split_names(numbered[2])
    return line.split(",")[0].strip(), split_names(line)


def _readable(name: str) -> str:
    return " ".join(name.replace("_", " ").split())
