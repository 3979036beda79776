"""Towers whose bridged runs can be made faster, or smaller in memory, on demand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridger.bridgers import BridgerStack
from bridger.compiling import CompiledBlocks
from bridger.recomputing import check_options, recompute, switch_off, switch_on
from bridger.tuned_towers import TunedTowers


class SwitchedTowers(TunedTowers):
    """What can be switched in an encoder without changing what it computes."""

    bridgers: BridgerStack | None

    def compile(self, **options: Any) -> None:
        """Compile the blocks of both towers and the Bridgers, each by itself.

        Bridged runs alone are compiled; the towers called on their own run as before. Copies and
        what is loaded from a folder are not compiled.

        Args:
            **options: of `torch.compile`, such as `mode="max-autotune"`.

        Raises:
            ValueError: the adapter trains tensors inside blocks, which compiled blocks do not see.
        """
        owned = self._owned()
        self._compiled = (
            CompiledBlocks(self.vision, owned["vision"], options),
            CompiledBlocks(self.text, owned["text"], options),
        )
        for bridger in self.bridgers.stages if self.bridgers else ():
            bridger.compile(**options)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Compute again in backward what blocks and Bridgers need, in place of keeping it.

        Towers recompute where their library offers it, until detaching; blocks of transformers
        do so in train mode only.

        Args:
            activation_checkpointing_kwargs: as transformers' Trainer hands them over; nothing but
                the defaults can be done.
            **options: the same, one by one.

        Raises:
            ValueError: anything else is asked for.
        """
        check_options(activation_checkpointing_kwargs, options)
        for tower in (self.vision, self.text):
            if tower.recomputable:
                self._switched += switch_on(tower.module)
        recompute(self, True)
        self.train(self.training)

    def activation_checkpointing_disable(self) -> None:
        """Undo `activation_checkpointing_enable`; what was on before it stays on."""
        switch_off(self._switched)
        self._switched.clear()
        recompute(self, False)
        self.train(self.training)
