"""What a bridged pair of towers offers to a head: declared widths, then the features."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    map_widths: tuple[int, ...]
    map_strides: tuple[int, ...]
    token_width: int
    sentence_width: int
    joint: bool


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
    """

    maps: tuple[Tensor, ...]
    tokens: Tensor
    token_mask: Tensor
    sentence: Tensor
    pooled: Tensor | None
    image_size: tuple[int, int]
    num_expressions: int
