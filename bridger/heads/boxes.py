"""Heads that find boxes: a pyramid of the maps, and torchvision's FCOS on every row of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from bridger.config import Config, did_you_mean
from bridger.features import BridgedFeatures, EncoderSpec
from bridger.heads.base import Head, HeadOutput
from bridger.heads.box_labels import NEVER, Boxes, SparingCrowds, check_boxes, row_targets
from bridger.heads.class_names import Mentioned, TextEmbedding, mean_by_class, read_mentions
from bridger.heads.pairs import Pairs
from bridger.heads.pyramid import EXTRA_LEVELS, GROUPS, Pyramid, anchor_boxes

PRIOR = 0.01  # probability of a fresh head that a cell shows a class, as in torchvision
FRESH_SCALE = 10.0  # of the cosines of cells and texts, to begin with
LOSSES = {
    "classification": "classification",
    "bbox_regression": "boxes",
    "bbox_ctrness": "centerness",
}
"""What torchvision calls the summands of the loss, and what they are called here."""


@dataclass(frozen=True)
class BoxConfig(Config):
    """Options of all heads that find boxes.

    Attributes:
        width: D, channels of the levels, a multiple of 32.
        num_convs: convolutions of the towers before classes and boxes are read off; FCOS has 4.
        extra_levels: coarser levels beyond the maps' own, for objects of several hundred pixels:
            "none", "pool" or "p6p7"; see `Pyramid`.
    """

    width: int = 256
    num_convs: int = 2
    extra_levels: str = "none"

    def __post_init__(self) -> None:
        for name, least in (("width", GROUPS), ("num_convs", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number from {least} on, got {value!r}")
        if self.width % GROUPS:
            raise ValueError(f"width must be a multiple of {GROUPS}, got {self.width}")
        if self.extra_levels not in EXTRA_LEVELS:
            near = did_you_mean(str(self.extra_levels), list(EXTRA_LEVELS))
            raise ValueError(f"extra_levels={self.extra_levels!r} is unknown: {near}")


@dataclass(kw_only=True)
class BoxOutput(HeadOutput):
    """Scores and boxes of A cells, those of all levels one after the other.

    Logits are (B, P, A), one for each pair of a class and a row that mentions it, in the order of
    the classes: P = K where each class has one row.

    Attributes:
        regression: (B, S, A, 4), from the cell's middle to the box's left, upper, right and lower
            edge, in sides of its anchor.
        centerness: (B, S, A) logits.
        pairs: which row answers about which class.
        anchors: (A_l, 4) of every level, in pixels of the input.
    """

    regression: Tensor
    centerness: Tensor
    pairs: Pairs
    anchors: list[Tensor]


class BoxHead(Head):
    """Finds boxes by FCOS (Tian et al., ICCV 2019), of which torchvision's parts do the work.

    Every row is an image to FCOS, and the classes of that image are those that the row mentions. A
    cell of a row scores for a class by its likeness to the class's text in that row,

        logit = exp(t) * cos(cell, text) + b,

        text = mean of `TextEmbedding` over the row's mentions of the class

    or by a convolution with fixed classes as in FCOS itself. A mean is thus taken of the synonyms
    that are packed into one row. Where several rows mention a class (templates, and synonyms where
    each is a row of its own), each row finds boxes by itself, and NMS joins them: of boxes that
    overlap the best one is left, much like a maximum. Matching, losses (focal, GIoU, centerness),
    box coding, NMS and the FPN are torchvision's.

    Labels are a list of B dicts {"boxes": (n, 4) float, x0 y0 x1 y1 in pixels of the input,
    "labels": (n,) int64 class numbers, "crowd": (n,) bool, optional}; n may be 0. Crowds are no
    objects, and cells inside one are not told to be background for its class. A box that holds no
    cell's middle, as may be where it is smaller than the finest stride, has no say.

    Args:
        spec: what the bridged towers offer.
        config: the options.
        fixed: how many fixed classes there are; 0: classes are compared with their texts.
    """

    config: BoxConfig

    def __init__(self, spec: EncoderSpec, config: BoxConfig, fixed: int = 0) -> None:
        from torchvision.models.detection.fcos import FCOSHead

        super().__init__(spec, config)
        self.fixed = fixed
        self.pyramid = Pyramid(
            spec.map_widths,
            spec.map_strides,
            spec.sentence_width,
            config.width,
            config.extra_levels,
        )
        self.parts = FCOSHead(config.width, 1, fixed or config.width, config.num_convs)
        if not fixed:
            # It makes no logits then, but what is compared with the texts.
            self.parts.classification_head.cls_logits.reset_parameters()
            self.text_embedding = TextEmbedding(spec, config.width)
            self.log_scale = nn.Parameter(torch.tensor(math.log(FRESH_SCALE)))
            self.bias = nn.Parameter(torch.tensor(math.log(PRIOR / (1 - PRIOR))))

    @classmethod
    def presets(cls, spec: EncoderSpec) -> Mapping[str, Mapping[str, Any]]:
        """Return the preset's options: D is that of the sentence, in whole 32s, but at most 256."""
        return {"default": {"width": min(256, GROUPS * -(-spec.sentence_width // GROUPS))}}

    def forward(
        self,
        features: BridgedFeatures,
        labels: Sequence[Mapping[str, Tensor]] | None = None,
        expression_mask: Tensor | None = None,
    ) -> BoxOutput:
        """Score every cell and measure its box.

        Args:
            features: of B images with S rows each.
            labels: of B images, see above.
            expression_mask: (B, S), false at the padding of a ragged S: it finds nothing, and has
                no part in the loss.

        Returns:
            Logits, boxes, and with labels the loss and its summands: "classification", "boxes" and
            "centerness", each a sum over all rows per cell that is matched to a box.

        Raises:
            ValueError: the features are not those of `spec`, texts are about more than a fixed
                list of classes, or with labels about less, or labels are wrong (see
                `check_boxes`).
        """
        self.check_features(features, expression_mask)
        read = read_mentions(features)
        pairs, pair_of = Pairs.of(read.mentions, features.num_expressions)
        dtype = next(self.parts.parameters()).dtype  # towers may run in half precision
        levels = self.pyramid([m.to(dtype) for m in features.maps], features.sentence.to(dtype))
        cells, regression, centerness = (
            rearrange(values.float(), "(b s) a c -> b s a c", s=pairs.num_rows)
            for values in self.parts(levels).values()
        )
        logits = (
            self._fixed(cells, pairs, read.mentions.first_class, all_of_them=labels is not None)
            if self.fixed
            else self._text(cells, read, pairs, pair_of)
        )
        real = torch.ones(len(logits), pairs.num_rows, dtype=torch.bool, device=logits.device)
        if expression_mask is not None:
            real = expression_mask.to(real)
        logits = logits.masked_fill(~real[:, pairs.rows, None], NEVER)
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        output = BoxOutput(
            logits,
            regression=regression,
            centerness=rearrange(centerness, "b s a 1 -> b s a"),
            pairs=pairs,
            anchors=anchor_boxes(sizes, self.pyramid.strides, logits.device),
        )
        if labels is None:
            return output
        pictures = check_boxes(labels, len(logits), pairs.num_classes, features.image_size)
        real = real.cpu()
        self.check_labels(pictures, real)
        targets = row_targets(pictures, pairs, real, logits.device)
        output.losses = self._losses(output, targets)
        output.loss = torch.stack([*output.losses.values()]).sum()
        return output

    def check_labels(self, pictures: Sequence[Boxes], real: Tensor) -> None:
        """Refuse labels that it cannot be trained on; arguments as of `row_targets`.

        Args:
            pictures: the labels of each.
            real: (B, N), false at the padding of a ragged N.
        """

    def merge(self, outputs: Sequence[HeadOutput]) -> HeadOutput:
        """Join the outputs for one batch of pictures that was asked about texts in chunks."""
        parts = [output for output in outputs if isinstance(output, BoxOutput)]
        return BoxOutput(
            torch.cat([part.logits for part in parts], dim=1),
            regression=torch.cat([part.regression for part in parts], dim=1),
            centerness=torch.cat([part.centerness for part in parts], dim=1),
            pairs=Pairs.join([part.pairs for part in parts]),
            anchors=parts[0].anchors,
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability (B, P, A) of each cell to show the class.

        Args:
            logits: (B, P, A).
        """
        return logits.sigmoid()

    def _text(self, cells: Tensor, read: Mentioned, pairs: Pairs, pair_of: Tensor) -> Tensor:
        """Compare cells (B, S, A, D) with the texts: (B, P, A)."""
        mentions = replace(read.mentions, classes=pair_of, num_classes=len(pairs.rows))
        texts = F.normalize(mean_by_class(self.text_embedding(read).float(), mentions), dim=-1)
        cosines = torch.einsum(
            "b s c d, b s a d -> b s c a", pairs.per_row(texts, 0), F.normalize(cells, dim=-1)
        )
        return pairs.per_pair(cosines.float()) * self.log_scale.exp() + self.bias

    def _fixed(self, cells: Tensor, pairs: Pairs, first: int, all_of_them: bool) -> Tensor:
        """Take the scores of each row's classes from those of all classes, (B, S, A, K)."""
        asked = pairs.num_classes
        if first + asked > self.fixed or (all_of_them and asked != self.fixed):
            raise ValueError(
                f"this head has {self.fixed} fixed classes, but the texts are about {asked}, from "
                f"class {first} on: ask about all of its classes, in chunks only without labels"
            )
        return rearrange(cells, "b s a k -> b s k a")[:, pairs.rows, first + pairs.classes]

    def _losses(self, output: BoxOutput, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        fcos = make_fcos(SparingCrowds(self.parts))
        squares = torch.cat(output.anchors)
        levels = [len(level) for level in output.anchors]
        losses = fcos.compute_loss(targets, fcos_rows(output), [squares] * len(targets), levels)
        return {ours: losses[theirs] for theirs, ours in LOSSES.items()}


def fcos_rows(output: BoxOutput) -> dict[str, Tensor]:
    """Return what torchvision's FCOS takes from its head: (B*S, A, C), (B*S, A, 4), (B*S, A, 1)."""
    return {
        "cls_logits": rearrange(output.pairs.per_row(output.logits, NEVER), "b s c a -> (b s) a c"),
        "bbox_regression": rearrange(output.regression, "b s a c -> (b s) a c"),
        "bbox_ctrness": rearrange(output.centerness, "b s a -> (b s) a 1"),
    }


def find_boxes(
    output: BoxOutput, image_size: tuple[int, int], **options: Any
) -> list[list[dict[str, Tensor]]]:
    """Find the best boxes of every row by torchvision's FCOS.

    Args:
        output: of B pictures.
        image_size: (H, W) of the input.
        **options: `score_thresh`, `nms_thresh`, `detections_per_img`, `topk_candidates`, as of
            torchvision's FCOS.

    Returns:
        B lists of S dicts: "boxes" (n, 4) in pixels of the input, "scores" (n,), the best first,
        and "labels" (n,), numbers of classes.
    """
    fcos = make_fcos(nn.Identity(), **options)
    levels = [len(level) for level in output.anchors]
    split = {name: list(torch.split(v, levels, dim=1)) for name, v in fcos_rows(output).items()}
    rows = len(output.regression) * output.pairs.num_rows
    found = fcos.postprocess_detections(split, [output.anchors] * rows, [image_size] * rows)
    for index, row in enumerate(found):
        row["labels"] = output.pairs.class_of[index % output.pairs.num_rows][row["labels"]]
    return [found[i : i + output.pairs.num_rows] for i in range(0, rows, output.pairs.num_rows)]


def make_fcos(head: nn.Module, **options: Any) -> Any:
    """Return torchvision's FCOS without a backbone, for what it does after it."""
    from torchvision.models.detection import FCOS

    backbone = nn.Identity()
    backbone.out_channels = 1  # type: ignore[assignment]
    return FCOS(backbone, num_classes=1, head=head, **options)
