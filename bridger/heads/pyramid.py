"""From the maps of the stages to levels of one width, fine to coarse, for heads that find boxes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

EXTRA_LEVELS = {"none": 0, "pool": 1, "p6p7": 2}
"""Coarser levels that a pyramid may end in, and how many they are."""

GROUPS = 32  # of every GroupNorm, as in torchvision's FCOS


class Pyramid(nn.Module):
    """A feature pyramid (FPN, Lin et al., CVPR 2017; torchvision's) on the maps of all stages.

        x_s = concatenation of the maps of stride s
        P_s = FPN(x_s, ...)_s                           GroupNorm after each of its convolutions
        level_s = P_s * (1 + Linear(LayerNorm(F_s)))    a gate by the row's sentence, open at first

    A flat tower has but one stride s. Its maps, mixed by a 1x1 convolution, first become three of
    strides s/2, s and 2s, by a transposed convolution, as they are, and by pooling (as ViTDet's
    simple pyramid; Li et al., ECCV 2022).

    The gate lets boxes depend on the words even where no Bridger told the maps of them.

    Args:
        map_widths: C_i of every map.
        map_strides: pixels per cell of every map.
        sentence_width: C_s.
        width: D of the levels, a multiple of 32.
        extra_levels: "none"; "pool", one more level of twice the last stride; or "p6p7", two more
            by convolutions. Both are torchvision's.

    Attributes:
        strides: pixels per cell of every level.
    """

    def __init__(
        self,
        map_widths: Sequence[int],
        map_strides: Sequence[int],
        sentence_width: int,
        width: int,
        extra_levels: str = "none",
    ) -> None:
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

        super().__init__()
        strides: list[float] = [*sorted(set(map_strides))]
        self.groups = [[i for i, s in enumerate(map_strides) if s == stride] for stride in strides]
        widths = [sum(map_widths[i] for i in group) for group in self.groups]
        self.scales: nn.ModuleList | None = None
        if len(strides) == 1:
            self.mix = nn.Conv2d(widths[0], width, 1)
            self.scales = nn.ModuleList(
                [
                    nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                    nn.Identity(),
                    nn.MaxPool2d(2, ceil_mode=True),
                ]
            )
            strides, widths = [strides[0] / 2, strides[0], strides[0] * 2], [width] * 3
        extra = {
            "none": lambda: None,
            "pool": LastLevelMaxPool,
            "p6p7": lambda: LastLevelP6P7(width, width),
        }[extra_levels]()
        self.fpn = FeaturePyramidNetwork(
            widths, width, extra, norm_layer=partial(nn.GroupNorm, GROUPS)
        )
        gate = nn.Linear(sentence_width, width)
        nn.init.zeros_(gate.weight)
        nn.init.zeros_(gate.bias)
        self.gate = nn.Sequential(nn.LayerNorm(sentence_width), gate)
        doubled = [strides[-1] * 2 ** (i + 1) for i in range(EXTRA_LEVELS[extra_levels])]
        self.strides = (*strides, *doubled)

    def forward(self, maps: Sequence[Tensor], sentence: Tensor) -> list[Tensor]:
        """Make the levels.

        Args:
            maps: one (B, C_i, H_i, W_i) per stage.
            sentence: F_s (B, C_s).

        Returns:
            One (B, D, H_l, W_l) per level.
        """
        inputs = [torch.cat([maps[i] for i in group], dim=1) for group in self.groups]
        if self.scales is not None:
            mixed = self.mix(inputs[0])
            inputs = [scale(mixed) for scale in self.scales]
        levels = self.fpn(OrderedDict((str(i), x) for i, x in enumerate(inputs)))
        gate = 1 + rearrange(self.gate(sentence), "b d -> b d 1 1")
        return [level * gate for level in levels.values()]


def anchor_boxes(
    sizes: Sequence[tuple[int, int]], strides: Sequence[float], device: torch.device
) -> list[Tensor]:
    """Return a square around the middle of every cell of every level, by torchvision's generator.

    FCOS reads three things off a square: where the cell is, the unit in which its box is measured,
    and which boxes it is responsible for: those whose farthest edge is 4 to 8 times its side away.
    So that no box falls between two levels, sides double from level to level, and the last level's
    are its stride; where strides double too, as they mostly do, each level's are.

    Args:
        sizes: (H_l, W_l) of every level.
        strides: its pixels per cell.
        device: of the result.

    Returns:
        One (H_l * W_l, 4) per level, row by row, x0 y0 x1 y1 in pixels.
    """
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    sides = [strides[-1] / 2**i for i in reversed(range(len(strides)))]
    generator = AnchorGenerator(tuple((side,) for side in sides), ((1.0,),) * len(sides))
    generator.set_cell_anchors(torch.float32, device)
    corners = generator.grid_anchors([list(s) for s in sizes], [[s, s] for s in strides])
    # The generator puts them at the cells' corners.
    return [around + s / 2 for around, s in zip(corners, strides, strict=True)]
