"""Semantic segmentation: a class for every pixel, of any list of class names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from bridger.features import BridgedFeatures, EncoderSpec, Mentions
from bridger.heads.base import HeadOutput
from bridger.heads.class_names import (
    ClassNamesConfig,
    ClassNamesHead,
    Mentioned,
    TextEmbedding,
    mean_by_class,
    read_mentions,
    real_classes,
)
from bridger.heads.dense import DenseHead
from bridger.heads.fusing import FusingConfig, FusingHead
from bridger.heads.layers import resize
from bridger.heads.losses import dice_loss, mask_targets, text_to_pixel_loss
from bridger.heads.projector import PRIOR, Enlarger
from bridger.heads.registry import register_head
from bridger.heads.semantic_losses import (
    label_cross_entropy,
    label_dice,
    label_targets,
    with_background,
)
from bridger.predictions import SemanticPrediction
from bridger.predictions.maps import PictureMaps
from bridger.texts import Texts

THRESHOLD = 0.5  # of several classes per pixel, each for itself


@dataclass(frozen=True)
class SemanticConfig(FusingConfig, ClassNamesConfig):
    """Options of `SemanticSegmentationHead`, beside those of the fused map and of class names.

    Attributes:
        multi_label: a pixel may belong to several classes, each of which is judged for itself.
        background: with one class per pixel: a pixel may belong to none of the classes. Off,
            one of the classes always wins, and pixels labelled BACKGROUND do not count in the
            loss.
        dice_weight: of the Dice loss that is added to the cross-entropy, in which every pixel
            counts alike and small objects weigh little; 0: the cross-entropy alone.
        zero_shot: add the cosine of the last map's cells and the sentence, with a weight that is
            learned, where both live in one joint space.
    """

    multi_label: bool = False
    background: bool = True
    dice_weight: float = 1.0
    zero_shot: bool = True

    def __post_init__(self) -> None:
        FusingConfig.__post_init__(self)
        ClassNamesConfig.__post_init__(self)
        value = self.dice_weight
        if isinstance(value, bool) or not 0 <= value < math.inf:
            raise ValueError(f"dice_weight must be a number, 0 or more, got {value!r}")


@register_head("semantic_segmentation")
class SemanticSegmentationHead(FusingHead, DenseHead, ClassNamesHead):
    """Gives every pixel one of K classes, or with `multi_label` each class that is there.

        E = enlarge(fuse(maps, text))                   pixel embeddings of each row of text
        T = P_s(sentence of its row) + P_t(mean of its tokens)          for each mention
        z_k = mean over the mentions of k of <E of the mention's row, T> / sqrt(D/2) + b

    With one class per pixel, z_k is the logit of class k less the background's, whose own logit
    is thus 0, wherever K classes are scored in chunks: chunks are simply joined, and the softmax
    over [z_1, ..., z_K, 0] follows.

    Presets: "default", as wide as the sentence feature but at most 512, in whole 64s.

    Labels are (B, H, W) integers at the size of the picture, 0 to K - 1, BACKGROUND or IGNORE of
    `bridger.labels`; or with `multi_label` (B, K, H, W) from 0 to 1. Logits are
    (B, K, ceil(H/4), ceil(W/4)) at the default grid_stride.

    Args:
        spec: what the bridged towers offer.
        config: the options.
    """

    config_class = SemanticConfig
    config: SemanticConfig

    def __init__(self, spec: EncoderSpec, config: SemanticConfig) -> None:
        super().__init__(spec, config)
        self.enlarger = Enlarger(config.width)
        self.embedding = TextEmbedding(spec, config.width // 2)
        # Without a background only differences of logits count.
        self.bias = (
            nn.Parameter(torch.tensor(math.log(PRIOR / (1 - PRIOR))))
            if config.background or config.multi_label
            else None
        )
        self.zero_shot = (
            nn.Parameter(torch.tensor(1.0)) if config.zero_shot and spec.joint else None
        )

    def forward(
        self,
        features: BridgedFeatures,
        labels: Tensor | None = None,
        expression_mask: Tensor | None = None,
    ) -> HeadOutput:
        """Segment.

        Args:
            features: of B images, with K classes mentioned in N expressions each.
            labels: see the class.
            expression_mask: (B, N), false at the padding of a ragged N.

        Returns:
            Logits (B, K, ceil(4H/s), ceil(4W/s)) in float32, with s the config's grid_stride,
            -inf at classes that are padding; and with labels the loss.

        Raises:
            TypeError: labels are those of the other kind, one or several classes per pixel.
            ValueError: the features are not those of `spec`, or labels have the wrong shape or
                mean no class.
        """
        self.check_features(features)
        rows = (len(features.sentence) // features.num_expressions, features.num_expressions)
        if expression_mask is not None:
            if tuple(expression_mask.shape) != rows:
                raise ValueError(
                    f"expression_mask must be (B, N) = {rows}, got {tuple(expression_mask.shape)}"
                )
            expression_mask = expression_mask.to(features.sentence.device)
        read = read_mentions(features)
        real = real_classes(read.mentions, expression_mask)
        logits = self._logits(features, read).float()
        if real is not None:
            logits = logits.masked_fill(rearrange(~real, "b k -> b k 1 1"), -math.inf)
        if labels is None:
            return HeadOutput(logits)
        losses = self._losses(logits, labels, features.image_size, real)
        return HeadOutput(logits, torch.stack([*losses.values()]).sum(), losses=losses)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each cell to belong to each class, (B, K, h, w).

        With one class per pixel the background's is what they lack to 1.
        """
        if self.config.multi_label:
            return logits.sigmoid()
        if not self.config.background:
            return logits.softmax(dim=1)
        return with_background(logits).softmax(dim=1)[:, :-1]

    def result(
        self,
        maps: PictureMaps,
        texts: Texts,
        output: HeadOutput,
        index: int,
        threshold: float | None = None,
    ) -> SemanticPrediction:
        """Give each pixel its class or its classes.

        Args:
            maps, texts, output, index: see `DenseHead.result`.
            threshold: what is not more probable is none of the classes; None: 0.5 with
                `multi_label`, otherwise the most probable class counts whatever it has.
        """
        if self.config.multi_label:
            cut = THRESHOLD if threshold is None else threshold
            return SemanticPrediction.multi_label(maps, texts.names, cut)
        return SemanticPrediction.single_label(
            maps, texts.names, self.config.background, threshold or 0.0
        )

    def _logits(self, features: BridgedFeatures, read: Mentioned) -> Tensor:
        """Return (B, K, h, w)."""
        fused = self.fuse(features, self.enlarger.last.weight.dtype)
        cells = self.enlarger.enlarge(fused, self.logit_size(features))
        cells = rearrange(cells, "(b n) d h w -> b n d h w", n=features.num_expressions)
        scores = score_mentions(cells, self.embedding(read), read.mentions)
        logits = mean_by_class(scores, read.mentions) * cells.shape[2] ** -0.5
        if self.zero_shot is not None:
            logits = logits + self.zero_shot * self._cosines(features, read, logits.shape[-2:])
        return logits if self.bias is None else logits + self.bias

    def _cosines(self, features: BridgedFeatures, read: Mentioned, size: torch.Size) -> Tensor:
        """Return the cosines of the last map and each class's sentences, (B, K, h, w)."""
        n = features.num_expressions
        last = F.normalize(features.maps[-1].float(), dim=1)
        cosines = einsum(
            last, F.normalize(features.sentence.float(), dim=1), "r c h w, r c -> r h w"
        )
        cosines = rearrange(cosines, "(b n) h w -> b n h w", n=n)
        return mean_by_class(
            resize(cosines, (size[0], size[1]))[:, read.mentions.rows], read.mentions
        )

    def _losses(
        self,
        logits: Tensor,
        labels: Tensor,
        image_size: tuple[int, int],
        real: Tensor | None,
    ) -> dict[str, Tensor]:
        """Return the weighted summands of the loss by name."""
        weight, background = self.config.dice_weight, self.config.background
        if self.config.multi_label:
            if not (labels.is_floating_point() or labels.dtype == torch.bool):
                raise TypeError(
                    f"labels must be masks (B, K, H, W), bool or from 0 to 1, got {labels.dtype}: "
                    f"this head was built with multi_label=True; a label map with one class per "
                    f"pixel needs a head without it"
                )
            masks = mask_targets(labels, logits, image_size)
            losses = {"cross_entropy": text_to_pixel_loss(logits, masks, real)}
            if weight:
                losses["dice"] = weight * dice_loss(logits, masks, real)
            return losses
        targets = label_targets(labels, logits, image_size, real)
        losses = {"cross_entropy": label_cross_entropy(logits, targets, background)}
        if weight:
            probabilities = self.probabilities(logits)
            losses["dice"] = weight * label_dice(probabilities, targets, background, real)
        return losses


def score_mentions(cells: Tensor, embeddings: Tensor, mentions: Mentions) -> Tensor:
    """Return the product of each mention with the cells of its own row, (B, M, h, w).

    Mentions are packed by row, so that the cells, which are by far the largest, are not repeated
    for each mention.

    Args:
        cells: (B, N, D, h, w).
        embeddings: (B, M, D).
        mentions: M of them in N rows.
    """
    rows = mentions.rows
    counts = torch.bincount(rows, minlength=cells.shape[1])
    order = rows.argsort(stable=True)
    places = torch.empty_like(rows)
    each = torch.arange(len(rows), device=rows.device)
    places[order] = each - (counts.cumsum(0) - counts)[rows[order]]
    packed = embeddings.new_zeros(
        len(embeddings), len(counts), int(counts.max()), embeddings.shape[-1]
    )
    packed[:, rows, places] = embeddings
    scores: Tensor = einsum(cells, packed, "b n d h w, b n p d -> b n p h w")
    return scores[:, rows, places]
