"""Modules of the user's own, which register heads, tasks, interactors or towers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path


def import_modules(names: Iterable[str]) -> None:
    """Import modules, or files of them.

    Modules are looked for in the working folder too, and a file may import those beside it.

    Args:
        names: of modules, or files that end in .py.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: there is no such module, or another one has the file's name.
    """
    for name in names:
        path = Path(name).resolve()
        is_file = path.suffix == ".py"
        if is_file and not path.is_file():
            raise FileNotFoundError(f"--import {name}: there is no such file")
        place = str(path.parent if is_file else Path.cwd())
        if place not in sys.path:
            sys.path.insert(0, place)
        try:
            module = importlib.import_module(path.stem if is_file else name)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"--import {name}: {error}") from error
        if is_file and Path(module.__file__ or "").resolve() != path:
            raise ImportError(
                f"--import {name}: {module.__file__ or 'a part of Python'} has the same name and "
                f"was there before: give the file another one"
            )
