"""Semantic segmentation: a class for every pixel, of any list of class names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from bridger.config import check_flag, check_number
from bridger.features import BridgedFeatures, EncoderSpec, Mentions
from bridger.heads.base import HeadOutput
from bridger.heads.class_names import (
    ClassNamesConfig,
    ClassNamesHead,
    Mentioned,
    TextEmbedding,
    read_mentions,
    real_classes,
)
from bridger.heads.dense import DenseHead
from bridger.heads.fusing import FusingConfig, FusingHead
from bridger.heads.layers import resize
from bridger.heads.projector import PRIOR, Enlarger
from bridger.heads.registry import register_head
from bridger.heads.semantic_losses import (
    class_masks,
    label_cross_entropy,
    label_dice,
    label_targets,
    mask_cross_entropy,
    mask_dice,
    with_background,
)
from bridger.labels import check_tensor
from bridger.predictions import SemanticPrediction
from bridger.predictions.maps import PictureMaps
from bridger.texts import Texts

THRESHOLD = 0.5  # of several classes per pixel, each for itself
COSINE_SCALE = 10.0  # of cosines at the start; with a CLIP's own of 100 nothing else would count


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
        zero_shot: where the last map and the sentence live in one joint space, add the cosine of
            its cells and the sentences with a weight that is learned, in the manner of MaskCLIP
            (Zhou et al., ECCV 2022). Names packed into one sequence share their sentence, and
            thus this score. On Tiny CLIP, whose last map has a cell per 32 pixels, it changed
            nothing that could be told from chance.
    """

    multi_label: bool = False
    background: bool = True
    dice_weight: float = 1.0
    zero_shot: bool = False

    def __post_init__(self) -> None:
        FusingConfig.__post_init__(self)
        ClassNamesConfig.__post_init__(self)
        check_number("dice_weight", self.dice_weight)
        for name in ("multi_label", "background", "zero_shot"):
            check_flag(name, getattr(self, name))


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
    `bridger.labels`; or with `multi_label` (B, K, H, W), bool or from 0 to 1, with IGNORE as a
    float, -100.0, where it does not count whether the pixel belongs to the class. Logits are
    (B, K, ceil(H/4), ceil(W/4)) at the default grid_stride.

    Args:
        spec: what the bridged towers offer.
        config: the options.
    """

    pipeline_tag = "image-segmentation"
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
        self.check_features(features, expression_mask)
        if expression_mask is not None:
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
            maps: see `DenseHead.result`, as for the next three.
            texts: what was asked.
            output: where the maps come from.
            index: number of the picture in it.
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
        n = features.num_expressions
        fused = self.fuse(features, self.enlarger.last.weight.dtype)
        cells = self.enlarger.enlarge(fused, self.logit_size(features))
        cells = rearrange(cells, "(b n) d h w -> b n d h w", n=n)
        texts = by_row_and_class(self.embedding(read), read.mentions, n)
        texts, bias = self.enlarger.through_last(texts)
        logits: Tensor = einsum(cells, texts, "b n d h w, b n k d -> b k h w")
        logits = logits + rearrange(bias.sum(dim=1), "b k -> b k 1 1")
        logits = logits * cells.shape[2] ** -0.5
        if self.zero_shot is not None:
            cosines = rearrange(self._cosines(features), "(b n) h w -> b n h w", n=n)
            ones = cosines.new_ones(1, len(read.mentions.rows), 1)
            shares = by_row_and_class(ones, read.mentions, n)
            scores = einsum(cosines, shares[0, ..., 0], "b n h w, n k -> b k h w")
            scores = resize(scores, self.logit_size(features))
            logits = logits + COSINE_SCALE * self.zero_shot * scores
        if self.bias is not None:
            logits = logits + self.bias
        return logits

    def _cosines(self, features: BridgedFeatures) -> Tensor:
        """Return the cosine of each cell of the last map and the sentence, (B*N, h', w')."""
        last = F.normalize(features.maps[-1].float(), dim=1)
        sentence = F.normalize(features.sentence.float(), dim=1)
        cosines: Tensor = einsum(last, sentence, "r c h w, r c -> r h w")
        return cosines

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
            check_tensor(labels, "masks (B, K, H, W)")
            if not (labels.is_floating_point() or labels.dtype == torch.bool):
                raise TypeError(
                    f"labels must be masks (B, K, H, W), bool or from 0 to 1, got {labels.dtype}: "
                    f"this head was built with multi_label=True; a label map with one class per "
                    f"pixel needs a head without it"
                )
            masks, counts = class_masks(labels, logits, image_size, real)
            losses = {"cross_entropy": mask_cross_entropy(logits, masks, counts)}
            if weight:
                losses["dice"] = weight * mask_dice(logits, masks, counts, real)
            return losses
        targets = label_targets(labels, logits, image_size, real)
        losses = {"cross_entropy": label_cross_entropy(logits, targets, background)}
        if weight:
            probabilities = self.probabilities(logits)
            losses["dice"] = weight * label_dice(probabilities, targets, background, real)
        return losses


def by_row_and_class(values: Tensor, mentions: Mentions, rows: int) -> Tensor:
    """Return the sum of each class's mentions in each row over the number of all its mentions.

    A mean of scores is linear in the text, so that rows need not be repeated for each mention: a
    product with this, summed over the rows, is the mean over a class's mentions.

    Args:
        values: (B, M, D).
        mentions: M of them.
        rows: N.

    Returns:
        (B, N, K, D), zero where a row does not mention a class.
    """
    k = mentions.num_classes
    counts = values.new_zeros(k).index_add(0, mentions.classes, values.new_ones(values.shape[1]))
    shares = values / counts[mentions.classes, None]
    sums = values.new_zeros(values.shape[0], rows * k, values.shape[2])
    sums = sums.index_add(1, mentions.rows * k + mentions.classes, shares)
    return rearrange(sums, "b (n k) d -> b n k d", n=rows)
