"""Towers whose bridged runs can be made faster, or smaller in memory, on demand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch

from bridger.bridgers import BridgerStack
from bridger.compiling import CompiledBlocks, for_all_sizes
from bridger.config import check_whole
from bridger.prefix import LIMIT_BYTES, PrefixCache
from bridger.recomputing import check_options, recompute, switch_off, switch_on
from bridger.tuned_towers import TunedTowers

if TYPE_CHECKING:
    from bridger.encoder import BridgedEncoder


class SwitchedTowers(TunedTowers):
    """What can be switched in an encoder without changing what it computes."""

    bridgers: BridgerStack | None
    prefix_cache: PrefixCache | None = None

    def compile(self, **options: Any) -> None:
        """Compile the blocks of both towers and the Bridgers, each by itself.

        Bridged runs alone are compiled; the towers called on their own run as before. Copies and
        what is loaded from a folder are not compiled.

        Args:
            **options: of `torch.compile`, such as `mode="max-autotune"`. By default blocks are
                compiled for texts and pictures of all sizes at once (`dynamic=True`), Bridgers
                and heads for the sizes that come.

        Raises:
            ValueError: the adapter trains tensors inside blocks, which compiled blocks do not see.
        """
        owned, of_blocks = self._owned(), for_all_sizes(options)
        self._compiled = (
            CompiledBlocks(self.vision, owned["vision"], of_blocks),
            CompiledBlocks(self.text, owned["text"], of_blocks),
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

    def cache_prefix(
        self,
        where: str | os.PathLike[str] | None,
        limit_bytes: int = LIMIT_BYTES,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Keep what the towers make of pictures and sentences up to the first stage.

        From the second time on a picture (or a padded sentence) begins there; rows are known by
        their content. `prefix_cache` then has `hits`, `misses`, `nbytes` and `clear()`. When it is
        full, nothing more is kept. Where the towers' weights change, it starts anew; writes through
        `.data` it does not see: call `clear()` after these. Copies of the encoder have none.

        Off the CPU each forward waits until the keys of its pictures have come to the host.

        Args:
            where: "memory", on the towers' own device; a folder, for several runs and processes;
                or None: nothing is kept.
            limit_bytes: most that is kept.
            dtype: floating-point type of what is kept; None: in memory as computed, so that
                nothing changes but last bits, in a folder bfloat16.

        Raises:
            TypeError: `dtype` is no floating-point type.
            ValueError: the prefix is not the same from run to run (tensors trained in it, layers
                of peft, modules in train mode, FSDP), or the folder belongs to other towers. What
                can be seen in a run only is raised by the next forward.
        """
        if where is None:
            self.prefix_cache = None
            return
        check_whole("limit_bytes", limit_bytes)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point type, got {dtype}")
        self.prefix_cache = PrefixCache(cast("BridgedEncoder", self), where, limit_bytes, dtype)
