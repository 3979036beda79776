"""Sharing an evaluation out to the processes of a distributed run."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def is_connected() -> bool:
    """Whether this process belongs to a group of processes."""
    return dist.is_available() and dist.is_initialized()


def rank_and_world() -> tuple[int, int]:
    """Return this process's number and how many there are; (0, 1) outside a distributed run."""
    return (dist.get_rank(), dist.get_world_size()) if is_connected() else (0, 1)


def gather(mine: list[T]) -> list[T]:
    """Return what all processes hold, the first one's first, the same on every process."""
    world = rank_and_world()[1]
    if world == 1:
        return mine
    parts: list[list[T]] = [[] for _ in range(world)]
    dist.all_gather_object(parts, mine)
    return [item for part in parts for item in part]


def connect() -> None:
    """Connect the processes that a launcher such as torchrun started, each with its own GPU.

    A process that was started alone, or is connected already, is left as it is. They stay
    connected, since what comes next may need it: `bridger.__main__.run` ends that.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or is_connected():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
