"""What a bridged pair of towers offers to a head: declared widths, then the features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
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
        logit_scale: what turns cosines into the logits that the towers were trained with, times
            this and plus `logit_bias`; None where they know of none.
        logit_bias: as above.
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
        first_class: where these are a chunk of a longer list, the number there of class 0.

    Raises:
        ValueError: shapes do not fit together, or numbers are not in these ranges. Numbers are
            looked at on the CPU alone, since a GPU would have to be waited for.
    """

    rows: Tensor
    classes: Tensor
    tokens: Tensor
    num_classes: int
    first_class: int = 0

    def __post_init__(self) -> None:
        if torch.compiler.is_compiling():
            return
        shapes = [tuple(part.shape) for part in (self.rows, self.classes, self.tokens)]
        if len(shapes[2]) != 3 or shapes[:2] != [shapes[2][1:2]] * 2:
            raise ValueError(
                f"mentions must have rows (M,), classes (M,) and tokens (1 or B, M, L), got "
                f"{', '.join(map(str, shapes))}"
            )
        if self.classes.device.type != "cpu":
            return
        found = sorted(set(self.classes.tolist()))
        if found != list(range(self.num_classes)):
            raise ValueError(
                f"every class from 0 to {self.num_classes - 1} must be mentioned, and no other, "
                f"got mentions of {found}"
            )
        if (self.rows < 0).any():
            raise ValueError(f"rows of mentions begin with 0, got {self.rows.tolist()}")

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

    def fitted(self, images: int, expressions: int, length: int) -> Mentions:
        """Return it for texts of B images, N expressions and L tokens, which towers may pad.

        Raises:
            ValueError: it is about other texts.
        """
        missing = length - self.tokens.shape[-1]
        # A GPU would have to be waited for, and a graph of tensors knows no numbers.
        known = self.rows.device.type == "cpu" and not torch.compiler.is_compiling()
        far = known and bool((self.rows >= expressions).any())
        if missing < 0 or len(self.tokens) not in (1, images) or far:
            rows = f" and rows up to {int(self.rows.max())}" if far else ""
            raise ValueError(
                f"mentions with tokens {tuple(self.tokens.shape)}{rows} do not fit "
                f"{images} images with {expressions} texts of {length} tokens each"
            )
        if not missing:
            return self
        return replace(self, tokens=F.pad(self.tokens, (0, missing)))

    def to(self, *args: Any, **kwargs: Any) -> Mentions:
        """Return it on another device, as `Tensor.to` does."""
        rows, classes, tokens = (
            tensor.to(*args, **kwargs) for tensor in (self.rows, self.classes, self.tokens)
        )
        return replace(self, rows=rows, classes=classes, tokens=tokens)


@dataclass(frozen=True)
class TextFeatures:
    """What a text tower makes of S texts alone, where no Bridger writes to them.

    Attributes:
        tokens: (S, L, C_t), as in `BridgedFeatures`.
        token_mask: (S, L) bool.
        sentence: (S, C_s).
    """

    tokens: Tensor
    token_mask: Tensor
    sentence: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return self.tokens.nbytes + self.token_mask.nbytes + self.sentence.nbytes

    def of_every(self, images: int) -> TextFeatures:
        """Return rows B*S, each of B images with all texts."""
        rows = (self.tokens, self.token_mask, self.sentence)
        return TextFeatures(*(repeat(row, "s ... -> (b s) ...", b=images) for row in rows))


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

    def naming(self, mentions: Mentions | None) -> BridgedFeatures:
        """Return them as features of classes that the texts mention.

        Args:
            mentions: which tokens name which class; None: every expression stands for itself.

        Raises:
            ValueError: the mentions are of other texts.
        """
        if mentions is not None:
            images, length = len(self.tokens) // self.num_expressions, self.tokens.shape[1]
            mentions = mentions.fitted(images, self.num_expressions, length)
        return replace(self, mentions=mentions)
