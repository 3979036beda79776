"""Small layers that several heads share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bridger.bridgers.zoom import Zoom, stride_ratio


def resize(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a map (B, C, H, W) to `size` bilinearly; a map of that size is returned as it is."""
    if features.shape[-2:] == size:
        return features
    return F.interpolate(features, size, mode="bilinear", align_corners=False)


def map_zoom(in_width: int, out_width: int, in_stride: int, out_stride: int) -> Zoom:
    """Return the layer that brings one map to a head's width and to its grid.

    Finer maps take a convolution, coarser ones a transposed convolution, both with kernel =
    stride = the ratio of the strides in pixels, rounded; BatchNorm and ReLU follow.
    """
    kernel, whole = stride_ratio(in_stride, out_stride)
    zoom = Zoom(
        in_width,
        out_width,
        kernel,
        transposed=in_stride > out_stride and kernel > 1,
        whole=whole,
        parts="norm_relu",
    )
    zoom.conv.reset_parameters()  # heads start from torch's own initialisation throughout
    return zoom


class SingleKeyAttention(nn.Module):
    """Multi-head attention over one key: out(value(s)), whatever the query is.

    The softmax over a single key is 1, so the number of heads and the weights of queries and keys
    drop out. `keep_inert` holds those weights all the same, packed as in
    `nn.MultiheadAttention.in_proj_weight[:2 * D]`, frozen and without effect: released ETRIS
    checkpoints contain them, and they must come back out bit for bit.
    """

    def __init__(self, key_width: int, width: int, keep_inert: bool = False) -> None:
        super().__init__()
        self.value = nn.Linear(key_width, width)
        self.out = nn.Linear(width, width)
        # As nn.MultiheadAttention starts: its packed matrix of three projections has a fan that
        # is twice the single one's.
        nn.init.xavier_uniform_(self.value.weight, gain=2**-0.5)
        nn.init.zeros_(self.value.bias)
        nn.init.zeros_(self.out.bias)
        if keep_inert:
            weight, bias = torch.empty(2 * width, width), torch.zeros(2 * width)
            nn.init.xavier_uniform_(weight)
            self.query_key_weight = nn.Parameter(weight, requires_grad=False)
            self.query_key_bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, key: Tensor) -> Tensor:
        """Map the key (B, C) to the attention's output at every query, (B, D)."""
        attended: Tensor = self.out(self.value(key))
        return attended
