"""Copies of tower tensors that an adapter trains in the tower's stead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from bridger.towers import TextTower, VisionTower

POSITIONS = "positions"


class TowerTensors(nn.ParameterDict):
    """Adapter-owned parameters, keyed "vision:<name>" and "text:<name>", dots as slashes.

    Args:
        vision: the vision tower.
        text: the text tower.
        patterns: globs on "vision.<name>" and "text.<name>", or "positions".

    Raises:
        ValueError: a pattern fits no parameter.
    """

    def __init__(self, vision: VisionTower, text: TextTower, patterns: Sequence[str]) -> None:
        super().__init__()
        for pattern in patterns:
            found = list(_matching(vision, text, pattern))
            if not found:
                raise ValueError(
                    f"trainable={pattern!r} fits no tower tensor; write 'positions', or a glob on "
                    f"'vision.<name>' or 'text.<name>' such as 'text.ln_final.*'"
                )
            for side, name, parameter in found:
                self[_key(side, name)] = nn.Parameter(parameter.detach().clone().float())

    def by_tower(self) -> dict[str, dict[str, Tensor]]:
        """Return {"vision": {name: tensor}, "text": {name: tensor}}, names below the tower."""
        tensors: dict[str, dict[str, Tensor]] = {"vision": {}, "text": {}}
        for key, parameter in self.items():
            side, name = key.split(":", 1)
            tensors[side][name.replace("/", ".")] = parameter
        return tensors


def _key(side: str, name: str) -> str:
    return f"{side}:{name.replace('.', '/')}"


def _matching(
    vision: VisionTower, text: TextTower, pattern: str
) -> Iterator[tuple[str, str, nn.Parameter]]:
    inner = set(vision.module.parameters())
    for side, tower in (("vision", vision), ("text", text)):
        positions = tower.position_names()
        for name, parameter in tower.module.named_parameters():
            # A whole CLIP on the text side holds the vision tower too, which is named "vision".
            if side == "text" and parameter in inner:
                continue
            full = f"{side}.{name}"
            if name in positions if pattern == POSITIONS else fnmatchcase(full, pattern):
                yield side, name, parameter
