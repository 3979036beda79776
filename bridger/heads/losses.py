"""What the referring head is trained on: targets, and the losses; docs/method.md, 5."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from bridger.labels import check_tensor
from bridger.number_checks import refuse_if

ROUNDING = 1e-3  # how far resized labels may leave 0 to 1


def mask_targets(labels: Tensor, logits: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Bring masks to the logits' shape by nearest neighbours, as float32.

    Args:
        labels: (B, H, W) or (B, N, H, W), bool or from 0 to 1.
        logits: (B, N, h, w).
        image_size: the (H, W) that labels must have.

    Returns:
        The soft targets (B, N, h, w).

    Raises:
        TypeError: labels are no tensor.
        ValueError: the shape is another one.
    """
    check_tensor(labels, "masks (B, N, H, W)")
    expected = (*logits.shape[:2], *image_size)
    if labels.ndim == 3 and logits.shape[1] == 1:
        labels = rearrange(labels, "b h w -> b 1 h w")
    if tuple(labels.shape) != expected:
        raise ValueError(
            f"labels must be (B, N, H, W) = {expected}, one mask at the size of the picture per "
            f"expression (without N where input_ids are (B, L)), got {tuple(labels.shape)}"
        )
    targets = labels.to(device=logits.device, dtype=torch.float32)
    return F.interpolate(targets, logits.shape[-2:], mode="nearest")


def no_target_loss(logits: Tensor, labels: Tensor, expression_mask: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy of "the target is empty", a scalar.

    Args:
        logits: (B, N), of the expression's meaning nothing in the picture.
        labels: (B, H, W) or (B, N, H, W) at the size of the picture: what is small may have no
            cell of its own at the size of the head's logits.
        expression_mask: as in `text_to_pixel_loss`.
    """
    empty = ~(labels.to(logits.device) > 0).flatten(-2).any(dim=-1)
    losses = F.binary_cross_entropy_with_logits(
        logits, empty.reshape(logits.shape).to(logits.dtype), reduction="none"
    )
    return mean_of_expressions(losses, expression_mask)


def text_to_pixel_loss(
    logits: Tensor, targets: Tensor, expression_mask: Tensor | None = None
) -> Tensor:
    """Return the text-to-pixel contrastive loss, a scalar.

    -log sigmoid(z) inside the object and -log(1 - sigmoid(z)) outside, in proportion where the
    target is soft, averaged over all cells of the real expressions.

    Args:
        logits: z (B, N, h, w).
        targets: (B, N, h, w), from 0 to 1.
        expression_mask: (B, N), false at expressions that do not count; None counts all.

    Raises:
        ValueError: the mask has another shape, or targets that count are not from 0 to 1.
            Compiled code does not look at the numbers, which would break its graph.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    loss = mean_of_expressions(losses.mean(dim=(-2, -1)), expression_mask)
    if expression_mask is not None:
        targets = targets.masked_fill(
            ~expression_mask.to(targets.device, torch.bool)[..., None, None], 0
        )
    check_range(targets)
    return loss


def dice_loss(logits: Tensor, targets: Tensor, expression_mask: Tensor | None = None) -> Tensor:
    """Return the Dice loss (Milletari et al., V-Net, 2016; 1 added above and below), a scalar.

        1 - (2 sum(p y) + 1) / (sum(p) + sum(y) + 1)

    with p the probabilities of an expression's cells and y their targets, averaged over the real
    expressions.

    Args:
        logits, targets, expression_mask: as in `text_to_pixel_loss`.
    """
    return soft_dice(logits.sigmoid(), targets, expression_mask)


def soft_dice(
    probabilities: Tensor, targets: Tensor, expression_mask: Tensor | None = None
) -> Tensor:
    """Return the Dice loss of probabilities (B, N, h, w); otherwise as `dice_loss`."""
    both = (probabilities * targets).sum(dim=(-2, -1))
    all_in_all = (probabilities + targets).sum(dim=(-2, -1))
    return mean_of_expressions(1 - (2 * both + 1) / (all_in_all + 1), expression_mask)


def mean_of_expressions(per_expression: Tensor, expression_mask: Tensor | None) -> Tensor:
    """Return the mean of (B, N) over the real expressions, all of them without a mask (B, N)."""
    if expression_mask is None:
        return per_expression.mean()
    if expression_mask.shape != per_expression.shape:
        raise ValueError(
            f"expression_mask must be (B, N) = {tuple(per_expression.shape)}, "
            f"got {tuple(expression_mask.shape)}"
        )
    real = expression_mask.to(device=per_expression.device, dtype=torch.bool)
    # `where`, not a product: a padding row may hold anything, nan included.
    return torch.where(real, per_expression, 0.0).sum() / real.sum().clamp(min=1)


def check_range(targets: Tensor, beside: str = "") -> None:
    """Refuse targets that are not from 0 to 1, unless compiled; `beside`: what is known as well."""
    low, high = torch.aminmax(targets)
    refuse_if(
        ~((low >= -ROUNDING) & (high <= 1 + ROUNDING)),  # so that nan is refused
        lambda: ValueError(
            f"labels must lie between 0 and 1{beside}, got {low.item():g} to {high.item():g}: "
            f"divide masks of 0 and 255 by 255"
        ),
    )
