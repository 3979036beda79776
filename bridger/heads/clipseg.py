"""CLIPSeg's decoder (Lüddecke and Ecker, CVPR 2022): the rival of the referring head.

The decoder is transformers' own module. It was made for the states of a ViT, all of one width, and
for square pictures: here it reads the maps of the stages, each through a projection of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from bridger.bridgers.zoom import target_size
from bridger.config import Config, check_flag, check_whole
from bridger.features import BridgedFeatures, EncoderSpec
from bridger.heads.base import HeadOutput
from bridger.heads.layers import resize
from bridger.heads.losses import mask_targets, text_to_pixel_loss
from bridger.heads.masks import MaskHead
from bridger.heads.registry import register_head


@dataclass(frozen=True)
class CLIPSegConfig(Config):
    """Options of `CLIPSegHead`; the defaults are those of CLIPSeg, on cells of half the size.

    Attributes:
        width: channels of the decoder.
        num_heads: attention heads of its layers, of which there is one for each map.
        ffn_width: hidden width of their feed-forward nets.
        grid_stride: pixels per cell of the maps that it reads.
        refined: grow the last map in three steps, as CLIPSeg's refined decoder does, in place of
            one transposed convolution.

    Raises:
        ValueError: an option of another kind, or a width that does not split into heads.
    """

    width: int = 64
    num_heads: int = 4
    ffn_width: int = 2048
    grid_stride: int = 16
    refined: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "num_heads", "ffn_width", "grid_stride"):
            check_whole(name, getattr(self, name))
        check_flag("refined", self.refined)
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} does not split into num_heads={self.num_heads} equal parts: "
                f"change one of them"
            )
        if self.refined and self.grid_stride != 16:
            raise ValueError(
                f"the refined decoder grows cells of 16 pixels (4 x 4), got "
                f"grid_stride={self.grid_stride}"
            )


@register_head("clipseg")
class CLIPSegHead(MaskHead):
    """Segments the object that each expression means with CLIPSeg's decoder.

    All maps are brought to one square grid, the last one first: the sentence scales and shifts it
    (FiLM), a Transformer layer follows, and the next map is added. Before a map's cells stands
    their mean, in the place of a ViT's class token. The mask of a picture that is not square is
    stretched to it, as CLIPSeg stretches its pictures.

    Labels are those of `ReferringSegmentationHead`, as is the loss. Logits are (B, N, H, W).

    Args:
        spec: what the bridged towers offer.
        config: the options.
    """

    config_class = CLIPSegConfig
    config: CLIPSegConfig

    def __init__(self, spec: EncoderSpec, config: CLIPSegConfig) -> None:
        super().__init__(spec, config)
        from transformers import CLIPSegConfig as DecoderConfig
        from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoder

        options = DecoderConfig(
            vision_config={
                "patch_size": config.grid_stride,
                "hidden_size": config.width,
                "num_attention_heads": config.num_heads,
            },
            projection_dim=spec.sentence_width,
            extract_layers=list(range(len(spec.map_widths))),
            reduce_dim=config.width,
            decoder_num_attention_heads=config.num_heads,
            decoder_intermediate_size=config.ffn_width,
            use_complex_transposed_convolution=config.refined,
        )
        options.vision_config._attn_implementation = "sdpa"  # a whole CLIPSeg would choose it
        self.decoder = CLIPSegDecoder(options)
        widths = reversed(spec.map_widths)  # as the decoder reads them
        self.decoder.reduces = nn.ModuleList(nn.Linear(width, config.width) for width in widths)
        for layer in self.decoder.modules():  # versions of transformers start it differently
            if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.LayerNorm)):
                layer.reset_parameters()

    def forward(
        self,
        features: BridgedFeatures,
        labels: Tensor | None = None,
        expression_mask: Tensor | None = None,
    ) -> HeadOutput:
        """Segment.

        Args:
            features: of B images with N expressions each.
            labels: (B, H, W) or (B, N, H, W).
            expression_mask: (B, N), false at the padding of a ragged N.

        Returns:
            Logits (B, N, H, W) in float32, and with labels the loss.

        Raises:
            ValueError: the features are not those of `spec`, or labels have the wrong shape.
        """
        self.check_features(features, expression_mask)
        dtype = self.decoder.film_mul.weight.dtype
        side = max(target_size(features.image_size, self.config.grid_stride))
        states = tuple(_tokens(maps.to(dtype), side) for maps in features.maps)
        masks: Tensor = self.decoder(states, features.sentence.to(dtype)).logits
        rows = rearrange(masks.float(), "(b n) h w -> b n h w", n=features.num_expressions)
        rows = resize(rows, features.image_size)
        if labels is None:
            return HeadOutput(rows)
        targets = mask_targets(labels, rows, features.image_size)
        return HeadOutput(rows, text_to_pixel_loss(rows, targets, expression_mask))


def _tokens(maps: Tensor, side: int) -> Tensor:
    """Return a map (B, C, H, W) as tokens (B, 1 + side * side, C), the mean of all before them."""
    fine = min(maps.shape[-2:]) >= side
    cells = F.adaptive_avg_pool2d(maps, side) if fine else resize(maps, (side, side))
    mean = reduce(cells, "b c h w -> b 1 c", "mean")
    return torch.cat([mean, rearrange(cells, "b c h w -> b (h w) c")], dim=1)
