"""What the semantic segmentation head is trained on: label maps, cross-entropy and Dice."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from bridger.heads.losses import check_range, mask_targets, soft_dice
from bridger.labels import BACKGROUND, IGNORE, check_tensor
from bridger.number_checks import answers_later, refuse_if


def label_targets(
    labels: Tensor,
    logits: Tensor,
    image_size: tuple[int, int],
    real: Tensor | None = None,
) -> Tensor:
    """Bring label maps to the logits' size by nearest neighbours.

    Args:
        labels: (B, H, W), signed integers: 0 to K - 1, BACKGROUND or IGNORE.
        logits: (B, K, h, w).
        image_size: the (H, W) that labels must have.
        real: (B, K) bool, false at classes that are padding and that no label may mean.

    Returns:
        (B, h, w) int64.

    Raises:
        TypeError: labels are of another type.
        ValueError: the shape is another one, or a label means no class. Compiled code does not
            look at the numbers, which would break its graph.
    """
    check_tensor(labels, "class numbers (B, H, W)")
    if labels.dtype not in (torch.int64, torch.int32, torch.int16):
        raise TypeError(
            f"labels must be a label map of int64 with class numbers, {BACKGROUND} for background "
            f"and {IGNORE} for what does not count, got {labels.dtype}: this head gives each pixel "
            f"one class; masks of several classes per pixel need a head with multi_label=True"
        )
    expected = (logits.shape[0], *image_size)
    if tuple(labels.shape) != expected:
        raise ValueError(
            f"labels must be (B, H, W) = {expected}, one label map at the size of the picture for "
            f"each picture, got {tuple(labels.shape)}"
        )
    labels = labels.to(logits.device, torch.int64)
    labels = _known_classes(labels, logits.shape[1], real)
    # Resizing knows no integers; those up to 2^24 are exact in float32.
    maps = rearrange(labels, "b h w -> b 1 h w").to(torch.float32)
    sized = F.interpolate(maps, logits.shape[-2:], mode="nearest")
    return rearrange(sized, "b 1 h w -> b h w").to(torch.int64)


def label_cross_entropy(logits: Tensor, targets: Tensor, background: bool) -> Tensor:
    """Return the cross-entropy of the softmax over classes, a scalar.

    It is the mean over the cells that count, 0 where none does.

    Args:
        logits: (B, K, h, w), -inf at padding classes.
        targets: (B, h, w) int64.
        background: whether BACKGROUND is one more class, with a logit of 0; else its cells do not
            count, as those of IGNORE.
    """
    if background:
        logits = with_background(logits)
        targets = targets.masked_fill(targets == BACKGROUND, logits.shape[1] - 1)
    else:
        targets = targets.masked_fill(targets == BACKGROUND, IGNORE)
    total = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    return total / (targets != IGNORE).sum().clamp(min=1)


def label_dice(
    probabilities: Tensor, targets: Tensor, background: bool, real: Tensor | None = None
) -> Tensor:
    """Return the Dice loss of every class of every picture, averaged, a scalar.

    See `bridger.heads.losses.dice_loss`; the background is no class, and cells that do not count
    are left out.

    Args:
        probabilities: (B, K, h, w).
        targets: (B, h, w) int64.
        background: as in `label_cross_entropy`.
        real: (B, K) bool, false at classes that are padding.
    """
    counts = targets != IGNORE if background else targets >= 0
    each = torch.arange(probabilities.shape[1], device=targets.device)
    shown = rearrange(targets, "b h w -> b 1 h w") == rearrange(each, "k -> k 1 1")
    kept = torch.where(rearrange(counts, "b h w -> b 1 h w"), probabilities, 0.0)
    return soft_dice(kept, shown.to(kept.dtype), real)


def class_masks(
    labels: Tensor,
    logits: Tensor,
    image_size: tuple[int, int],
    real: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Bring a mask for each class to the logits' size by nearest neighbours.

    Args:
        labels: (B, K, H, W), bool, or from 0 to 1 and IGNORE on what does not count.
        logits: (B, K, h, w).
        image_size: the (H, W) that labels must have.
        real: (B, K) bool, false at classes that are padding, whose labels may be anything.

    Returns:
        The soft targets (B, K, h, w), 0 where they do not count, and whether each counts.

    Raises:
        ValueError: the shape is another one, or labels that count are not from 0 to 1. Compiled
            code does not look at the numbers, which would break its graph.
    """
    targets = mask_targets(labels, logits, image_size)
    counts = targets != IGNORE
    if real is not None:
        counts = counts & rearrange(real, "b k -> b k 1 1")
    targets = targets.masked_fill(~counts, 0.0)
    check_range(targets, f", or be {IGNORE} for what does not count")
    return targets, counts


def mask_cross_entropy(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Return the binary cross-entropy of every class for itself, a scalar.

    It is the mean over the cells of classes that count, 0 where none does.

    Args:
        logits: (B, K, h, w), -inf at padding classes, which must not count.
        targets, counts: as `class_masks` returns them.
    """
    losses = F.binary_cross_entropy_with_logits(
        logits.masked_fill(~counts, 0.0), targets, reduction="none"
    )
    return torch.where(counts, losses, 0.0).sum() / counts.sum().clamp(min=1)


def mask_dice(
    logits: Tensor, targets: Tensor, counts: Tensor, real: Tensor | None = None
) -> Tensor:
    """Return the Dice loss of every class of every picture, averaged, a scalar.

    See `bridger.heads.losses.dice_loss`; cells that do not count are left out.

    Args:
        logits, targets, counts: as of `mask_cross_entropy`.
        real: (B, K) bool, false at classes that are padding.
    """
    return soft_dice(torch.where(counts, logits.sigmoid(), 0.0), targets, real)


def with_background(logits: Tensor) -> Tensor:
    """Append the background's logit, which is 0: (B, K, h, w) to (B, K + 1, h, w)."""
    return torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1)


def _known_classes(labels: Tensor, classes: int, real: Tensor | None) -> Tensor:
    """Refuse numbers that mean no class; until a GPU has told of them they do not count."""
    known = (labels >= 0) & (labels < classes)
    if real is not None:
        flat = labels.flatten(1).clamp(0, classes - 1)
        known &= real.gather(1, flat).view_as(labels)
    wrong = ~(known | (labels == BACKGROUND) | (labels == IGNORE))

    def explain() -> ValueError:
        found = torch.unique(labels[wrong]).tolist()
        padding = "" if real is None else " that is not padding"
        return ValueError(
            f"labels must be 0 to {classes - 1}, the number of a class{padding}, {BACKGROUND} for "
            f"background or {IGNORE} for what does not count, got {found[:5]}"
        )

    refuse_if(wrong.any(), explain)
    return labels.masked_fill(wrong, IGNORE) if answers_later(labels) else labels
