"""One encoder's hooks in its towers and its hold on them, which end with the encoder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

from torch import nn

from bridger.bottlenecks import Bottlenecks
from bridger.freezing import Flags, hold, release
from bridger.lockstep import StageHooks
from bridger.recomputing import Switched, switch_off
from bridger.tap import Tap
from bridger.tower_peft import Parameters, take_out_peft


class Attachment:
    """What an encoder leaves behind in its towers if nobody calls `detach`: nothing.

    An encoder is its only owner. An object of its own, since what copies an encoder's attributes
    alone (torch's replicas) must not detach the original when it goes.

    Args:
        hooks: on the towers' blocks.
        frozen: the modules to hold; what is added later is released with the others.
        before_peft: parameters to put back at the end; filled later where there are any.
        bottlenecks: to take out at the end; likewise.
        switched: what recomputes for this encoder; filled later, too.
        before: flags to restore, where they are known; see `hold`.
    """

    def __init__(
        self,
        hooks: Sequence[StageHooks | Tap],
        frozen: list[nn.Module],
        before_peft: Parameters,
        bottlenecks: list[Bottlenecks],
        switched: list[Switched],
        before: Iterable[Flags] | None,
    ) -> None:
        self._hooks, self._frozen, self._before_peft = hooks, frozen, before_peft
        self._bottlenecks, self._switched = bottlenecks, switched
        self._left = False
        hold(frozen, before)

    def leave(self) -> None:
        """Take everything back; a second call does nothing."""
        if self._left:
            return
        self._left = True
        for hook in self._hooks:
            hook.remove()
        switch_off(self._switched)
        release(self._frozen)
        for inserted in self._bottlenecks:
            inserted.remove()
        if self._before_peft:
            take_out_peft(self._before_peft)

    # The default is looked up now: at the interpreter's end a module's names may be gone.
    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if not self.__dict__.get("_left", True) and not ending():
            self.leave()
