"""Referring segmentation: one mask per expression, the decoder of ETRIS; docs/method.md, 4, 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from bridger.bridgers.zoom import target_size
from bridger.config import Config, did_you_mean
from bridger.features import BridgedFeatures, EncoderSpec
from bridger.heads.alignment import GlobalAlignment, HierarchicalAlignment, LastMap
from bridger.heads.base import Head, HeadOutput
from bridger.heads.projector import Projector
from bridger.heads.registry import register_head

GATES = ["product", "residual", "attention"]
TEXTS = ["tokens", "sentence"]
ROUNDING = 1e-3  # how far resized labels may leave 0 to 1
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
        if isinstance(self.dice_weight, bool) or not 0 <= self.dice_weight < math.inf:
            raise ValueError(f"dice_weight must be a number, 0 or more, got {self.dice_weight!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        for name, known in (("gate", GATES), ("decoder_text", TEXTS)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown: {did_you_mean(str(value), known)}")


@register_head("referring_segmentation")
class ReferringSegmentationHead(Head):
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
            and, with labels, the loss.

        Raises:
            ValueError: the features are not those of `spec`, or labels have the wrong shape.
        """
        self._check(features)
        rows = rearrange(
            self._logits(features).float(), "(b n) h w -> b n h w", n=features.num_expressions
        )
        if labels is None:
            return HeadOutput(rows)
        targets = mask_targets(labels, rows, features.image_size)
        loss = text_to_pixel_loss(rows, targets, expression_mask)
        if self.config.dice_weight:
            loss = loss + self.config.dice_weight * dice_loss(rows, targets, expression_mask)
        return HeadOutput(rows, loss)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each cell to lie in the object, (B, N, h, w)."""
        return logits.sigmoid()

    def _logits(self, features: BridgedFeatures) -> Tensor:
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
        logits: Tensor = self.projector(fused, sentence, size)
        return logits

    def _check(self, features: BridgedFeatures) -> None:
        spec = self.spec
        expected = (*spec.map_widths, spec.token_width, spec.sentence_width)
        found = (
            *(features_i.shape[1] for features_i in features.maps),
            features.tokens.shape[-1],
            features.sentence.shape[-1],
        )
        if found != expected:
            raise ValueError(
                f"this head was built for maps, tokens and a sentence of {expected} channels, but "
                f"got {found}: build it from the spec of the encoder that made them"
            )


def mask_targets(labels: Tensor, logits: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Bring masks to the logits' shape by nearest neighbours, as float32.

    Args:
        labels: (B, H, W) or (B, N, H, W), bool or from 0 to 1.
        logits: (B, N, h, w).
        image_size: the (H, W) that labels must have.

    Returns:
        The soft targets (B, N, h, w).

    Raises:
        ValueError: the shape is another one.
    """
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
    _check_range(targets)
    return loss


def dice_loss(logits: Tensor, targets: Tensor, expression_mask: Tensor | None = None) -> Tensor:
    """Return the Dice loss (Milletari et al., V-Net, 2016; 1 added above and below), a scalar.

        1 - (2 sum(p y) + 1) / (sum(p) + sum(y) + 1)

    with p the probabilities of an expression's cells and y their targets, averaged over the real
    expressions.

    Args:
        logits, targets, expression_mask: as in `text_to_pixel_loss`.
    """
    probabilities = logits.sigmoid()
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


def _check_range(targets: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    low, high = torch.stack(torch.aminmax(targets)).tolist()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # so that nan is refused
        raise ValueError(
            f"labels must lie between 0 and 1, got {low:g} to {high:g}: divide masks of 0 and 255 "
            f"by 255"
        )
