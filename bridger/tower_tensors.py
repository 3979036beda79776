"""Copies of tower tensors that an adapter changes in the tower's stead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from bridger.tower_peft import own_tensors, place_now
from bridger.towers import TextTower, VisionTower

POSITIONS, STATISTICS = "positions", "statistics"
RUNNING = ("running_mean", "running_var")


class TowerTensors(nn.ParameterDict):
    """Adapter-owned parameters, keyed "vision:<name>" and "text:<name>", dots as slashes.

    Names are those of towers without peft, so that peft may come, go or be merged later.
    BatchNorm's running statistics are buffers here, as they are in towers.

    Attributes:
        stand_in: while processes train together, gives what runs in place of a tower's BatchNorm
            whose statistics are here, to normalise over all of them; see `BatchStatistics`.

    Args:
        vision: the vision tower.
        text: the text tower.
        patterns: globs on "vision.<name>" and "text.<name>", "positions", or "statistics":
            BatchNorm's running ones, which training forwards move.

    Raises:
        ValueError: a pattern fits no parameter.
    """

    stand_in: Callable[[nn.Module], nn.Module] | None = None

    def __init__(self, vision: VisionTower, text: TextTower, patterns: Sequence[str]) -> None:
        super().__init__()
        for pattern in patterns:
            found = list(_matching(vision, text, pattern))
            if not found:
                raise ValueError(
                    f"trainable={pattern!r} fits no tower tensor; write 'positions', 'statistics', "
                    f"or a glob on 'vision.<name>' or 'text.<name>' such as 'text.ln_final.*'"
                )
            for side, name, tensor in found:
                copy, key = tensor.detach().clone().float(), _key(side, name)
                if pattern != STATISTICS:
                    self[key] = nn.Parameter(copy)
                elif key not in self._buffers:
                    self.register_buffer(key, copy)

    def by_tower(self, towers: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
        """Return tensors by side, then by the name that they have below that tower now.

        Raises:
            ValueError: peft has put a copy in the place of a whole layer that the adapter trains.
        """
        tensors: dict[str, dict[str, Tensor]] = {side: {} for side in towers}
        for key, tensor in [*self.named_parameters(), *self.named_buffers()]:
            side, name = key.split(":", 1)
            tensors[side][place_now(towers[side], name.replace("/", "."))] = tensor
        return tensors


def _key(side: str, name: str) -> str:
    return f"{side}:{name.replace('.', '/')}"


def _matching(
    vision: VisionTower, text: TextTower, pattern: str
) -> Iterator[tuple[str, str, Tensor]]:
    inner = {*vision.module.parameters(), *vision.module.buffers()}
    for side, tower in (("vision", vision), ("text", text)):
        positions = tower.position_names()
        for name, now, tensor in own_tensors(tower.module, buffers=pattern == STATISTICS):
            # A whole CLIP on the text side holds the vision tower too, which is named "vision".
            if side == "text" and tensor in inner:
                continue
            if now in positions if pattern == POSITIONS else _fits(pattern, side, name):
                yield side, name, tensor


def _fits(pattern: str, side: str, name: str) -> bool:
    if pattern == STATISTICS:
        return name.rpartition(".")[2] in RUNNING
    return fnmatchcase(f"{side}.{name}", pattern)
