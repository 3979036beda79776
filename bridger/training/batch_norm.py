"""BatchNorm over the batch of all processes, for as long as they train together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bridger.model import BridgedModel
from bridger.training.distributed import is_running


@contextmanager
def synchronized_batch_norm(model: BridgedModel, device: torch.device) -> Iterator[None]:
    """Let the BatchNorm of Bridgers and heads take its statistics over all processes.

    As with one process and the whole batch, so that a run does not depend on how many devices
    share it. Inside, modules are of another class and afterwards of their own again. Towers are
    in eval mode, where nothing is normalised by the batch, but for `trainable="statistics"`:
    there copies run in views of the towers.

    Args:
        model: the model that is trained.
        device: where.
    """
    if not is_running():
        yield
        return
    encoder: Any = model.encoder
    own: tuple[Any, ...] = (encoder.bridgers, encoder.dense, model.heads)
    norms = {m: type(m) for part in own if part is not None for m in part.modules() if _is_plain(m)}
    for norm in norms:
        _synchronize(norm, device)
    encoder.tower_tensors.stand_in = cache(partial(_stand_in, device=device))
    try:
        yield
    finally:
        encoder.tower_tensors.stand_in = None
        for norm, kind in norms.items():
            norm.__class__ = kind
            vars(norm).pop("process_group", None)


def _is_plain(module: nn.Module) -> bool:
    # What a library has made of BatchNorm may do more (timm's activates too): it stays as it is,
    # and DDP hands the first process's statistics on as it does with buffers.
    return type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _stand_in(norm: nn.Module, device: torch.device) -> nn.Module:
    """Return what runs in place of a tower's BatchNorm; it shares its tensors."""
    if not _is_plain(norm):
        return norm
    made = copy(norm)
    _synchronize(made, device)
    return made


def _synchronize(norm: nn.Module, device: torch.device) -> None:
    if device.type == "cuda":
        norm.__class__ = nn.SyncBatchNorm
        vars(norm)["process_group"] = None  # which stands for all
    else:
        norm.__class__ = GatheredBatchNorm


class GatheredBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes, on the CPU, where torch's own refuses to work.

    The mean and the variance come from sums over all processes' cells, through which gradients
    flow, and running statistics are updated as `nn.BatchNorm2d` does with the whole batch. On
    GPUs `nn.SyncBatchNorm` does the same in fewer passes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...); in training every process must call it as often as the others."""
        # Under autocast a map may come in half precision, too coarse for sums.
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        if self.training or self.running_mean is None or self.running_var is None:
            mean, variance = self._measure(values)
        else:
            mean, variance = self.running_mean, self.running_var
        shape = (1, -1, *[1] * (values.ndim - 2))
        normed = (values - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(input.dtype)

    def _measure(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each channel over all processes, and keep track of them."""
        dims = [0, *range(2, values.ndim)]
        cells = values.new_tensor([values.numel() // values.shape[1]])
        sums = _sum_of_all(torch.cat([values.sum(dims), cells]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(1, -1, *[1] * (values.ndim - 2))
        variance = _sum_of_all(centred.square().sum(dims)) / count
        if self.training:
            self._track(mean.detach(), variance.detach() * (count / (count - 1)))
        return mean, variance

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected a batch of maps (B, C, ...), got {input.ndim} dimensions")

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is None:
            raise RuntimeError("BatchNorm tracks statistics but has no counter of its batches")
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _SumOfAll(torch.autograd.Function):
    """The sum over all processes; each term's gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        summed = tensor.contiguous().clone()
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        summed = grads[0].contiguous().clone()
        distributed.all_reduce(summed)
        return summed


def _sum_of_all(tensor: Tensor) -> Tensor:
    summed: Tensor = _SumOfAll.apply(tensor)
    return summed
