"""What a picture's scores of classes cost, where lists of classes may be padded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bridger.labels import IGNORE


def one_label_loss(logits: Tensor, labels: Tensor, real: Tensor | None, smoothing: float) -> Tensor:
    """Cross-entropy of logits (B, K) with class numbers (B,), mean over pictures that count.

    Args:
        logits: minus infinity at classes that are padding.
        labels: 0 to K - 1 or IGNORE.
        real: (B, K), false at padding; None: all are real.
        smoothing: of the labels, over the real classes.

    Raises:
        TypeError, ValueError: see `ClassificationHead.forward`.
    """
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
    counted = labels != IGNORE
    given = labels.long()[counted]
    named = torch.zeros_like(logits, dtype=torch.bool)
    if ((given < 0) | (given >= classes)).any():
        raise ValueError(
            f"class numbers lie between 0 and {classes - 1}, or are {IGNORE} where a picture does "
            f"not count; found {sorted(set(given.tolist()))}"
        )
    named[counted, given] = True
    real = torch.ones_like(named) if real is None else real
    if (named & ~real).any():
        raise ValueError(
            "labels name classes that are only padding: expression_mask is false there"
        )
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
    if not labels.is_floating_point():
        raise TypeError(f"labels must be float from 0 to 1 with multi_label, found {labels.dtype}")
    if labels.shape != logits.shape:
        raise ValueError(
            f"labels must be (B, K) = {tuple(logits.shape)} with multi_label, found "
            f"{tuple(labels.shape)}"
        )
    if not ((labels >= 0) & (labels <= 1)).all():
        raise ValueError("labels must lie between 0 and 1 with multi_label")
    target = labels * (1 - smoothing) + smoothing / 2
    if real is None:
        return F.binary_cross_entropy_with_logits(logits, target)
    if (labels[~real] > 0).any():
        raise ValueError(
            "labels name classes that are only padding: expression_mask is false there"
        )
    return F.binary_cross_entropy_with_logits(logits[real], target[real])
