"""Tasks by name: that of their head."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TypeVar

from bridger.config import did_you_mean
from bridger.tasks.base import Task

TaskClass = TypeVar("TaskClass", bound=type[Task])

_TASKS: dict[str, Task] = {}


def register_task(task: TaskClass) -> TaskClass:
    """Make a task known under its name; a class decorator."""
    _TASKS[task.name] = task()
    return task


def get_task(name: str) -> Task:
    """Return the task of the head registered as `name`.

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
