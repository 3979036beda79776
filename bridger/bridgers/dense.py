"""A second kind of interactor: DETRIS's dense aligner."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bridger.bridgers.config import BridgerConfig
from bridger.bridgers.convolution import conv_bn_relu
from bridger.bridgers.interactor import Interactor, MultiheadAttention, register_interactor
from bridger.bridgers.zoom import Size


@register_interactor("dense")
class DenseInteractor(Interactor):
    """Densely connected convolutions on the map, then cross-attention to the text.

    The bottleneck of DETRIS's dense aligner (arXiv 2501.08580, AAAI 2025; its code at 092397f),
    with the zoom layers for the layers before and behind it. With v the picture's state, t the
    text's and [...] channels side by side:

        x  = relu(v)
        y1 = conv1x1(x)                    D/2 channels
        y2 = conv3x3(conv1x1([x, y1]))     D/16, then D/4
        y3 = conv5x5(conv1x1([x, y1, y2])) D/16, then D/4
        y  = x + [y1, y2, y3]
        v' = x + CrossAttn(query=y, key=value=t)
        t' = t + CrossAttn(query=t, key=value=y)

    Every convolution is followed by BatchNorm and ReLU, and `dropout` acts on attention weights.
    Two linear layers around DETRIS's attention, which would only be multiplied into its
    projections, are left out. DETRIS has no second direction (t'), which is ours, and nothing is
    carried there from one aligner to the next: `direction="to_vision", carry="none"`.

    Args:
        config: the Bridger's options.
        updates_text: see `Interactor`, as for the next.
        updates_vision: where it is false, the convolutions serve the text alone.

    Raises:
        ValueError: `hidden_dim` is below 4.
    """

    def __init__(
        self, config: BridgerConfig, updates_text: bool = True, updates_vision: bool = True
    ) -> None:
        super().__init__(config, updates_text, updates_vision)
        dim = config.hidden_dim
        quarter, narrow = dim // 4, max(1, dim // 16)
        if not quarter:
            raise ValueError(f"the interactor 'dense' needs hidden_dim >= 4, found {dim}")
        half = dim - 2 * quarter
        self.near = conv_bn_relu(dim, half)
        self.middle = nn.Sequential(
            conv_bn_relu(dim + half, narrow), conv_bn_relu(narrow, quarter, kernel_size=3)
        )
        self.wide = nn.Sequential(
            conv_bn_relu(dim + half + quarter, narrow), conv_bn_relu(narrow, quarter, kernel_size=5)
        )
        if updates_vision:
            self.vision = MultiheadAttention(dim, config.num_heads, config.dropout)
        if updates_text:
            self.text = MultiheadAttention(dim, config.num_heads, config.dropout)

    def forward(
        self, vision: Tensor, text: Tensor, token_mask: Tensor | None, size: Size
    ) -> tuple[Tensor, Tensor]:
        vision = F.relu(vision)
        seen = self._convolve(vision, size)
        new_vision, new_text = vision, text
        if self.updates_vision:
            new_vision = vision + self.vision(seen, text, token_mask)
        if self.updates_text:
            new_text = text + self.text(text, seen)
        return new_vision, new_text

    def _convolve(self, vision: Tensor, size: Size) -> Tensor:
        """Return y (B, M, D) from x (B, M, D)."""
        x = rearrange(vision, "b (h w) d -> b d h w", h=size[0], w=size[1])
        near = self.near(x)
        middle = self.middle(torch.cat([x, near], dim=1))
        wide = self.wide(torch.cat([x, near, middle], dim=1))
        return vision + rearrange(torch.cat([near, middle, wide], dim=1), "b d h w -> b (h w) d")
