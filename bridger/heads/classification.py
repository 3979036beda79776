"""Classification: a score for every class of the picture, by its name or from a fixed list."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bridger.config import check_flag, check_number, check_share, check_whole
from bridger.features import BridgedFeatures, EncoderSpec
from bridger.heads.base import HeadOutput
from bridger.heads.class_losses import multi_label_loss, one_label_loss
from bridger.heads.class_names import (
    ClassNamesConfig,
    ClassNamesHead,
    Mentioned,
    TextEmbedding,
    check_scores,
    mean_by_class,
    read_mentions,
    real_classes,
)
from bridger.heads.registry import register_head
from bridger.predictions import ClassificationPrediction
from bridger.processing import Placement, Processor
from bridger.texts import Texts

CLIP_SCALE = 100.0  # the most that CLIP allows itself, and where its training ends
FRESH_SCALE = 1 / 0.07  # where CLIP's training begins
CLIP_THRESHOLD = 0.25  # about the cosine from which CLIP's pictures and captions belong together
THRESHOLD = 0.5


@dataclass(frozen=True)
class ClassificationConfig(ClassNamesConfig):
    """Options of `ClassificationHead`, beside those of all heads that read class names.

    Attributes:
        scores: "text", cosines of pictures and names, for any list of classes; or "fixed", one
            linear layer on the picture's feature, for `classes` alone.
        multi_label: a picture may show any number of the classes: each has a probability of its
            own; off, one of them, and their probabilities sum to 1.
        label_smoothing: share of the label that goes to all classes alike (Szegedy et al., CVPR
            2016); multi-label, to "shown" and "not shown" alike.
        logit_scale: where the learned scale of the cosines begins; None: where the towers share a
            space, the scale that they were trained with, or 100 where only parts of their model
            were given; where they share none, CLIP's first, 1/0.07.
        width: D, of the space that is learned where the towers share none.
    """

    scores: str = "text"
    multi_label: bool = False
    label_smoothing: float = 0.0
    logit_scale: float | None = None
    width: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scores(self.scores, self.classes)
        check_flag("multi_label", self.multi_label)
        check_share("label_smoothing", self.label_smoothing)
        if self.logit_scale is not None:
            check_number("logit_scale", self.logit_scale)
            if not self.logit_scale:
                raise ValueError(f"logit_scale must be a positive number, got {self.logit_scale}")
        check_whole("width", self.width)


@dataclass
class ClassificationOutput(HeadOutput):
    """Scores (B, K) of every class; minus infinity at the padding of ragged lists of classes.

    Attributes:
        rows: how many sequences of text the picture was seen with.
    """

    rows: int = 1


@register_head("classification")
class ClassificationHead(ClassNamesHead):
    """Says which classes a picture shows.

    With scores="text" on towers that share a space, a fresh head on fresh Bridgers gives the very
    scores of zero-shot CLIP (Radford et al., ICML 2021), averaged over templates as there:

        logit_k = scale * cos(image_k, text_k)
        image_k: mean over the mentions of class k of the picture's feature, as seen with them
        text_k:  mean over them of sentence + P_t(mean of their tokens); P_t begins as zero

    each feature of unit length. On other towers both sides are projected to a learned space. With
    multi_label a learned threshold is taken off the cosines. With scores="fixed" it is a linear
    probe, zero at first, on the picture's feature: its own mean over the rows of text.

    The picture's feature is the vision tower's own pooled one or, where it has none, the mean of
    the last map. Names that are packed into one text (text_mode="joint") share its sentence, so
    what tells them apart must be learned first.

    Labels are class numbers (B,) int64, IGNORE where a picture does not count, or with multi_label
    (B, K) float from 0 to 1, or bool.

    Args:
        spec: what the bridged towers offer.
        config: the options.
    """

    pipeline_tag = "zero-shot-image-classification"
    config_class = ClassificationConfig
    config: ClassificationConfig

    def __init__(self, spec: EncoderSpec, config: ClassificationConfig) -> None:
        super().__init__(spec, config)
        width = spec.pooled_width or spec.map_widths[-1]
        self.scores: TextScores | LinearScores = (
            LinearScores(width, len(config.classes))
            if self.fixed_classes
            else TextScores(spec, width, config)
        )

    @classmethod
    def presets(cls, spec: EncoderSpec) -> Mapping[str, Mapping[str, Any]]:
        """Return the preset's options: D is that of the sentence, but at most 512."""
        return {"default": {"width": min(512, spec.sentence_width)}}

    @property
    def fixed_classes(self) -> bool:
        """Whether scores are linear; see `ClassNamesHead.fixed_classes`."""
        return self.config.scores == "fixed"

    def forward(
        self,
        features: BridgedFeatures,
        labels: Tensor | None = None,
        expression_mask: Tensor | None = None,
    ) -> ClassificationOutput:
        """Score the classes.

        Args:
            features: of B images with N texts each.
            labels: (B,) or (B, K).
            expression_mask: (B, N), false at the padding of a ragged N.

        Returns:
            Logits (B, K) in float32, and with labels the loss.

        Raises:
            TypeError: labels of another kind of number.
            ValueError: the features are not those of `spec`, labels have the wrong shape or name
                no class, or texts are not about all of a fixed list of classes.
        """
        self.check_features(features, expression_mask)
        if expression_mask is not None:
            expression_mask = expression_mask.to(features.sentence.device)
        n = features.num_expressions
        image = rearrange(self._image(features), "(b n) c -> b n c", n=n)
        if isinstance(self.scores, LinearScores):
            logits, real = self.scores(image, expression_mask).float(), None
            asked = features.mentions.num_classes if features.mentions else n
            if labels is not None and asked != len(self.config.classes):
                raise ValueError(
                    f"linear scores are of {len(self.config.classes)} fixed classes, but the texts "
                    f"are about {asked}: ask every picture about all of them, in their order"
                )
        else:
            read = read_mentions(features)
            logits, real = self.scores(image, read), real_classes(read.mentions, expression_mask)
            if real is not None:
                logits = logits.masked_fill(~real, -math.inf)
        if labels is None:
            return ClassificationOutput(logits, rows=n)
        loss = multi_label_loss if self.config.multi_label else one_label_loss
        smoothing = self.config.label_smoothing
        return ClassificationOutput(logits, loss(logits, labels, real, smoothing), rows=n)

    def merge(self, outputs: Sequence[HeadOutput]) -> HeadOutput:
        """Join chunks: their classes, or of fixed classes the mean over all rows of text."""
        if len(outputs) == 1:
            return outputs[0]
        rows = [output.rows for output in outputs if isinstance(output, ClassificationOutput)]
        if not self.fixed_classes:
            logits = torch.cat([output.logits for output in outputs], dim=1)
            return ClassificationOutput(logits, rows=sum(rows))
        weighted = [output.logits * count for output, count in zip(outputs, rows, strict=True)]
        return ClassificationOutput(torch.stack(weighted).sum(dim=0) / sum(rows), rows=sum(rows))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each class, (B, K).

        Args:
            logits: (B, K).
        """
        return logits.sigmoid() if self.config.multi_label else logits.softmax(dim=-1)

    def results(
        self,
        output: HeadOutput,
        processor: Processor,
        placements: Sequence[Placement],
        texts: Texts,
        threshold: float | None = None,
    ) -> list[ClassificationPrediction]:
        """Name the probabilities.

        Args:
            output: of B pictures.
            processor: not read.
            placements: not read, since a picture's size plays no part.
            texts: what was asked.
            threshold: from 0 to 1, which classes count as found; None: the best one alone, or with
                multi_label those from 0.5 on.
        """
        if threshold is None and self.config.multi_label:
            threshold = THRESHOLD
        return [
            ClassificationPrediction(texts.names, probabilities, threshold)
            for probabilities in self.probabilities(output.logits.float()).cpu().numpy()
        ]

    def _image(self, features: BridgedFeatures) -> Tensor:
        pooled = features.pooled
        if self.spec.pooled_width is None:
            pooled = features.maps[-1].mean(dim=(-2, -1))
        found = None if pooled is None else pooled.shape[-1]
        expected = self.spec.pooled_width or self.spec.map_widths[-1]
        if pooled is None or found != expected:
            raise ValueError(
                f"this head was built for a pooled feature of {expected} channels, but got "
                f"{found}: build it from the spec of the encoder that made them"
            )
        # Towers may run in half precision; the head keeps its own.
        return pooled.to(next(self.parameters()).dtype)


class TextScores(nn.Module):
    """Scaled cosines (B, K) of a picture and the texts of its classes.

    Args:
        spec: what the bridged towers offer.
        image_width: channels of the picture's feature.
        config: the head's options.
    """

    def __init__(self, spec: EncoderSpec, image_width: int, config: ClassificationConfig) -> None:
        super().__init__()
        shared = spec.joint and image_width == spec.sentence_width
        width = image_width if shared else config.width
        self.image = nn.Identity() if shared else nn.Linear(image_width, width)
        self.text = TextEmbedding(spec, None if shared else width)
        own = (spec.logit_scale or CLIP_SCALE) if shared else FRESH_SCALE
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale or own)))
        threshold = CLIP_THRESHOLD if shared else 0.0
        if shared and spec.logit_bias is not None:  # SigLIP's sigmoid
            threshold = -spec.logit_bias / own
        # In the cosine's own unit, so that a step of the optimiser moves logits as it does there.
        self.threshold = nn.Parameter(torch.tensor(threshold)) if config.multi_label else None

    def forward(self, image: Tensor, read: Mentioned) -> Tensor:
        """Compare pictures (B, N, C), as seen with each of N texts, with what was read of these."""
        pictures, texts = self.image(image), self.text(read)
        pictures = F.normalize(pictures.float(), dim=-1)[:, read.mentions.rows]
        texts = F.normalize(texts.float(), dim=-1)
        cosines = F.cosine_similarity(
            mean_by_class(pictures, read.mentions), mean_by_class(texts, read.mentions), dim=-1
        )
        if self.threshold is not None:
            cosines = cosines - self.threshold
        return self.log_scale.float().exp() * cosines


class LinearScores(nn.Module):
    """Linear scores (B, K) of fixed classes, zero at first.

    Features are standardised, so that one learning rate suits all towers; the mean over the rows of
    text is that of their scores too.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.linear = nn.Linear(width, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, image: Tensor, expression_mask: Tensor | None) -> Tensor:
        """Score pictures (B, N, C), as seen with each of N texts, of which some may be padding."""
        seen = self.norm(image)
        if expression_mask is None:
            mean = seen.mean(dim=1)
        else:
            weights = expression_mask / expression_mask.sum(dim=1, keepdim=True)
            mean = (seen * weights[..., None].to(seen.dtype)).sum(dim=1)
        scores: Tensor = self.linear(mean)
        return scores
