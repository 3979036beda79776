"""What a picture's scores of classes cost, where lists of classes may be padded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from bridger.labels import IGNORE, check_tensor
from bridger.number_checks import refuse_if


def one_label_loss(logits: Tensor, labels: Tensor, real: Tensor | None, smoothing: float) -> Tensor:
    """Cross-entropy of logits (B, K) with class numbers (B,), mean over pictures that count.

    Args:
        logits: minus infinity at classes that are padding.
        labels: 0 to K - 1 or IGNORE.
        real: (B, K), false at padding; None: all are real.
        smoothing: of the labels, over the real classes.

    Raises:
        TypeError, ValueError: see `ClassificationHead.forward`. Compiled code does not look at
            the numbers.
    """
    check_tensor(labels, "class numbers (B,)")
    batch, classes = logits.shape
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(
            f"labels are class numbers, int64, found {labels.dtype}; a head with multi_label=True "
            "takes floats (B, K)"
        )
    if labels.shape != (batch,):
        raise ValueError(
            f"labels must be one class number for each of {batch} pictures, ({batch},), found "
            f"{tuple(labels.shape)}"
        )
    labels = labels.to(logits.device, torch.int64)
    counted = labels != IGNORE
    refuse_if(
        (counted & ((labels < 0) | (labels >= classes))).any(),
        lambda: ValueError(
            f"class numbers lie between 0 and {classes - 1}, or are {IGNORE} where a picture does "
            f"not count; found {sorted(set(labels[counted].tolist()))}"
        ),
    )
    named = rearrange(labels, "b -> b 1") == torch.arange(classes, device=logits.device)
    real = torch.ones_like(named) if real is None else real
    _check_padding(named, real)
    share = smoothing / real.sum(dim=-1, keepdim=True)
    target = (1 - smoothing) * named + share * real
    logs = torch.where(real, logits.log_softmax(dim=-1), 0)
    losses = -(target * logs).sum(dim=-1)
    return torch.where(counted, losses, 0).sum() / counted.sum().clamp(min=1)


def multi_label_loss(
    logits: Tensor, labels: Tensor, real: Tensor | None, smoothing: float
) -> Tensor:
    """Binary cross-entropy of logits (B, K) with labels (B, K) from 0 to 1, mean over real ones.

    Arguments and errors as of `one_label_loss`.
    """
    check_tensor(labels, "numbers from 0 to 1, (B, K)")
    if not (labels.is_floating_point() or labels.dtype == torch.bool):
        raise TypeError(
            f"labels must be float from 0 to 1, or bool, with multi_label, found {labels.dtype}"
        )
    if labels.shape != logits.shape:
        raise ValueError(
            f"labels must be (B, K) = {tuple(logits.shape)} with multi_label, found "
            f"{tuple(labels.shape)}"
        )
    labels = labels.to(logits.device, torch.float32)
    refuse_if(
        ~((labels >= 0) & (labels <= 1)).all(),
        lambda: ValueError("labels must lie between 0 and 1 with multi_label"),
    )
    target = labels * (1 - smoothing) + smoothing / 2
    if real is None:
        return F.binary_cross_entropy_with_logits(logits, target)
    _check_padding(labels > 0, real)
    # Picking out the real ones would wait for a GPU to count them.
    finite = logits.masked_fill(~real, 0)
    losses = F.binary_cross_entropy_with_logits(finite, target, reduction="none")
    return losses.masked_fill(~real, 0).sum() / real.sum().clamp(min=1)


def _check_padding(named: Tensor, real: Tensor) -> None:
    refuse_if(
        (named & ~real).any(),
        lambda: ValueError(
            "labels name classes that are only padding: expression_mask is false there"
        ),
    )
