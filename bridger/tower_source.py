"""Where towers come from: the name by which `bridger.load_towers` makes the same ones again."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def remember(module: nn.Module, name: str) -> None:
    """Note under which name one tower was loaded."""
    _names[module] = name


def source_of(vision: Any, text: Any) -> str | None:
    """Return the name of a pair of towers, or None where that of one side is not known.

    Known are towers of `bridger.load_towers` and `bridger.load_tiny_clip`, and models of
    transformers that were loaded by a name.

    Args:
        vision: a module, or a tower around one.
        text: likewise.
    """
    sides = [_name_of(getattr(side, "module", side)) for side in (vision, text)]
    if sides[0] is None or sides[1] is None:
        return None
    return sides[0] if sides[0] == sides[1] else f"{sides[0]},{sides[1]}"


def _name_of(module: nn.Module) -> str | None:
    if module in _names:
        return _names[module]
    config = getattr(module, "config", None)
    name = getattr(module, "name_or_path", None) if config is not None else None
    if not name:
        return None
    revision = getattr(config, "_commit_hash", None)
    return f"transformers:{name}" + (f"@{revision}" if revision else "")
