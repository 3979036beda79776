"""Towers in half precision under adapters in float32."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import torch
from torch import nn

from bridger.tower_peft import cast_towers

T = TypeVar("T", bound="HalfTowers")


class HalfTowers(nn.Module):
    """What an encoder and a model share: `half` and `bfloat16` mean the towers alone."""

    @abstractmethod
    def frozen_towers(self) -> nn.Module:
        """Return what is never trained."""

    def half(self: T, *, adapters: bool = False) -> T:
        """Move the towers to float16; all that is trained stays float32 unless `adapters`."""
        return self._cast(torch.float16, adapters)

    def bfloat16(self: T, *, adapters: bool = False) -> T:
        """Move the towers to bfloat16; all that is trained stays float32 unless `adapters`."""
        return self._cast(torch.bfloat16, adapters)

    def _cast(self: T, dtype: torch.dtype, adapters: bool) -> T:
        if adapters:
            return self.to(dtype)
        cast_towers(self.frozen_towers(), dtype)
        return self
