"""Layers of peft that no feature needs, found by running the towers once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bridger.tower_peft.parts import active_adapters, outermost
from bridger.towers import TextTower, VisionTower
from bridger.towers.trial import home_of, watch

WORDS, CELLS = 5, 4
"""Of a trial: tokens in the text, and cells along the last map where any picture size is native."""


def running_layers(towers: nn.Module) -> dict[str, nn.Module]:
    """Return peft's outermost layers with an active adapter, by name."""
    return {name: layer for name, layer in outermost(towers) if active_adapters(layer)}


def refuse_unused(towers: nn.Module, run: Callable[[], Any]) -> None:
    """Raise unless all layers of peft take part when features are made.

    Args:
        towers: the towers' modules.
        run: makes features of `trial_inputs`.

    Raises:
        ValueError: a layer would be saved and counted, and never trained.
    """
    called = {firing.module for firing in watch(towers, run).firings}
    unused = [name for name, layer in running_layers(towers).items() if layer not in called]
    if unused:
        raise ValueError(
            f"no feature needs peft's layer at {unused[0]} ({len(unused)} such in all), so it "
            "would not be trained: it is in a classifier, or in a half of the model that is no "
            "tower here. Leave it out with exclude_modules, or apply peft to the encoder alone"
        )


def trial_inputs(vision: VisionTower, text: TextTower) -> tuple[Tensor, Tensor, Tensor]:
    """Return one picture (1, 3, H, W) of the native size, ids (1, L) and their mask (1, L)."""
    side = CELLS * (vision.blocks[-1].stride or 1)
    height, width = vision.image_size or (side, side)
    pixels = torch.zeros(1, 3, height, width, device=home_of(vision.module).device)
    length = min(WORDS, text.max_length)
    ids = torch.full((1, length), 2, device=home_of(text.module).device)
    ids[0, -1] = text.vocab_size - 1  # the highest id ends a text of CLIP
    return pixels, *text.pad(ids, torch.ones_like(ids, dtype=torch.bool))
