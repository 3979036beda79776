"""What shows that tensors are the same as before; writes through `.data` do not show.

A state is a list of tuples, each of which begins with the object that it is about.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written to; those of inference mode count no versions."""
    return -1 if tensor.is_inference() else tensor._version


def same_state(state: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> bool:
    """Whether tensors are the very same, and of the same version."""
    return len(state) == len(other) and all(
        a[0] is b[0] and a[1:] == b[1:] for a, b in zip(state, other, strict=True)
    )
