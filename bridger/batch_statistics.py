"""Towers whose BatchNorms are in train mode for one bridged forward, as in ETRIS' released code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from bridger.towers import TextTower, Tower, VisionTower
from bridger.towers.views import by_the_batch, norms_among, tensor_at, view_changing

T = TypeVar("T", bound=Tower)
StandIn = Callable[[nn.Module], nn.Module]
Tensors = Mapping[str, Mapping[str, Tensor]]


class BatchStatistics:
    """One forward that normalises by the batch and moves the adapter's running statistics.

    Views of the towers run, so that the user's modules keep their mode, their statistics and
    their counters of batches. The views move copies of the adapter's statistics, which `keep`
    takes over: what backward computes again, under activation checkpointing, moves the copies
    alone.

    Attributes:
        towers: twins of the towers, to be run once.
        tensors: the adapter's tensors by side, with the copies among them.

    Args:
        towers: the vision and the text tower.
        owned: the adapter's tensors by side; where they hold a BatchNorm's running statistics,
            that one normalises by the batch.
        stand_in: gives what runs in place of such a BatchNorm, to normalise over all processes.

    Raises:
        ValueError: a tower in half precision, too coarse for averages that move by a tenth; a
            BatchNorm without a momentum.
    """

    def __init__(
        self,
        towers: tuple[VisionTower, TextTower],
        owned: Tensors,
        stand_in: StandIn | None,
    ) -> None:
        vision, text = towers
        self._owned = owned
        self._copies = {
            "vision": _copied(vision, owned["vision"]),
            "text": _copied(text, owned["text"]),
        }
        self.towers = (
            _twin(vision, self._copies["vision"], stand_in),
            _twin(text, self._copies["text"], stand_in),
        )
        self.tensors = {side: {**owned[side], **self._copies[side]} for side in owned}

    @torch.no_grad()
    def keep(self) -> None:
        """Let the adapter's statistics be what the forward has moved them to."""
        for side, copies in self._copies.items():
            for name, moved in copies.items():
                self._owned[side][name].copy_(moved)


def _copied(tower: Tower, owned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    norms = norms_among(tower.module, owned)
    copies = {}
    for name, tensor in owned.items():
        path, _, leaf = name.rpartition(".")
        if path not in norms or not leaf.startswith("running_"):
            continue
        dtype = tensor_at(tower.module, name).dtype
        if dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"running statistics cannot be trained on a tower in {dtype}: keep "
                f"{tower.label()} in float32 (autocast may be on), or train without 'statistics'"
            )
        if getattr(tower.module.get_submodule(path), "momentum", None) is None:
            raise ValueError(
                f"{path} of {tower.label()} averages over all batches it has ever seen "
                "(momentum=None), which 'statistics' cannot go on with: set its momentum"
            )
        copies[name] = tensor.detach().to(dtype, copy=True)
    return copies


def _twin(tower: T, copies: Mapping[str, Tensor], stand_in: StandIn | None) -> T:
    norms = norms_among(tower.module, copies)
    if not norms:
        return tower
    module = tower.module
    if stand_in is not None:
        module = view_changing(module, {n: stand_in(module.get_submodule(n)) for n in norms})
    return tower.running(by_the_batch(module, norms))
