"""The convolution that Bridgers and heads share."""

from __future__ import annotations

from torch import nn


def conv_bn_relu(in_width: int, out_width: int, kernel_size: int = 1) -> nn.Sequential:
    """Return a convolution that keeps the map's size, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_width, out_width, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_width),
        nn.ReLU(inplace=True),
    )
