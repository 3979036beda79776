"""What a bridged pair of towers offers to a head: declared widths, then the features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class EncoderSpec:
    """Widths and strides of `BridgedFeatures`, known before any forward.

    Attributes:
        map_widths: channels C_i of every map.
        map_strides: pixels per map cell of every map.
        token_width: channels C_t of the text tokens.
        sentence_width: channels C_s of the sentence feature.
        joint: whether the last map and the sentence feature live in one shared space.
        pooled_width: channels of the vision tower's own pooled feature, None where it has none.
        logit_scale, logit_bias: what turns cosines into the logits that the towers were trained
            with, None where they know of none.
    """

    map_widths: tuple[int, ...]
    map_strides: tuple[int, ...]
    token_width: int
    sentence_width: int
    joint: bool
    pooled_width: int | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None


@dataclass(frozen=True)
class Mentions:
    """Which tokens of which expression name which class: M mentions of K classes.

    A class may be mentioned several times (by synonyms, in several templates), and an expression
    may mention several classes.

    Attributes:
        rows: (M,) int64, the expression of each mention, 0 to N - 1.
        classes: (M,) int64, its class, 0 to K - 1; every class is mentioned.
        tokens: (1, M, L) or (B, M, L) bool, true at the tokens of its row that name the class.
        num_classes: K.
    """

    rows: Tensor
    classes: Tensor
    tokens: Tensor
    num_classes: int

    @classmethod
    def of_expressions(cls, token_mask: Tensor, expressions: int) -> Mentions:
        """Take every expression for a class of its own, named by all of its tokens.

        Args:
            token_mask: (B*N, L).
            expressions: N.
        """
        each = torch.arange(expressions, device=token_mask.device)
        tokens = rearrange(token_mask, "(b n) l -> b n l", n=expressions)
        return cls(each, each, tokens, expressions)

    def to(self, *args: Any, **kwargs: Any) -> Mentions:
        """Return it on another device, as `Tensor.to` does."""
        rows, classes, tokens = (
            tensor.to(*args, **kwargs) for tensor in (self.rows, self.classes, self.tokens)
        )
        return Mentions(rows, classes, tokens, self.num_classes)


@dataclass
class BridgedFeatures:
    """Features of B images with N expressions each; rows are ordered image by image.

    Attributes:
        maps: one (B*N, C_i, H_i, W_i) per stage: the bridged states of all stages but the
            last, then the dense last map (in the joint space where there is one).
        tokens: (B*N, L, C_t), after the text tower's final norm, unprojected.
        token_mask: (B*N, L) bool, true at real tokens.
        sentence: (B*N, C_s), projected where the tower projects, not normalised.
        pooled: the vision tower's own pooled image feature, or None where it has none.
        image_size: (H, W) of the pictures in pixels.
        num_expressions: N.
        mentions: which tokens name which class, where expressions are class names; None: every
            expression stands for itself.
    """

    maps: tuple[Tensor, ...]
    tokens: Tensor
    token_mask: Tensor
    sentence: Tensor
    pooled: Tensor | None
    image_size: tuple[int, int]
    num_expressions: int
    mentions: Mentions | None = None
