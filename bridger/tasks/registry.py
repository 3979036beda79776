"""Tasks by name: that of their head."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TypeVar

from bridger.config import did_you_mean
from bridger.tasks.base import Root, Task

TaskClass = TypeVar("TaskClass", bound=type[Task])

_TASKS: dict[str, Task] = {}


def register_task(task: TaskClass) -> TaskClass:
    """Make a task known under its name; a class decorator.

    Args:
        task: its class, whose `name` is that of its head.
    """
    _TASKS[task.name] = task()
    return task


def get_task(name: str) -> Task:
    """Return the task of the head registered as `name`.

    Args:
        name: one of `list_tasks()`.

    Raises:
        ValueError: no task has that name; the message offers the nearest ones.
    """
    names = list_tasks()
    if name not in names:
        raise ValueError(f"no task is called {name!r}: {did_you_mean(name, names)}")
    return _TASKS[name]


def list_tasks() -> list[str]:
    """Return the names of all known tasks, sorted."""
    package = importlib.import_module("bridger.tasks")
    for module in pkgutil.iter_modules(package.__path__, "bridger.tasks."):
        importlib.import_module(module.name)
    return sorted(_TASKS)


def find_data(task: Task, root: Root, asked: Sequence[str] = ()) -> list[str | None]:
    """Return the names of the data sets of a task to open in a folder; see `Task.names`.

    Args:
        task: whose data are looked for.
        root: the folder.
        asked: names of data sets; none: the only one that is there.

    Raises:
        FileNotFoundError: there is none; for which tasks there are data is said.
        ValueError: there are several, and none was asked for.
    """
    # First of all: which files were expected is nothing to somebody who has others.
    if not _has_data(task, root):
        others = [
            name for name in list_tasks() if not _is_variant(name) and _has_data(_TASKS[name], root)
        ]
        if others:
            raise FileNotFoundError(
                f"{root} holds no data for {task.name}, but for another task: "
                f"{' or '.join(others)} (--head {others[0]} in the shell)"
            )
    return task.names(root, asked)


def _is_variant(name: str) -> bool:
    """Whether a task is another one with a head of its own."""
    return any(kind in type(_TASKS[name]).__mro__[1:] for kind in map(type, _TASKS.values()))


def _has_data(task: Task, root: Root) -> bool:
    try:
        return bool(task.names(root))
    except FileNotFoundError:
        return False
    except ValueError:  # there are several
        return True
