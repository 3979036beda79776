"""Sharing an evaluation out to the processes of a distributed run."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """Return this process's number and how many there are; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(mine: list[T]) -> list[T]:
    """Return what all processes hold, the first one's first, the same on every process."""
    world = rank_and_world()[1]
    if world == 1:
        return mine
    parts: list[list[T]] = [[] for _ in range(world)]
    dist.all_gather_object(parts, mine)
    return [item for part in parts for item in part]
