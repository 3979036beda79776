"""Turning any data set into a folder of JSON Lines, which opens fast and can be edited by hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from bridger._files import staging
from bridger.data.base import ReferringDataset
from bridger.data.catalog import open_splits
from bridger.data.folder import ENDING
from bridger.data.jsonlines import write_line

Report = Callable[[int, int], None]


def convert(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dataset: str | None = None,
    report: Report | None = None,
) -> dict[str, int]:
    """Write every split of a data set as a line for each ref.

    Pictures and masks that are files stay where they are and are named by their paths, relative
    ones where that is possible. Either all of the splits are written or, after an error, none.

    Args:
        root: folder of the data set.
        out: folder to write to, made where it is missing.
        dataset: which data set, where the folder holds several; see `open_splits`.
        report: called with how many refs are done, of how many.

    Returns:
        The number of refs of every split.

    Raises:
        FileExistsError: the folder has splits already.
        FileNotFoundError, ValueError, pickle.UnpicklingError: see `open_splits`.
    """
    out = Path(out)
    if out.is_dir() and (there := sorted(out.glob(f"*{ENDING}"))):
        raise FileExistsError(f"{there[0]} exists already: choose another folder")
    splits = open_splits(root, None, dataset)
    total, done = sum(map(len, splits.values())), 0
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(os.path.realpath(out))
    with staging(folder) as fresh:
        for name, split in splits.items():
            with (fresh / f"{name}{ENDING}").open("wb") as file:
                for line in _lines(split, folder):
                    file.write(line)
                    done += 1
                    if report is not None:
                        report(done, total)
    return {name: len(split) for name, split in splits.items()}


def _lines(split: ReferringDataset, folder: Path) -> Iterator[bytes]:
    for index, picture in enumerate(split.picture_keys()):
        yield write_line(split[index], picture, folder)
