"""Referring segmentation: one mask per expression, the decoder of ETRIS; docs/method.md, 4, 5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from bridger.config import check_flag, check_number
from bridger.features import BridgedFeatures, EncoderSpec
from bridger.heads.base import HeadOutput
from bridger.heads.fusing import FusingConfig, FusingHead
from bridger.heads.losses import dice_loss, mask_targets, no_target_loss, text_to_pixel_loss
from bridger.heads.masks import MaskHead
from bridger.heads.projector import Projector
from bridger.heads.registry import register_head


@dataclass(frozen=True)
class ReferringConfig(FusingConfig):
    """Options of `ReferringSegmentationHead`, beside those of the fused map.

    Attributes:
        dice_weight: of the Dice loss that is added to the paper's, in which every cell counts alike
            and small objects weigh little; 0: the paper's alone.
        no_target: score every expression for meaning nothing in the picture, as some of
            gRefCOCO's do, with a small classifier on the sentence and the mean of the aligned map.
        no_target_weight: of that score's binary cross-entropy in the loss; 0.1 as in ReLA (Liu et
            al., CVPR 2023).
        keep_inert: hold the gates' query and key weights, which have no effect, for the sake of
            released checkpoints.
    """

    dice_weight: float = 0.0
    no_target: bool = False
    no_target_weight: float = 0.1
    keep_inert: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dice_weight", "no_target_weight"):
            check_number(name, getattr(self, name))
        for name in ("no_target", "keep_inert"):
            check_flag(name, getattr(self, name))


@register_head("referring_segmentation")
class ReferringSegmentationHead(FusingHead, MaskHead):
    """Segments the object that each expression means.

    Presets: "default", as wide as the sentence feature but at most 512, in whole 64s; "etris",
    the released code.

    Labels are masks (B, H, W) or (B, N, H, W) at the size of the picture, bool or with values
    from 0 to 1 (soft edges). Logits are (B, N, ceil(H/4), ceil(W/4)) at the default grid_stride.

    Args:
        spec: what the bridged towers offer.
        config: the options.
    """

    config_class = ReferringConfig
    config: ReferringConfig

    def __init__(self, spec: EncoderSpec, config: ReferringConfig) -> None:
        super().__init__(spec, config, config.keep_inert)
        self.projector = Projector(spec.sentence_width, config.width)
        # Last, and only where asked for: other heads draw the same numbers when they are built.
        self.no_target = (
            nn.Sequential(
                nn.Linear(config.width + spec.sentence_width, config.width),
                nn.ReLU(),
                nn.Linear(config.width, 1),
            )
            if config.no_target
            else None
        )

    @classmethod
    def presets(cls, spec: EncoderSpec) -> Mapping[str, Mapping[str, Any]]:
        """Return the presets' options."""
        return {**super().presets(spec), "etris": {"width": 512, "keep_inert": True}}

    def forward(
        self,
        features: BridgedFeatures,
        labels: Tensor | None = None,
        expression_mask: Tensor | None = None,
    ) -> HeadOutput:
        """Segment.

        Args:
            features: of B images with N expressions each.
            labels: (B, H, W) or (B, N, H, W).
            expression_mask: (B, N), false at the padding of a ragged N.

        Returns:
            Logits (B, N, ceil(4H/s), ceil(4W/s)) in float32, with s the config's grid_stride,
            with labels the loss, and with the option `no_target` its logits (B, N).

        Raises:
            ValueError: the features are not those of `spec`, or labels have the wrong shape.
        """
        self.check_features(features, expression_mask)
        n = features.num_expressions
        masks, scores = self._logits(features)
        rows = rearrange(masks.float(), "(b n) h w -> b n h w", n=n)
        no_target = None if scores is None else rearrange(scores.float(), "(b n) -> b n", n=n)
        if labels is None:
            return HeadOutput(rows, no_target=no_target)
        targets = mask_targets(labels, rows, features.image_size)
        loss = text_to_pixel_loss(rows, targets, expression_mask)
        losses = {"cross_entropy": loss}
        if self.config.dice_weight:
            dice = dice_loss(rows, targets, expression_mask)
            losses["dice"] = self.config.dice_weight * dice
            loss = loss + losses["dice"]
        if no_target is not None:
            scored = no_target_loss(no_target, labels, expression_mask)
            losses["no_target"] = self.config.no_target_weight * scored
            loss = loss + losses["no_target"]
        return HeadOutput(rows, loss, no_target, losses if len(losses) > 1 else {})

    def _logits(self, features: BridgedFeatures) -> tuple[Tensor, Tensor | None]:
        dtype = self.projector.sentence.weight.dtype
        sentence = features.sentence.to(dtype)
        fused = self.fuse(features, dtype)
        scores = None
        if self.no_target is not None:
            pooled = torch.cat([fused.mean(dim=(-2, -1)), sentence], dim=-1)
            scores = rearrange(self.no_target(pooled), "b 1 -> b")
        return self.projector(fused, sentence, self.logit_size(features)), scores
