"""Turning any data set into a folder of JSON Lines, which opens fast and can be edited by hand."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from bridger._files import staging
from bridger.data.base import ReferringDataset
from bridger.data.catalog import open_splits, the_only
from bridger.data.check_pictures import PictureCheck
from bridger.data.folder import ENDING, OWN, ReferringFolder, folder_splits
from bridger.data.jsonlines import write_line

Report = Callable[[int, int], None]


def convert(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dataset: str | None = None,
    report: Report | None = None,
    *,
    drop_broken: bool = False,
) -> dict[str, tuple[int, int]]:
    """Write every split of a data set as a line for each ref.

    Pictures and masks that are files stay where they are and are named by their paths, relative
    ones where that is possible. Either all of the splits are written or, after an error, none.

    Args:
        root: folder of the data set.
        out: folder to write to, made where it is missing.
        dataset: which data set, where the folder holds several; see `open_splits`.
        report: called with how many refs are done, of how many.
        drop_broken: leave out the refs in which `check_data` finds something wrong, and those
            whose id another ref of the split had before; every picture and mask is read for it.

    Returns:
        For every split the number of refs that were written, and of those that were left out.

    Raises:
        FileExistsError: the folder has splits already.
        FileNotFoundError, ValueError, pickle.UnpicklingError: see `open_splits`.
    """
    out = Path(out)
    if out.is_dir() and (there := sorted(out.glob(f"*{ENDING}"))):
        raise FileExistsError(f"{there[0]} exists already: choose another folder")
    splits, wrong = _open(root, dataset, drop_broken)
    total, done = sum(map(len, splits.values())), 0
    written = dict.fromkeys(splits, 0)
    check = PictureCheck(decode=True) if drop_broken else None
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(os.path.realpath(out))
    with staging(folder) as fresh:
        for name, split in splits.items():
            with (fresh / f"{name}{ENDING}").open("wb") as file:
                for line in _lines(split, folder, check):
                    done += 1
                    if line is not None:
                        file.write(line)
                        written[name] += 1
                    if report is not None:
                        report(done, total)
    return {
        name: (count, len(splits[name]) - count + wrong[name]) for name, count in written.items()
    }


def _open(
    root: str | os.PathLike[str], dataset: str | None, drop_broken: bool
) -> tuple[dict[str, ReferringDataset], Counter[str]]:
    """Open all splits; of a folder of one's own, count wrong lines where those may be dropped."""
    wrong: Counter[str] = Counter()
    if not drop_broken or (dataset or the_only(root)) != OWN:
        return open_splits(root, None, dataset), wrong
    return {
        split: ReferringFolder(root, split, report=lambda _, at=split: wrong.update([at]))  # type: ignore[misc]
        for split in folder_splits(root)
    }, wrong


def _lines(
    split: ReferringDataset, folder: Path, check: PictureCheck | None
) -> Iterator[bytes | None]:
    """Yield the line of every ref, None for those that are left out."""
    seen: set[int] = set()
    for index, picture in enumerate(split.picture_keys()):
        if check is not None and not check.is_sound(split, index):
            yield None
            continue
        sample = split[index]
        twice = check is not None and sample.ref_id in seen
        seen.add(sample.ref_id)
        yield None if twice else write_line(sample, picture, folder)
