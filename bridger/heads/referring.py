"""Referring segmentation: one mask per expression, the decoder of ETRIS; docs/method.md, 4, 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from bridger.bridgers.zoom import target_size
from bridger.config import Config, did_you_mean
from bridger.features import BridgedFeatures, EncoderSpec
from bridger.heads.alignment import GlobalAlignment, HierarchicalAlignment, LastMap
from bridger.heads.base import HeadOutput
from bridger.heads.dense import DenseHead, Maps
from bridger.heads.losses import dice_loss, mask_targets, no_target_loss, text_to_pixel_loss
from bridger.heads.projector import Projector
from bridger.heads.registry import register_head
from bridger.predictions import Prediction
from bridger.texts import Texts

GATES = ["product", "residual", "attention"]
TEXTS = ["tokens", "sentence"]
THRESHOLD = 0.35  # the paper's
UPSAMPLING = 4  # of the projector: cells of the logits per cell of the fused map, in a row


@dataclass(frozen=True)
class ReferringConfig(Config):
    """Options of `ReferringSegmentationHead`.

    Attributes:
        width: D, channels of the fused map.
        ffn_width: hidden width of the global alignment's feed-forward nets; None: D.
        num_layers: layers of the global alignment.
        num_heads: its attention heads.
        dropout: its dropout, on attention weights too.
        hierarchical_alignment: fuse the maps of all stages under the sentence; off, only the last
            map is used.
        global_alignment: let every cell of the fused map read the text; off, the fused map goes
            straight to the projector.
        gate: how the sentence acts on a map: "product" (released code), "residual", or
            "attention" (the paper's words, see `HierarchicalAlignment`).
        decoder_text: what the global alignment reads: "tokens" (released code), or "sentence"
            (the paper's F_s).
        grid_stride: pixels per cell of the fused map, a multiple of 4; logits have a quarter of
            it. The paper's 16 suits objects of a hundred pixels; small pictures want less.
        dice_weight: of the Dice loss that is added to the paper's, in which every cell counts alike
            and small objects weigh little; 0: the paper's alone.
        no_target: score every expression for meaning nothing in the picture, as some of
            gRefCOCO's do, with a small classifier on the sentence and the mean of the aligned map.
        no_target_weight: of that score's binary cross-entropy in the loss; 0.1 as in ReLA (Liu et
            al., CVPR 2023).
        keep_inert: hold the gates' query and key weights, which have no effect, for the sake of
            released checkpoints.
    """

    width: int = 512
    ffn_width: int | None = None
    num_layers: int = 3
    num_heads: int = 8
    dropout: float = 0.1
    hierarchical_alignment: bool = True
    global_alignment: bool = True
    gate: str = "product"
    decoder_text: str = "tokens"
    grid_stride: int = 16
    dice_weight: float = 0.0
    no_target: bool = False
    no_target_weight: float = 0.1
    keep_inert: bool = False

    def __post_init__(self) -> None:
        if self.ffn_width is None:
            object.__setattr__(self, "ffn_width", self.width)
        for name in ("width", "ffn_width", "num_layers", "num_heads", "grid_stride"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.width % 4:
            raise ValueError(
                f"width must be a multiple of 4 (sines and cosines of rows and columns), "
                f"got {self.width}"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} does not split into num_heads={self.num_heads} equal parts: "
                f"change one of them"
            )
        if self.grid_stride % UPSAMPLING:
            raise ValueError(
                f"grid_stride must be a multiple of {UPSAMPLING}, since logits are "
                f"{UPSAMPLING} times as fine, got {self.grid_stride}"
            )
        for name in ("dice_weight", "no_target_weight"):
            value = getattr(self, name)
            if isinstance(value, bool) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number, 0 or more, got {value!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        for name, known in (("gate", GATES), ("decoder_text", TEXTS)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown: {did_you_mean(str(value), known)}")


@register_head("referring_segmentation")
class ReferringSegmentationHead(DenseHead):
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
        super().__init__(spec, config)
        tokens = config.decoder_text == "tokens"
        grid = (spec.map_widths, spec.map_strides)
        self.hierarchical_alignment: nn.Module = (
            HierarchicalAlignment(
                *grid,
                sentence_width=spec.sentence_width,
                width=config.width,
                out_stride=config.grid_stride,
                gate=config.gate,
                keep_inert=config.keep_inert,
            )
            if config.hierarchical_alignment
            else LastMap(*grid, width=config.width, out_stride=config.grid_stride)
        )
        self.global_alignment = (
            GlobalAlignment(
                text_width=spec.token_width if tokens else spec.sentence_width,
                width=config.width,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                ffn_width=config.ffn_width or config.width,
                dropout=config.dropout,
                single_key=not tokens,
            )
            if config.global_alignment
            else None
        )
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
        width = min(512, 64 * -(-spec.sentence_width // 64))
        return {"default": {"width": width}, "etris": {"width": 512, "keep_inert": True}}

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
        self.check_features(features)
        n = features.num_expressions
        masks, scores = self._logits(features)
        rows = rearrange(masks.float(), "(b n) h w -> b n h w", n=n)
        no_target = None if scores is None else rearrange(scores.float(), "(b n) -> b n", n=n)
        if labels is None:
            return HeadOutput(rows, no_target=no_target)
        targets = mask_targets(labels, rows, features.image_size)
        loss = text_to_pixel_loss(rows, targets, expression_mask)
        if self.config.dice_weight:
            loss = loss + self.config.dice_weight * dice_loss(rows, targets, expression_mask)
        if no_target is not None:
            scored = no_target_loss(no_target, labels, expression_mask)
            loss = loss + self.config.no_target_weight * scored
        return HeadOutput(rows, loss, no_target)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each cell to lie in the object, (B, N, h, w)."""
        return logits.sigmoid()

    def result(
        self,
        maps: Maps,
        texts: Texts,
        output: HeadOutput,
        index: int,
        threshold: float = THRESHOLD,
    ) -> Prediction:
        """Cut a picture's probabilities (N, h, w) at the threshold, 0 to 1."""
        scores = output.no_target
        none = None if scores is None else scores[index].sigmoid().cpu().numpy()
        return Prediction.from_probabilities(maps, threshold, none)

    def _logits(self, features: BridgedFeatures) -> tuple[Tensor, Tensor | None]:
        # Towers may run in half precision; the head keeps its own.
        dtype = self.projector.sentence.weight.dtype
        maps = [features_i.to(dtype) for features_i in features.maps]
        sentence = features.sentence.to(dtype)
        stride = self.config.grid_stride
        fused = self.hierarchical_alignment(
            maps, sentence, target_size(features.image_size, stride)
        )
        if self.global_alignment is not None:
            text, text_mask = features.tokens.to(dtype), features.token_mask
            if self.config.decoder_text == "sentence":
                text, text_mask = rearrange(sentence, "b c -> b 1 c"), text_mask[:, :1]
            fused = self.global_alignment(fused, text, text_mask)
        size = target_size(features.image_size, stride // UPSAMPLING)
        scores = None
        if self.no_target is not None:
            pooled = torch.cat([fused.mean(dim=(-2, -1)), sentence], dim=-1)
            scores = rearrange(self.no_target(pooled), "b 1 -> b")
        return self.projector(fused, sentence, size), scores
