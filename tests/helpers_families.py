"""Rows of the conformance suite: one line for every class of towers, with small random weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn


@dataclass(frozen=True)
class VisionRow:
    """A class of vision towers.

    Attributes:
        name: "library/Class", with what tells it from other rows of the class behind it.
        build: makes the module as a user has it, the same on every call, in eval mode (see
            `helpers_towers.fill`).
        image_size: its native picture size (H, W).
        other_sizes: sizes that it takes besides; empty where it takes none.
        fast: whether it stands for its family in the fast tier.
        exceptions: names of invariants that do not hold, with the reason.
    """

    name: str
    build: Callable[[], nn.Module]
    image_size: tuple[int, int] = (64, 64)
    other_sizes: tuple[tuple[int, int], ...] = ((64, 96), (96, 64))
    fast: bool = False
    exceptions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TextRow:
    """A class of text towers. Ids lie below `helpers_towers.VOCAB` and end with its `EOS`.

    Attributes:
        name, build, fast, exceptions: as in `VisionRow`.
        pad: the id that fills texts up.
    """

    name: str
    build: Callable[[], nn.Module]
    pad: int = 0
    fast: bool = False
    exceptions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PairRow:
    """Two towers as users pass them together; attributes as in `VisionRow`."""

    name: str
    build: Callable[[], tuple[nn.Module, nn.Module]]
    image_size: tuple[int, int] = (32, 32)
    other_sizes: tuple[tuple[int, int], ...] = ((48, 64),)
    fast: bool = False
    exceptions: Mapping[str, str] = field(default_factory=dict)


Row = VisionRow | TextRow | PairRow


def all_rows() -> list[Row]:
    """Every row of every `families_*.py` beside this file."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("families_*.py"))
    return [row for name in names for row in importlib.import_module(name).ROWS]
