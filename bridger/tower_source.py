"""Where towers come from: the name by which `bridger.load_towers` makes the same ones again."""

from __future__ import annotations

import os
from weakref import WeakKeyDictionary

from torch import nn

from bridger.towers.base import Tower, unwrap
from bridger.transformers_source import transformers_name

_names: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()


def remember(module: nn.Module, name: str | None) -> None:
    """Note under which name a model was loaded; None: that none makes it again."""
    _names[module] = name


def forget(tower: Tower) -> None:
    """Note that a tower has other weights than those it was loaded with."""
    for module in (tower.given, unwrap(tower.given), tower.module):
        remember(module, None)


def source_of(vision: Tower, text: Tower) -> str | None:
    """Return the name of a pair of towers, or None where that of one side is not known.

    Known are models of `bridger.load_towers`, `bridger.load_tiny_clip` and `bridger.etris.load`,
    and models of transformers that were loaded by a name, whatever peft has put around or into
    them. Other libraries keep no name. Neither do copies of models, but for transformers'.
    """
    sides = [_name_of(side) for side in (vision, text)]
    if sides[0] is None or sides[1] is None:
        return None
    return sides[0] if sides[0] == sides[1] else f"{sides[0]},{sides[1]}"


def is_path(name: str) -> bool:
    """Whether a model's name is that of a file or folder on this machine."""
    return os.path.isabs(name) or name.startswith((".", "~")) or os.path.exists(name)


def _name_of(tower: Tower) -> str | None:
    given = unwrap(tower.given)
    return _names[given] if given in _names else transformers_name(given, tower.module)
