"""What `bridger train` learns from, and what chooses its checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger.cli.base import say

if TYPE_CHECKING:
    from bridger.tasks import Task
    from bridger.training import Recipe

TRAINING, USUAL, NONE = "train", "val", "none"


def open_training(
    recipe: Recipe, root: Path, asked: str | None, split: str | None = None
) -> tuple[Any, Any]:
    """Open the training split and the one that chooses the checkpoint; say what they are.

    Args:
        recipe: its task's data in the folder are opened: its data sets, of which several are
            mixed, or the only one that is there.
        root: the folder.
        asked: the split to validate on, "none" for none; None: val, where there is one.
        split: the split to train on; None: train, or the only one of another year or kind.

    Returns:
        The two splits, None in place of the second where nothing is validated on.

    Raises:
        ValueError: the split to validate on is a test split, or it cannot be told which split is
            to be trained on.
        FileNotFoundError, ValueError, pickle.UnpicklingError: see `Task.open`.
    """
    from bridger.tasks import find_data, get_task

    if asked is not None and asked.startswith("test"):
        raise ValueError(
            f"checkpoints are never chosen on a test split, whose figures would then be selected: "
            f"got --validation {asked}"
        )
    task = get_task(recipe.task)
    names = find_data(task, root, recipe.datasets)
    _warn_of_length(recipe, names)
    training = _open(task, root, split or _training_split(task, root, names), names)
    judged = asked or (USUAL if _have(task, root, names, USUAL) else NONE)
    if judged == NONE:
        missing = "" if asked else f"there is no split {USUAL} (--validation names another), so "
        say(f"{missing}no checkpoint is chosen: the last adapter is kept")
        return training, None
    validation = _open(task, root, judged, names)
    _warn_of_leaks(task, training, validation)
    metric = recipe.with_head_options(task.head_options(training)).metric
    say(
        f"the best checkpoint is chosen by {metric} on {judged} ({validation.name}, "
        f"{task.judged_size(validation)}), never on a test split"
    )
    return training, validation


def _training_split(task: Task, root: Path, names: Sequence[str | None]) -> str:
    """Return the split to train on where none is named.

    Raises:
        ValueError: train is not there, and of others to train on there are several.
    """
    from bridger.data.label_layouts import is_training

    splits = task.splits(root, names[0])
    others = [split for split in splits if is_training(split)]
    if TRAINING in splits or not others:
        return TRAINING
    if len(others) > 1:
        raise ValueError(
            f"{root} has no split {TRAINING}, but {', '.join(others)}: name the one to train on "
            f"with --split"
        )
    return others[0]


def _open(task: Task, root: Path, split: str, names: Sequence[str | None]) -> Any:
    if len(names) == 1:
        return task.open(root, split, names[0])
    from bridger.data import open_mixed

    mixed = open_mixed(root, split, [name for name in names if name])
    for reason, count in mixed.left_out.items():
        if count:
            say(f"left out of {split}: {count} refs whose pictures are in {reason}")
    return mixed


def _have(task: Task, root: Path, names: Sequence[str | None], split: str) -> bool:
    return all(split in task.splits(root, name) for name in names)


def _warn_of_leaks(task: Task, training: Any, validation: Any) -> None:
    from bridger.data import leaks

    if task.datasets:
        found, kind = leaks(training, [validation]), "refs to train on are of pictures"
    else:
        judged = {validation[index].image_path for index in range(len(validation))}
        shared = sum(training[index].image_path in judged for index in range(len(training)))
        found, kind = {validation.split: shared} if shared else {}, "pictures to train on are such"
    for other, count in found.items():
        warnings.warn(
            f"{count} of {len(training)} {kind} that are in {other}, too: its figures will be too "
            f"good",
            UserWarning,
            stacklevel=2,
        )


def _warn_of_length(recipe: Recipe, names: Sequence[str | None]) -> None:
    from bridger.data import PUBLISHED

    for name in names:
        usual = PUBLISHED[name].word_length if name and name in PUBLISHED else None
        if recipe.word_length and usual and recipe.word_length < usual:
            warnings.warn(
                f"the recipe cuts sentences to {recipe.word_length} tokens; for {name} the "
                f"released code takes {usual}: --set word_length={usual}",
                UserWarning,
                stacklevel=2,
            )
