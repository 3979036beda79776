"""A few numbers of a tower's weights, by which another set of weights is told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from bridger.sharded import whole
from bridger.tower_peft import own_tensors
from bridger.towers.base import Tower

COUNT = 4
"""Numbers of each block that is looked at."""

TOLERANCE = 0.02
"""Of the largest of them: more than bfloat16 or eight bits change, less than another training."""

Sample = list[list[float] | None]


def sample_weights(tower: Tower) -> Sample:
    """Return the first numbers of a matrix in the first, the middle and the last block.

    The same for a tower in any precision, alone or in a whole, with peft's layers or without;
    None where a block holds no matrix, or one that torch does not hold as plain numbers.
    """
    blocks = [tower.blocks[index].module for index in (0, len(tower.blocks) // 2, -1)]
    return [_first_numbers(block) for block in blocks]


def _first_numbers(block: nn.Module) -> list[float] | None:
    for _, _, tensor in own_tensors(block, buffers=False):
        if tensor.ndim > 1 and tensor.is_floating_point():
            tensor = whole(tensor)
            plain = type(tensor) in (Tensor, nn.Parameter)
            return tensor.detach().flatten()[:COUNT].float().tolist() if plain else None
    return None


def same_weights(saved: Sequence[Sequence[float] | None], found: Sample) -> bool:
    """Whether two samples may be of the same weights."""
    for before, now in zip(saved, found, strict=False):
        if before is None or now is None:
            continue
        most = TOLERANCE * max(map(abs, before))
        if not all(math.isclose(a, b, abs_tol=most) for a, b in zip(before, now, strict=False)):
            return False
    return True
