"""What looking a data set through finds, for every kind of data."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bridger.data.base import ReferringDataset
from bridger.data.labelled import LabelledDataset

Report = Callable[[int, int], None]
"""Called with how many pictures are done, of how many."""

LEAKS = "pictures of train in other splits"
MISSING_SPLITS = "missing splits"
MOST_EXAMPLES = 3

ItemT = TypeVar("ItemT")
FoundT = TypeVar("FoundT")


@dataclass(frozen=True)
class Remark:
    """Something that was found.

    Attributes:
        what: which kind of thing.
        example: where, and what helps to mend it.
        note: whether it is only worth knowing.
    """

    what: str
    example: str
    note: bool = False


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Attributes:
        what: a name for it in the plural.
        count: how many there are.
        examples: the first few, each with its split and what helps to find it.
    """

    what: str
    count: int
    examples: tuple[str, ...]


@dataclass
class Findings:
    """Counts what is found, and keeps the first examples.

    Attributes:
        notes: the kinds that are only worth knowing.
    """

    notes: set[str]
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, example: str, count: int = 1) -> None:
        """Count something of a kind."""
        self.counts[what] += count
        kept = self.examples.setdefault(what, [])
        if len(kept) < MOST_EXAMPLES:
            kept.append(example)

    def remark(self, remark: Remark) -> None:
        """Count a remark."""
        self.add(remark.what, remark.example)
        if remark.note:
            self.notes.add(remark.what)

    def add_missing(self, split: str, example: str) -> None:
        """Note that a split is missing, and what val would be for."""
        hint = ", by which training chooses what it keeps (or --validation none)"
        self.add(MISSING_SPLITS, f"{example}{hint if split == 'val' else ''}")
        self.notes.add(MISSING_SPLITS)

    def of(self, *, notes: bool) -> tuple[Finding, ...]:
        """Return the notes or the problems, in the order in which they were found first."""
        return tuple(
            Finding(what, count, tuple(self.examples[what]))
            for what, count in self.counts.items()
            if (what in self.notes) == notes
        )


@dataclass(frozen=True)
class SplitCounts(ABC):
    """How large a split is.

    Attributes:
        dataset: name of the data set.
        split: name of the split.
        pictures: number of different pictures.
    """

    dataset: str
    split: str
    pictures: int

    @abstractmethod
    def columns(self) -> dict[str, str]:
        """Return what a table shows of it, by the columns' titles; those of text first."""


@dataclass(frozen=True)
class DataReport:
    """What a check found.

    Attributes:
        root: the folder.
        splits: every split of every data set in it.
        problems: what has to be mended.
        notes: what is worth knowing.
        opened: the splits themselves, in the order of `splits`.
    """

    root: Path
    splits: tuple[SplitCounts, ...]
    problems: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    opened: tuple[ReferringDataset | LabelledDataset[Any], ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values that JSON can hold."""
        return {
            "root": str(self.root),
            "splits": list(map(asdict, self.splits)),
            "problems": list(map(asdict, self.problems)),
            "notes": list(map(asdict, self.notes)),
        }


def in_threads(work: Callable[[ItemT], FoundT], items: Iterable[ItemT]) -> Iterator[FoundT]:
    """Map in threads, as Pillow decodes without Python's lock; Ctrl-C need not wait for all."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
