"""Learning rates that fall in steps, as the published runs have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

Scheduler = Callable[[Optimizer, int], LRScheduler]
"""Makes the schedule of an optimiser's rates for a run of so many updates."""


def falling_at(milestones: Sequence[float], gamma: float, warmup: int = 0) -> Scheduler:
    """Return the maker of a schedule that multiplies all rates by `gamma` at every milestone.

    It is torch's MultiStepLR with milestones in updates, and may start with a linear warm-up.

    Args:
        milestones: after how many updates rates fall.
        gamma: the factor.
        warmup: updates until the full rate is reached.
    """

    def factor(update: int) -> float:
        fallen: float = gamma ** sum(update >= milestone for milestone in milestones)
        return fallen * min(1.0, update / warmup) if warmup else fallen

    return lambda optimizer, total: LambdaLR(optimizer, factor)
