"""The letterbox: how a picture is fitted into the towers' input size, and masks back out of it.

The map is x' = s x + (W - s w) / 2 on pixel indices (likewise for y) with s = min(H/h, W/w): no
half-pixel shift, no antialiasing, fractional offsets kept, as the reference implementation's
cv2.warpAffine. Since it is axis-aligned, interpolation is separable: each output row mixes a few
input rows, then each output column a few input columns. OpenCV itself rounds coordinates to 1/32
pixel, so its results differ from these by a little.

Shapes: C channels, h w the picture's size, H W the input's size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the input: x' = scale * x + left, y' = scale * y + top.

    Attributes:
        size: (h, w) of the picture.
        input_size: (H, W) of the towers' input.
        scale: factor from picture to input.
        top: offset of the picture's first row in input pixels, fractions kept.
        left: offset of its first column.
    """

    size: tuple[int, int]
    input_size: tuple[int, int]
    scale: float
    top: float
    left: float

    @classmethod
    def fit(cls, size: tuple[int, int], input_size: tuple[int, int]) -> Placement:
        """Place a picture of `size` in the middle of `input_size`, as large as it fits."""
        (h, w), (height, width) = size, input_size
        scale = min(height / h, width / w)
        return cls(size, input_size, scale, (height - scale * h) / 2, (width - scale * w) / 2)

    def into_input(self, image: Tensor, border: Tensor, *, cubic: bool = True) -> Tensor:
        """Warp a picture (C, h, w) into the input: (C, H, W), float32.

        Args:
            image: any number type.
            border: (C,), the value of everything outside the picture.
            cubic: cubic interpolation, otherwise linear.
        """
        height, width = self.input_size
        rows = (torch.arange(height, dtype=torch.float64) - self.top) / self.scale
        columns = (torch.arange(width, dtype=torch.float64) - self.left) / self.scale
        return resample(image, rows, columns, border, cubic=cubic)

    def out_of_input(self, maps: Tensor, *, cubic: bool = True) -> Tensor:
        """Warp maps (C, H, W) in the input back onto the picture: (C, h, w), 0 outside."""
        h, w = self.size
        rows = torch.arange(h, dtype=torch.float64) * self.scale + self.top
        columns = torch.arange(w, dtype=torch.float64) * self.scale + self.left
        return resample(maps, rows, columns, maps.new_zeros(len(maps)), cubic=cubic)


def resample(
    image: Tensor, rows: Tensor, columns: Tensor, border: Tensor, *, cubic: bool
) -> Tensor:
    """Read an image at a grid of fractional coordinates.

    Args:
        image: (C, h, w), any number type.
        rows: (H,) coordinates in rows of `image`, float64.
        columns: (W,) coordinates in columns of `image`, float64.
        border: (C,), the value of taps outside the image.
        cubic: cubic convolution with A = -0.75 (OpenCV's and torch's), otherwise linear.

    Returns:
        (C, H, W), float32.
    """
    kernel = _cubic if cubic else _linear
    border = border.to(torch.float32)[:, None, None]
    # Along one axis at a time the border may be left out, as the weights of all taps add up to
    # one: mix (image - border) with zeros outside, and add the border at the end.
    mixed = _mix(image, rows, kernel, border)
    mixed = _mix(mixed.transpose(1, 2), columns, kernel, torch.zeros_like(border))
    return mixed.transpose(1, 2) + border


def _mix(image: Tensor, at: Tensor, kernel: Callable[[Tensor], Tensor], border: Tensor) -> Tensor:
    """Interpolate (C, h, w) - border along h at the coordinates `at` (H,): (C, H, w)."""
    first, weights = at.floor().long(), kernel(at - at.floor())
    taps = weights.shape[0]
    total = image.new_zeros((image.shape[0], len(at), image.shape[2]), dtype=torch.float32)
    for tap, weight in zip(range(1 - taps // 2, 1 + taps // 2), weights, strict=True):
        index = first + tap
        inside = (index >= 0) & (index < image.shape[1])
        # Converting only the rows that are read keeps large pictures in bytes.
        taken = image[:, index.clamp(0, image.shape[1] - 1)].to(torch.float32) - border
        total += taken * torch.where(inside, weight, 0.0).to(torch.float32)[:, None]
    return total


def _linear(t: Tensor) -> Tensor:
    """Weights (2, H) of the taps at 0 and 1 for fractions t (H,)."""
    return torch.stack([1 - t, t])


def _cubic(t: Tensor, a: float = -0.75) -> Tensor:
    """Weights (4, H) of the taps at -1, 0, 1, 2 for fractions t (H,)."""

    def near(x: Tensor) -> Tensor:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return torch.stack([far(t + 1), near(t), near(1 - t), far(2 - t)])
