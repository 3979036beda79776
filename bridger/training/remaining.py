"""How long a run will still take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WARM_UP = 3
"""First steps that are not timed: they fill caches, allocate and compile."""


class Remaining:
    """Reckons with what steps and evaluations have taken, each kind by itself.

    A step lasts from the end of the one before to its own, so that waiting for data and saving
    count, without the evaluations that fall between them.

    Args:
        clock: tells seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._step_end = 0.0
        self._between = 0.0  # seconds of evaluations since then
        self._begun = 0
        self._steps: list[float] = [0, 0.0]  # how many, seconds
        self._evaluations: list[float] = [0, 0.0]

    def begin(self) -> None:
        """Start the first step's time."""
        self._step_end = self.clock()

    def step(self) -> None:
        """End a step's time."""
        now = self.clock()
        self._begun += 1
        if self._begun > WARM_UP:
            self._steps[0] += 1
            self._steps[1] += now - self._step_end - self._between
        self._step_end, self._between = now, 0.0

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Take what happens inside for an evaluation; one that fails is not reckoned with."""
        begin = self.clock()
        yield
        took = self.clock() - begin
        self._between += took
        self._evaluations[0] += 1
        self._evaluations[1] += took

    def seconds(self, steps: int, evaluations: int) -> float | None:
        """Return how long so many steps and measured evaluations take; None: not known yet."""
        if not self._steps[0]:
            return None
        each = self._evaluations[1] / max(1, self._evaluations[0])
        return steps * self._steps[1] / self._steps[0] + evaluations * each

    def text(self, steps: int, evaluations: int) -> str:
        """Return what is left, in words; nothing where nothing is left, or known."""
        seconds = self.seconds(steps, evaluations)
        if seconds is None or not (steps or evaluations):
            return ""
        unknown = evaluations and not self._evaluations[0]
        return f"{duration(seconds)}{' + evaluations' if unknown else ''} left"


def duration(seconds: float) -> str:
    """Return a time in words, such as "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
