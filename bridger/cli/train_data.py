"""What `bridger train` learns from, and what chooses its checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from bridger.cli.base import say

if TYPE_CHECKING:
    from bridger.data import ReferringDataset
    from bridger.training import Recipe

USUAL, NONE = "val", "none"


def open_training(
    recipe: Recipe, root: Path, asked: str | None
) -> tuple[ReferringDataset, ReferringDataset | None]:
    """Open the training split and the one that chooses the checkpoint; say what they are.

    Args:
        recipe: its data sets, or the only one in the folder, are opened; several are mixed.
        root: the folder.
        asked: the split to validate on, "none" for none; None: val, where there is one.

    Raises:
        ValueError: the split to validate on is a test split.
        FileNotFoundError, ValueError, pickle.UnpicklingError: see `bridger.data.open_split`.
    """
    from bridger.data.catalog import the_only

    if asked is not None and asked.startswith("test"):
        raise ValueError(
            f"checkpoints are never chosen on a test split, whose figures would then be selected: "
            f"got --validation {asked}"
        )
    names = list(recipe.datasets) or [the_only(root)]
    _warn_of_length(recipe, names)
    training = _open(root, "train", names)
    split = asked or (USUAL if _have(root, names, USUAL) else NONE)
    if split == NONE:
        missing = "" if asked else f"there is no split {USUAL} (--validation names another), so "
        say(f"{missing}no checkpoint is chosen: the last adapter is kept")
        return training, None
    validation = _open(root, split, names)
    _warn_of_leaks(training, validation)
    say(
        f"the best checkpoint is chosen by {recipe.metric} on {split} ({validation.name}, "
        f"{len(validation)} first sentences), never on a test split"
    )
    return training, validation


def _open(root: Path, split: str, names: list[str]) -> ReferringDataset:
    from bridger.data import open_mixed, open_split

    if len(names) == 1:
        return open_split(root, split, names[0])
    mixed = open_mixed(root, split, names)
    for reason, count in mixed.left_out.items():
        if count:
            say(f"left out of {split}: {count} refs whose pictures are in {reason}")
    return mixed


def _have(root: Path, names: list[str], split: str) -> bool:
    from bridger.data.catalog import pictures_of

    return all(split in pictures_of(root, name)[1] for name in names)


def _warn_of_leaks(training: ReferringDataset, validation: ReferringDataset) -> None:
    from bridger.data import leaks

    for other, count in leaks(training, [validation]).items():
        warnings.warn(
            f"{count} of {len(training)} refs to train on are of pictures that are in {other}, "
            "too: its figures will be too good",
            UserWarning,
            stacklevel=2,
        )


def _warn_of_length(recipe: Recipe, names: list[str]) -> None:
    from bridger.data import PUBLISHED

    for name in names:
        usual = PUBLISHED[name].word_length if name in PUBLISHED else None
        if recipe.word_length and usual and recipe.word_length < usual:
            warnings.warn(
                f"the recipe cuts sentences to {recipe.word_length} tokens; for {name} the "
                f"released code takes {usual}: --set word_length={usual}",
                UserWarning,
                stacklevel=2,
            )
