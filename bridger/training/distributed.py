"""What the processes of one run agree on: who writes, what they have in all, when all stop.

With one process everything here is free of communication.
"""

from __future__ import annotations

import os

import torch
from torch import distributed

from bridger.evaluation.ranks import is_connected, rank_and_world


def is_running() -> bool:
    """Whether several processes train together and are connected by now."""
    return rank_and_world()[1] > 1


def world_size() -> int:
    """Return the number of processes, from the launcher's environment where none are connected."""
    return rank_and_world()[1] if is_connected() else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's number, from the launcher's environment where none are connected."""
    return rank_and_world()[0] if is_connected() else int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def wait_for_all() -> None:
    """Return when every process has come here."""
    if is_running():
        distributed.barrier()


def total(number: int, device: torch.device) -> int:
    """Return the sum of a whole number over all processes."""
    if not is_running():
        return number
    summed = torch.tensor(number, dtype=torch.int64, device=device)
    distributed.all_reduce(summed)
    return int(summed)


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in one process at least."""
    return total(int(flag), device) > 0
