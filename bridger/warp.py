"""The letterbox: how a picture is fitted into the towers' input size, and masks back out of it.

The map is x' = s x + (W - s w) / 2 on pixel indices (likewise for y) with s = min(H/h, W/w): no
half-pixel shift, no antialiasing, fractional offsets kept, as the reference implementation's
cv2.warpAffine. Since it is axis-aligned, interpolation is separable: each output row mixes a few
input rows, then each output column a few input columns. OpenCV before 5.0 rounds coordinates to
1/32 pixel: its results are these at the rounded coordinates, to one grey level.

Shapes: C channels, h w the picture's size, H W the input's size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


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

    def labels_into_input(self, labels: Tensor, border: int) -> Tensor:
        """Warp a label map (h, w) into the input by nearest neighbours: (H, W), same type.

        Args:
            labels: of any number type.
            border: the label of everything outside the picture.
        """
        (h, w), (height, width) = self.size, self.input_size
        rows = ((torch.arange(height, dtype=torch.float64) - self.top) / self.scale).round().long()
        columns = ((torch.arange(width, dtype=torch.float64) - self.left) / self.scale).round()
        columns = columns.long()
        warped = labels[rows.clamp(0, h - 1)][:, columns.clamp(0, w - 1)]
        inside = ((rows >= 0) & (rows < h))[:, None] & (columns >= 0) & (columns < w)
        return torch.where(inside, warped, border)

    def boxes_into_input(self, boxes: Tensor) -> Tensor:
        """Map boxes (..., 4), x0 y0 x1 y1 at pixels' edges, from the picture into the input."""
        # Pixel i reaches from i to i + 1, and its index stands for its middle.
        return (boxes - 0.5) * self.scale + self._offsets(boxes) + 0.5

    def boxes_out_of_input(self, boxes: Tensor) -> Tensor:
        """Map boxes (..., 4) from the input onto the picture, cut at the picture's edges."""
        h, w = self.size
        back = (boxes - 0.5 - self._offsets(boxes)) / self.scale + 0.5
        return back.clamp(min=0).minimum(back.new_tensor([w, h, w, h]))

    def _offsets(self, boxes: Tensor) -> Tensor:
        return boxes.new_tensor([self.left, self.top, self.left, self.top])


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
    channels, height, width = image.shape
    # Whole rows are mixed, which lie together in memory: first the picture's (a row holds all
    # columns and channels), then those of its transpose.
    mixed, down = _mix(image.permute(1, 2, 0).reshape(height, -1), rows, kernel)
    mixed, across = _mix(mixed.T.reshape(width, -1), columns, kernel)
    mixed = mixed.T.contiguous().view(channels, len(rows), len(columns))
    # The weights of all taps add up to one; what those inside lack is the border's.
    outside = 1 - down[:, None] * across
    return mixed.addcmul_(border.to(torch.float32)[:, None, None], outside)


def _mix(table: Tensor, at: Tensor, kernel: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Interpolate between the rows of (h, m), which count as 0 outside, at coordinates (H,).

    Returns:
        (H, m), float32, and the sum of the weights (H,) of the rows that are not outside.
    """
    first, weights = at.floor().long(), kernel(at - at.floor())
    taps = weights.shape[0]
    index = first + torch.arange(1 - taps // 2, 1 + taps // 2)[:, None]
    inside = (index >= 0) & (index < len(table))
    weights = torch.where(inside, weights, 0.0).to(torch.float32)
    index = index.clamp(0, len(table) - 1)
    if index.numel() < len(table):  # a much larger picture: what is not read stays in bytes
        table, index = table[index.flatten()], torch.arange(index.numel()).view_as(index)
    # A weighted sum of rows; unlike a matrix product it is exact whatever precision is asked of
    # those (autocast, `set_float32_matmul_precision`).
    mixed = F.embedding_bag(
        index.T.contiguous(),
        table.to(torch.float32),
        mode="sum",
        per_sample_weights=weights.T.contiguous(),
    )
    return mixed, weights.sum(0)


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
