"""torch.compile for the blocks of a tower, for bridged runs alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch

from bridger.towers.base import Tower
from bridger.towers.views import view_changing

T = TypeVar("T", bound=Tower)


def compiled(tower: T, options: dict[str, Any]) -> T:
    """Return a twin of a tower whose blocks run compiled; the user's module stays as it is.

    Each block's `forward` is compiled by itself, so that the hooks around it, which pause the tower
    at its stages, run as always.

    Args:
        tower: the tower.
        options: of `torch.compile`.
    """
    changes: dict[str, object] = {
        f"{name}.forward": torch.compile(block.module.forward, **options)
        for name, block in zip(_block_names(tower), tower.blocks, strict=True)
    }
    twin = copy.copy(tower)
    twin.module = view_changing(tower.module, changes)
    return twin


def blocks_holding(tower: Tower, names: Iterable[str]) -> list[str]:
    """Return those of some tensors, named below the tower's module, that lie inside its blocks."""
    blocks = tuple(f"{name}." for name in _block_names(tower))
    return [name for name in names if name.startswith(blocks)]


def _block_names(tower: Tower) -> list[str]:
    """Return the blocks' names below the tower's own module, which the user's may wrap."""
    names = {module: name for name, module in tower.module.named_modules()}
    return [names[block.module] for block in tower.blocks]
