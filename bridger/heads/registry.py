"""Heads by name: a saved adapter names its heads, and this finds their classes.

A head of one's own is known as soon as its module is imported. The command line imports modules and
files that it is told of:

    bridger predict picture.png owl --adapter my-counter --import my_heads.py

It prints what the head's results return from `found()`, a list of dicts with "words" and perhaps
"score", "box" and "share", or the results themselves where they have no such method, and draws them
by `overlay(image)` where they have that. To train and to judge the head it looks for a task of the
same name, see `bridger.tasks.register_task`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TypeVar

from bridger.config import did_you_mean
from bridger.heads.base import Head

HeadClass = TypeVar("HeadClass", bound=type[Head])

_HEADS: dict[str, type[Head]] = {}


def register_head(name: str) -> Callable[[HeadClass], HeadClass]:
    """Return a class decorator that makes a head known under `name`.

    Args:
        name: what a saved adapter calls the head, and the command line asks for.

    Raises:
        ValueError: another class has that name already.
    """

    def register(head_class: HeadClass) -> HeadClass:
        known = _HEADS.get(name)
        if known is not None and _origin(known) != _origin(head_class):
            raise ValueError(
                f"the head name {name!r} belongs to {_origin(known)}; "
                f"register {_origin(head_class)} under another one"
            )
        _HEADS[name] = head_class
        head_class.name = name
        return head_class

    return register


def get_head(name: str) -> type[Head]:
    """Return the head class registered as `name`.

    Args:
        name: one of `list_heads()`.

    Raises:
        ValueError: no head has that name; the message offers the nearest ones.
    """
    names = list_heads()
    if name not in names:
        raise ValueError(
            f"no head is called {name!r}: {did_you_mean(name, names)} "
            "A head of another package is known once its module is imported (in the shell by "
            "--import)."
        )
    return _HEADS[name]


def list_heads() -> list[str]:
    """Return the names of all known heads, sorted."""
    package = importlib.import_module("bridger.heads")
    for module in pkgutil.iter_modules(package.__path__, "bridger.heads."):
        importlib.import_module(module.name)
    return sorted(_HEADS)


def _origin(head_class: type[Head]) -> str:
    return f"{head_class.__module__}.{head_class.__qualname__}"
