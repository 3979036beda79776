"""Vision towers of transformers: SigLIP, whose pool by attention ends in text's own space."""

from __future__ import annotations

from collections.abc import Mapping

from einops import rearrange
from torch import Tensor, nn

from bridger.towers.base import child_at
from bridger.towers.dense import DenseProjection, NormProjection
from bridger.towers.registry import register_tower
from bridger.towers.transformers_vision import TransformersTokens

NAFLEX = (
    "its NaFlex pictures have grids of their own, so a batch has no one map (B, C, H, W). "
    "Take SigLIP 2 weights of a fixed picture size, which load as SiglipVisionModel or "
    "SiglipModel (such as google/siglip2-base-patch16-224)"
)


@register_tower("vision")
class SiglipVision(TransformersTokens):
    """`SiglipVisionModel`, or a whole `SiglipModel`: SigLIP, and SigLIP 2 of fixed sizes.

    Without its pooling head (`vision_use_head=False`), its feature is the mean of the patches,
    which no text shares.
    """

    family = "SiglipVision"
    classes = ("SiglipVisionModel", "SiglipVisionTransformer")
    refused = dict.fromkeys(("Siglip2VisionModel", "Siglip2VisionTransformer"), NAFLEX)
    class_tokens = 0
    blocks_at = ("encoder.layers",)
    norms_at = ("post_layernorm",)

    def __init__(self, given: nn.Module) -> None:
        """Read the vision model; see `TransformersVision`."""
        super().__init__(given)
        self._has_head = child_at(self._encoder(self.module), "head") is not None
        self.joint_width = self.pooled_width if self._has_head else None

    def _dense_projection(self) -> DenseProjection | None:
        norm = self.norm_path
        if not self._has_head or norm is None:
            return super()._dense_projection()
        return PooledPatches(self.module, norm, f"{self._path}head", self.blocks[-1].width)


class PooledPatches(DenseProjection):
    """The tower's pool by attention on every patch, as if it were the picture's only one.

        h = norm(x)
        y = W_o V(h) + b_o
        y = y + mlp(layernorm(y))

    Attention over one token gives that token's value whatever the query, so the pool's own
    forward follows its value path, and no patch sees another.
    """

    def __init__(self, module: nn.Module, norm: str, head: str, width: int) -> None:
        """Name the tower's norm and pool by their paths."""
        super().__init__(module, width)
        self.normed, self.head = NormProjection(module, norm, None, width), head

    def forward(self, last_map: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Pool every cell alone; see `DenseProjection.forward`."""
        batch, _, height, _ = last_map.shape
        alone = rearrange(self.normed(last_map, tensors), "b c h w -> (b h w) 1 c")
        pooled: Tensor = self.borrow(self.head, tensors)(alone)
        return rearrange(pooled, "(b h w) c -> b c h w", b=batch, h=height)
