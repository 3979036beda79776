"""From the aligned map to a mask: the sentence becomes a convolution (docs/method.md, 4)."""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from bridger.bridgers.convolution import conv_bn_relu
from bridger.heads.layers import resize

KERNEL = 3
PRIOR = 0.05  # an object's usual share of a picture
UPSAMPLING = 4  # cells of the enlarged map per cell of the fused one, in a row


class Enlarger(nn.Module):
    """Enlarges the map fourfold: Conv1x1(Conv3x3(up(Conv3x3(up(x))))).

    The 3x3 ones have BatchNorm and ReLU. What makes logits of the enlarged map is linear too, and
    has fewer outputs than the 1x1 convolution: so that one is applied to the former's weights
    (`through_last`), which is the same, and never to the map.

    Args:
        width: D, of the map; the enlarged one has half as many channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.first = conv_bn_relu(width, width, kernel_size=3)
        self.second = conv_bn_relu(width, half, kernel_size=3)
        self.last = nn.Conv2d(half, half, 1)

    def enlarge(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Enlarge the map (B, D, H, W) to `size`, about four times its own: (B, D/2, *size).

        It is what comes before the 1x1 convolution.
        """
        half_size = (-(-size[0] // 2), -(-size[1] // 2))
        features = self.first(resize(features, half_size))
        enlarged: Tensor = self.second(resize(features, size))
        return enlarged

    def through_last(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and a bias that do to `enlarge`'s cells what these do behind Conv1x1.

            <w, W e + b> = <w W, e> + <w, b>

        Args:
            weights: w (..., D/2).

        Returns:
            w W (..., D/2) and <w, b> (...).
        """
        matrix = rearrange(self.last.weight, "d c 1 1 -> d c")
        bias: Any = self.last.bias
        return weights @ matrix, weights @ bias


class Projector(Enlarger):
    """Enlarges the map fourfold and convolves it with a kernel made from the sentence.

        Z_c = Conv1x1(enlarge(x))
        Z_t = Linear(F_s)                               3 * 3 * D/2 weights, then one bias
        logits = Z_t * Z_c                              a 3x3 convolution, one per expression

    Args:
        sentence_width: C_s.
        width: D.
    """

    def __init__(self, sentence_width: int, width: int) -> None:
        super().__init__(width)
        self.sentence = nn.Linear(sentence_width, width // 2 * KERNEL**2 + 1)
        # Without it the first tens of steps only teach that most of a picture is background.
        with torch.no_grad():
            self.sentence.bias[-1] = math.log(PRIOR / (1 - PRIOR))

    def forward(self, features: Tensor, sentence: Tensor, size: tuple[int, int]) -> Tensor:
        """Make the logits of one mask per row.

        With one output channel a matrix product makes all taps at every cell, and shifting and
        adding them (`fold`) is the rest: several times faster than a grouped convolution of B
        groups.

        Args:
            features: (B, D, H, W).
            sentence: F_s (B, C_s).
            size: (H, W) of the logits, about four times that of the map.

        Returns:
            The logits (B, H, W).
        """
        made = self.sentence(sentence)
        taps = rearrange(made[:, :-1], "b (c k) -> b k c", k=KERNEL**2)
        # `fold` carries what a cell sends out, a convolution what it takes in: the kernel is
        # turned. Cells beyond the border send nothing, not even the bias of the 1x1 convolution.
        taps, sent_by_all = self.through_last(taps.flip(1))
        # Channels stay last, as the alignment's tokens were: gradients come back in that order.
        cells = rearrange(self.enlarge(features, size), "b c h w -> b (h w) c")
        sent = torch.baddbmm(rearrange(sent_by_all, "b k -> b 1 k"), cells, taps.mT)
        logits = F.fold(sent.mT, size, KERNEL, padding=KERNEL // 2)
        bias: Tensor = rearrange(made[:, -1], "b -> b 1 1")
        return rearrange(logits, "b 1 h w -> b h w") + bias
