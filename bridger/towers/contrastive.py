"""What a contrastive model turns cosines of pictures and texts into logits with."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from bridger.towers.base import Tower, unwrap


class Contrast(NamedTuple):
    """logits = scale * cos(picture, text) + bias, as the model was trained.

    Attributes:
        scale: the inverse of the temperature; None where the towers know none.
        bias: SigLIP's; None where there is none.
    """

    scale: float | None
    bias: float | None


def read_contrast(*towers: Tower) -> Contrast:
    """Read both off the first tower that was given as a whole model.

    open_clip and transformers keep the logarithm of the scale in `logit_scale`.
    """
    for tower in towers:
        whole = unwrap(tower.given)
        scale, bias = (getattr(whole, name, None) for name in ("logit_scale", "logit_bias"))
        if isinstance(scale, Tensor) and scale.numel() == 1:
            return Contrast(
                scale.detach().float().exp().item(),
                bias.detach().float().item() if isinstance(bias, Tensor) else None,
            )
    return Contrast(None, None)
