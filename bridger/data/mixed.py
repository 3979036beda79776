"""Training on several data sets at once, without a picture that any of them tests on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set

from bridger.data.base import ReferringDataset, Sample
from bridger.data.catalog import data_sets, open_split, pictures_of


class Mixed(ReferringDataset):
    """Several splits one after the other, without the refs of some pictures.

    Args:
        parts: the splits, all of the same name.
        held_out: keys of the pictures that are left out, by the split that they lie in, such as
            "refcocog/umd test".

    Attributes:
        left_out: how many refs were left out because of each of these splits; a ref whose picture
            lies in several counts for the first.

    Raises:
        ValueError: nothing is left.
    """

    def __init__(self, parts: Sequence[ReferringDataset], held_out: Mapping[str, Set[str]]) -> None:
        self.name, self.split = " + ".join(part.name for part in parts), parts[0].split
        self.parts = tuple(parts)
        self.left_out = dict.fromkeys(held_out, 0)
        self._kept: list[tuple[int, int]] = []  # number of the part, index in it
        self._keys: list[str] = []
        self._counts: list[int] = []
        for number, part in enumerate(parts):
            rows = zip(part.picture_keys(), part.sentence_counts(), strict=True)
            for index, (key, count) in enumerate(rows):
                reason = next((name for name, keys in held_out.items() if key in keys), None)
                if reason is not None:
                    self.left_out[reason] += 1
                    continue
                self._kept.append((number, index))
                self._keys.append(key)
                self._counts.append(count)
        if not self._kept:
            raise ValueError(f"every picture of {self.name} {self.split} is held out")

    def __len__(self) -> int:
        """Return the number of refs."""
        return len(self._kept)

    def __getitem__(self, index: int) -> Sample:
        """Return a ref."""
        number, inside = self._kept[index]
        return self.parts[number][inside]

    def sentence_counts(self) -> list[int]:
        """Return how many sentences each ref has."""
        return list(self._counts)

    def picture_keys(self) -> list[str]:
        """Return which picture each ref is of."""
        return list(self._keys)


def open_mixed(root: str | os.PathLike[str], split: str, datasets: Sequence[str]) -> Mixed:
    """Open a split of several data sets as one.

    RefCOCO, RefCOCO+, G-Ref and gRefCOCO share pictures. Left out are those that lie in a val or
    test split (any but train) of any data set in the folder, named or not, and so are those that
    G-Ref by Google has in its own train and val. A mixed val is without the tests' pictures.

    Args:
        root: the folder, as for `open_split`.
        split: "train", or a split to choose checkpoints by. Tests are not mixed.
        datasets: two or more names, as for `open_split`.

    Raises:
        ValueError: fewer than two data sets, one that is named twice, or a test split.
        FileNotFoundError, ValueError, pickle.UnpicklingError: as `open_split`.
    """
    if len(set(datasets)) < 2 or len(set(datasets)) < len(datasets):
        raise ValueError(f"mixing needs two or more different data sets, got {list(datasets)}")
    if split.startswith("test"):
        raise ValueError(f"{split!r} is not mixed: evaluate the data sets one by one")
    parts = [open_split(root, split, name) for name in datasets]
    others = [name for name in data_sets(root) if name not in datasets]
    held_out = {
        f"{source} {other}": keys
        for name in (*datasets, *others)
        for source, splits in [pictures_of(root, name)]
        for other, keys in splits.items()
        if other not in ("train", split)
    }
    return Mixed(parts, held_out)


def leaks(train: ReferringDataset, others: Iterable[ReferringDataset]) -> dict[str, int]:
    """Count the refs of a split whose picture lies in other splits too.

    Args:
        train: whose refs are counted.
        others: the splits whose pictures are looked for.

    Returns:
        The counts by the other split, such as {"refcocog/umd test": 12}; those that share no
        picture are left out.
    """
    keys = train.picture_keys()
    counts = {}
    for other in others:
        pictures = set(other.picture_keys())
        counts[f"{other.name} {other.split}"] = sum(key in pictures for key in keys)
    return {name: count for name, count in counts.items() if count}
