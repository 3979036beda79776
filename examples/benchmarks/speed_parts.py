"""Where the time of one bridged training step goes, part by part.

    timeline = Timeline(case)
    timeline.run(rounds=10, warmups=2)["vision: prefix"].median

The towers and the Bridgers take turns, so that one clock does for all threads: a part lasts from
the end of the part before it to its own end. A GPU is waited for at every end.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from measuring import Timing, synchronize
from speed_cases import Case
from torch import nn

from bridger import BridgedModel


class Timeline:
    """Takes the time at the end of every part of a step.

    Args:
        case: a bridged model that is not compiled (compiled code would run the hooks too).
    """

    def __init__(self, case: Case) -> None:
        assert isinstance(case.module, BridgedModel)
        self.case = case
        self.timings: dict[str, Timing] = {}
        self._lap: dict[str, float] = {}
        self._running, self._last = False, 0.0
        encoder, head = case.module.encoder, case.module.heads["head"]
        for stage, (v, t) in enumerate(encoder.stages):
            part = "after the first stage" if stage else "prefix"
            # First of all hooks: the library's own one pauses the tower.
            self._at_end(encoder.vision.blocks[v].module, f"vision: {part}", prepend=True)
            if t is not None:
                self._at_end(encoder.text.blocks[t].module, f"text: {part}", prepend=True)
        for bridger in encoder.bridgers.stages if encoder.bridgers else ():
            self._at_end(bridger, "Bridgers")
        head.register_forward_pre_hook(partial(self._hook, "towers: after the last stage"))
        for name, part in head.named_children():
            self._at_end(part, f"head: {name.replace('_', ' ')}")
        self._at_end(head, "loss")

    def _at_end(self, module: nn.Module, part: str, *, prepend: bool = False) -> None:
        module.register_forward_hook(partial(self._hook, part), prepend=prepend)

    def _hook(self, part: str, *_: Any) -> None:
        if self._running:  # not while backward computes a block again
            self._mark(part)

    def _mark(self, part: str) -> None:
        synchronize(self.case.setting.device)
        now = time.perf_counter()
        self._lap[part] = self._lap.get(part, 0.0) + now - self._last
        self._last = now

    def run(self, rounds: int, warmups: int) -> dict[str, Timing]:
        """Time that many steps; return the seconds of every part."""
        laps = [self._step() for _ in range(warmups + rounds)][warmups:]
        self.timings = {part: Timing(tuple(lap[part] for lap in laps)) for part in laps[0]}
        return self.timings

    def _step(self) -> dict[str, float]:
        self._lap = {}
        synchronize(self.case.setting.device)
        start = self._last = time.perf_counter()
        self._running = True
        loss = self.case.loss()
        self._running = False
        self._mark("loss")
        loss.backward()
        self._mark("backward")
        self.case.update()
        self._mark("optimiser")
        return {**self._lap, "whole step": self._last - start}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row of a table for every part, in order; shares are those of the medians."""
        whole = self.timings["whole step"].median
        return [
            {
                "part": part,
                "ms": 1000 * timing.median,
                "low": 1000 * timing.low,
                "high": 1000 * timing.high,
                "% of the step": 100 * timing.median / whole,
            }
            for part, timing in self.timings.items()
        ]
