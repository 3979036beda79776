"""Tensors and models that FSDP2 (torch's `fully_shard`) spreads over several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of the tensor, in a `DTensor`."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """Return a tensor in full; all processes that share it must ask for it together."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return full


def copy_into(target: Any, source: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded; then all processes must do so."""
    if is_sharded(target):
        from torch.distributed.tensor import distribute_tensor

        source = distribute_tensor(
            source.to(target.device, target.dtype), target.device_mesh, target.placements
        )
    target.copy_(source)


def is_wrapped(module: nn.Module) -> bool:
    """Whether `fully_shard` was called on a module itself."""
    return hasattr(module, "unshard")


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, other methods of a sharded model than its forward can be called.

    Its own parameters are whole then; those of blocks that are sharded by themselves still come
    and go as the blocks run. All processes must enter it, and run the model as often.
    """
    if not is_wrapped(model):
        yield
        return
    sharded: Any = model
    sharded.unshard()
    try:
        yield
    finally:
        sharded.reshard()
