"""Zoom layers: from a tower's map to the Bridgers' common map size, and back (section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridger.bridgers.config import BridgerConfig, ZoomParts

Size = tuple[int, int]

_STRIDED = {
    "strided": (True, True),
    "pointwise": (False, False),
    "convolution": (True, False),
    "transposed": (False, True),
}
"""Whether the convolution that shrinks and the transposed one that enlarges are strided."""


class Zoom(nn.Module):
    """One way through the paper's zoom layer: a convolution whose kernel equals its stride.

    A convolution shrinks the map by `kernel`, a transposed one enlarges it, and the result is
    brought to exactly the wanted size:

    - a map that is no whole number of kernels is padded at its lower right edge before a
      convolution and cropped there after a transposed one, as towers themselves round sizes up;
    - bilinearly where that is not it: the ratio of the strides is no integer, or the tower
      rounds down.

    BatchNorm and ReLU, where asked for, come last. The convolution has no bias: a norm or the
    interactor's own bias stands before or behind it.

    Args:
        in_channels: channels of the map that comes in.
        out_channels: channels of the map that goes out.
        kernel: kernel and stride.
        transposed: whether the convolution is transposed.
        whole: whether the ratio of the two strides is the integer `kernel`; otherwise sizes are
            always fitted bilinearly.
        parts: what follows the convolution.
        zero: start from an output of exactly zero that can yet learn: the last layer is zero
            where no ReLU follows it. In front of a ReLU it would stay at ReLU's zero gradient
            for ever, so there a zero scale per channel is put after it.
    """

    scale: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        transposed: bool = False,
        whole: bool = True,
        parts: ZoomParts = "plain",
        zero: bool = False,
    ) -> None:
        super().__init__()
        layer = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.conv = layer(in_channels, out_channels, kernel, stride=kernel, bias=False)
        self.kernel = kernel
        self.transposed = transposed
        self.whole = whole
        self.norm = None if parts == "plain" else nn.BatchNorm2d(out_channels)
        self.relu = parts == "norm_relu"
        self.register_parameter("scale", None)
        self._initialise(in_channels, out_channels, zero)

    def _initialise(self, in_channels: int, out_channels: int, zero: bool) -> None:
        # No two kernels overlap, so an output cell of the transposed convolution reads one input
        # cell: torch's default takes another fan-in there and makes large numbers.
        fan_in = in_channels * (1 if self.transposed else self.kernel**2)
        nn.init.normal_(self.conv.weight, std=fan_in**-0.5)
        if not zero:
            return
        if self.relu:
            self.scale = nn.Parameter(torch.zeros(out_channels, 1, 1))
        else:
            nn.init.zeros_((self.norm or self.conv).weight)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Zoom a map.

        Args:
            x: (B, C_in, h, w).
            size: the (H, W) to end at.

        Returns:
            The map (B, C_out, H, W).
        """
        if not self.transposed:
            x = _pad_to_whole_kernels(x, self.kernel)
        x = self._fit(self.conv(x), size)
        if self.norm is not None:
            x = self.norm(x)
        if self.relu:
            x = F.relu(x)
        return x if self.scale is None else x * self.scale

    def _fit(self, x: Tensor, size: Size) -> Tensor:
        excess = [found - wanted for found, wanted in zip(x.shape[-2:], size, strict=True)]
        if not any(excess):
            return x
        if self.transposed and self.whole and all(0 <= e < self.kernel for e in excess):
            return x[..., : size[0], : size[1]]
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        return f"relu={self.relu}, scale={self.scale is not None}"


def make_zooms(
    config: BridgerConfig, vision_width: int, vision_stride: int, last: bool
) -> tuple[Zoom, Zoom]:
    """Return the way in and the way out for a tower's map.

    The way in is a convolution when the tower's map is at least as large as the target, and a
    transposed convolution when it is smaller; the way out is its reverse.

    Args:
        config: the Bridger's options.
        vision_width: C, the channels of the tower's map.
        vision_stride: its pixels per cell.
        last: whether this is the last stage.
    """
    ratio, whole = stride_ratio(vision_stride, config.zoom_stride)
    kernels = [ratio if strided else 1 for strided in _STRIDED[config.zoom]]
    enlarges = vision_stride > config.zoom_stride
    if config.reverse_last_zoom and last and max(kernels) == 1:
        enlarges = True  # no size changes with a 1x1 kernel, only the weight's layout

    def zoom(width_in: int, width_out: int, transposed: bool, parts: ZoomParts, zero: bool) -> Zoom:
        kernel = kernels[transposed]
        fits = whole and kernel == ratio
        return Zoom(
            width_in, width_out, kernel, transposed=transposed, whole=fits, parts=parts, zero=zero
        )

    width, zero = config.hidden_dim, config.init == "zero"
    zoom_in = zoom(vision_width, width, enlarges, config.zoom_in, False)
    zoom_out = zoom(width, vision_width, not enlarges, config.zoom_out, zero)
    return zoom_in, zoom_out


def stride_ratio(stride: int, other: int) -> tuple[int, bool]:
    """Return the ratio of the larger stride to the smaller, rounded, and whether it is whole."""
    larger, smaller = max(stride, other), min(stride, other)
    ratio = (2 * larger + smaller) // (2 * smaller)
    return ratio, ratio * smaller == larger


def target_size(image_size: Size, zoom_stride: int) -> Size:
    """Return the size of the maps that Bridgers work on: the image's, divided and rounded up."""
    height, width = image_size
    # Not as -(-h // s), of which the compiler's algebra makes nothing.
    return (height + zoom_stride - 1) // zoom_stride, (width + zoom_stride - 1) // zoom_stride


def _pad_to_whole_kernels(x: Tensor, kernel: int) -> Tensor:
    down, right = -x.shape[-2] % kernel, -x.shape[-1] % kernel
    return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x
