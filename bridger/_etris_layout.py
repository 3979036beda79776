"""What a released ETRIS checkpoint was like beyond its numbers, in memory and in an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SAVED = "etris."
"""In front of the names of masks among an adapter's tensors."""


@dataclass
class ReleasedLayout:
    """What a state dict was like, beyond its numbers: so that it comes back as it was.

    Attributes:
        prefix: in front of all names: "module." under DDP.
        dtypes: the names that were there, in order, without the prefix.
        masks: attention masks, which the model makes by itself.
    """

    prefix: str = ""
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what an adapter's config holds of it: all but the masks."""
        dtypes = {name: str(dtype).removeprefix("torch.") for name, dtype in self.dtypes.items()}
        return {"prefix": self.prefix, "dtypes": dtypes}

    def tensors(self) -> dict[str, Tensor]:
        """Return what an adapter's tensors hold of it: the masks."""
        return {SAVED + name: mask for name, mask in self.masks.items()}

    @classmethod
    def from_saved(cls, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ReleasedLayout:
        """Read `to_dict` and `tensors` again; tensors of other names are left out.

        Raises:
            ValueError: these are other values.
        """
        try:
            dtypes = {name: getattr(torch, dtype) for name, dtype in values["dtypes"].items()}
            prefix = values["prefix"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'"etris" must hold "prefix" and "dtypes", torch\'s by name: {error!r}'
            ) from error
        named = tensors.items()
        masks = {name.removeprefix(SAVED): t for name, t in named if name.startswith(SAVED)}
        return cls(prefix, dtypes, masks)
