"""The data of a study: splits of one data set of referring expressions, or of several mixed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridger.training import Recipe

TRAINING = "train"


def open_data(recipe: Recipe, root: Path, names: Sequence[str]) -> dict[str, Any]:
    """Open the training split and others.

    Args:
        recipe: says which data sets of the folder; several are mixed.
        root: the folder.
        names: of the other splits.

    Raises:
        FileNotFoundError, ValueError: see `Task.open` and `bridger.data.open_mixed`.
    """
    from bridger.data import open_mixed
    from bridger.tasks import find_data, get_task

    task = get_task(recipe.task)
    splits = list(dict.fromkeys([TRAINING, *names]))
    sets = find_data(task, root, recipe.datasets)
    if len(sets) == 1:
        return dict(zip(splits, task.open_several(root, splits, sets[0]), strict=True))
    named = [name for name in sets if name]
    return {split: open_mixed(root, split, named) for split in splits}


def splits_to_judge(recipe: Recipe, root: Path, validation: str) -> list[str]:
    """Return the splits that a study judges: the validation split, and those to test on.

    Args:
        recipe: as for `open_data`.
        root: the folder.
        validation: name of that split.

    Raises:
        ValueError: the recipe's head gives no masks of expressions, or there is nothing to train
            or to validate on.
    """
    from bridger.tasks import find_data, get_task
    from bridger.tasks.referring import ReferringTask

    task = get_task(recipe.task)
    if not (isinstance(task, ReferringTask) and "oIoU" in task.metrics):
        raise ValueError(
            f"studies compare masks of referring expressions, and {recipe.task} gives none"
        )
    of_each = [task.splits(root, name) for name in find_data(task, root, recipe.datasets)]
    there = [name for name in of_each[0] if all(name in other for other in of_each)]
    missing = [name for name in (TRAINING, validation) if name not in there]
    if missing:
        raise ValueError(
            f"a study trains on {TRAINING} and chooses checkpoints and rates on {validation}; "
            f"{root} has {', '.join(there) or 'no split that all have'}: name the splits so "
            "(`bridger data convert` writes files that can be edited)"
        )
    return [validation, *(name for name in there if name.startswith("test"))]
