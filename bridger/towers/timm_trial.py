"""A trial forward of timm's models whose class no family knows: `feature_info` says too little.

It says neither how states are laid out nor which picture sizes a model takes.
"""

from __future__ import annotations

import functools

from bridger.towers.discovery import kept_whole
from bridger.towers.trial import Trace, watch
from bridger.towers.unknown_vision import sizes_to_try
from bridger.towers.vision import VisionTower
from bridger.towers.vision_layout import trial_pictures


def only_size(tower: VisionTower, known: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the one picture size (H, W) that a tower is known to take, or None for any.

    Args:
        tower: its blocks must be set.
        known: the one size that the model itself says it takes, or None.

    Raises:
        ValueError: the blocks' states are no maps, or no size passes.
    """
    errors: list[str] = []
    for size, free in sizes_to_try(tower.module, known):
        pictures = trial_pictures(tower.module, size)
        try:
            trace = watch(tower.module, functools.partial(tower.module, pictures))
        except Exception as error:  # whatever a model raises at a size it cannot take
            errors.append(f"{size[0]} x {size[1]}: {type(error).__name__}: {str(error)[:100]}")
            continue
        _check_maps(tower, trace, size)
        return None if free else size
    raise ValueError(
        f"{type(tower.module).__name__} ran on pictures of none of the sizes that were tried "
        f"({'; '.join(errors[:3])}): pass a model as timm.create_model gives it"
    )


def _check_maps(tower: VisionTower, trace: Trace, size: tuple[int, int]) -> None:
    kind = type(tower.module).__name__
    instead = f"If modules of this {kind} hold maps, name them: generic_vision(model, blocks=[...])"
    for index, block in enumerate(tower.blocks):
        firings = [firing for firing in trace.firings if firing.module is block.module]
        states = [firing.state for firing in firings]
        if len(states) != 1 or states[0] is None:
            found = "ran and returned no tensor" if states == [None] else f"ran {len(states)} times"
            raise ValueError(
                f"block {block.name!r} of {tower.label()} {found} in a trial forward; a block must "
                f"run once and return a map to be bridged. {instead}"
            )
        kept_whole(tower.module, tuple(firings))
        try:
            tower.read_map(index, states[0], size)
        except RuntimeError as error:
            raise ValueError(f"{error}. {instead}") from error
