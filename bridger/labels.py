"""Labels that stand for no class, in every label map of the library."""

from __future__ import annotations

from typing import Any

import torch

BACKGROUND = -1
"""Of a pixel that belongs to none of the classes."""

IGNORE = -100
"""Of a pixel that does not count, in losses and in metrics; torch's usual value."""


def check_tensor(labels: Any, what: str) -> None:
    """Refuse labels that are no tensor.

    Raises:
        TypeError: they are a list, an array or the like.
    """
    if not isinstance(labels, torch.Tensor):
        raise TypeError(
            f"labels must be a tensor of {what}, got {type(labels).__name__}: see torch.as_tensor"
        )
