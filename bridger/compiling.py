"""torch.compile for the blocks of the towers, for bridged runs alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import nn

from bridger.towers.base import Tower
from bridger.towers.lean import lean_parts
from bridger.towers.views import view_changing

T = TypeVar("T", bound=Tower)


def for_all_sizes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `torch.compile` for blocks that see texts and pictures of all sizes.

    Sizes are symbols from the start, unless the caller says otherwise: blocks that share their
    code, as those of both towers may, would soon reach torch's limit of 8 versions, and then run
    as they are. What einops learns of types at their first use is taught before, since compiled
    code is made anew when it changes.
    """
    for kind in (np.zeros(1), torch.zeros(1), nn.Parameter(torch.zeros(1))):
        rearrange(kind, "a -> a")
    return {"dynamic": True, **options}


class CompiledBlocks:
    """The compiled `forward` of every block of a tower.

    The hooks around a block, which pause the tower at its stages, thus run as always.

    Args:
        tower: the tower.
        owned: names of tensors, below its module, that an adapter trains in its stead.
        options: of `torch.compile`.

    Raises:
        ValueError: such a tensor lies inside a block, where compiled code would not see it.
    """

    def __init__(self, tower: Tower, owned: Iterable[str], options: dict[str, Any]) -> None:
        names = {module: name for name, module in tower.module.named_modules()}
        inside = tuple(f"{names[block.module]}." for block in tower.blocks)
        for name in owned:
            if name.startswith(inside):
                raise ValueError(
                    f"compiled blocks would run without the adapter's own {name!r}: compile "
                    "encoders whose trainable= names no tensor inside a block"
                )
        self._options = options
        self._compile(tower)

    def _compile(self, tower: Tower) -> None:
        names = {module: name for name, module in tower.module.named_modules()}
        self._made_of = _parts(tower)
        self._forwards: dict[str, Callable[..., Any]] = {
            f"{names[block.module]}.forward": torch.compile(
                view_changing(block.module, lean_parts(block.module)).forward, **self._options
            )
            for block in tower.blocks
            if block.module in names  # what was taken out is missed when it does not run
        }

    def of(self, tower: T) -> T:
        """Return a twin of the tower that runs compiled; the user's module stays as it is.

        It is made for one run, so that it shares what the module holds at that time. Where blocks
        hold other modules than before (layers of peft), they are compiled anew.
        """
        if _parts(tower) != self._made_of:
            self._compile(tower)
        return tower.running(view_changing(tower.module, self._forwards))


def _parts(tower: Tower) -> list[nn.Module]:
    return [part for block in tower.blocks for part in block.module.modules()]
