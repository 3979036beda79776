"""Towers of timm whose states are tokens: ViT in all its variants, BEiT, EVA-02."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from bridger.towers.base import is_a, pair, unwrap
from bridger.towers.dense import DenseProjection, Tail
from bridger.towers.registry import register_tower
from bridger.towers.timm_base import SET_INPUT_SIZE, TimmTower
from bridger.towers.views import view_changing
from bridger.towers.vision import TokenVisionTower

REFUSED = {
    "Hiera": "its tokens lie window by window and shrink from block to block, so a block's state "
    "is no map; another hierarchical model such as a Swin Transformer or a ConvNeXt will do",
    "NaFlexVit": "its tokens may come from pictures of several shapes in one batch, so they have "
    "no common map; build the model's plain variant (vit_*) with the same weights",
}
"""Classes that are known not to fit, and why."""

ANY_SIZE: Mapping[str, object] = {
    "dynamic_img_size": True,
    "patch_embed.img_size": None,
    "patch_embed.flatten": False,
    "patch_embed.output_fmt": "NHWC",
}
"""What `dynamic_img_size=True` sets when a model is built: positions resized in each forward."""


class TimmTokens(TimmTower, TokenVisionTower):
    """A model of timm with `blocks` over tokens: prefix tokens, then the patches, row by row.

    The dense map is the final norms on every patch (`norm`, and `fc_norm`, which mean-pooled
    models apply after the mean). A pool by a learned query (SigLIP) adds its value path.
    """

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is of the class that gives the family its name."""
        return is_a(module, "timm", cls.family)

    def __init__(self, given: nn.Module) -> None:
        """Read the model, whose patches must be square."""
        module: Any = unwrap(given)
        self._pool: Any = getattr(module, "attn_pool", None)
        width: int = module.embed_dim
        self._read_head(given, getattr(self._pool, "out_features", width))
        patch = module.patch_embed.feat_ratio(as_scalar=False)
        if patch[0] != patch[1]:
            raise ValueError(f"{self.label()} must have square patches, found {tuple(patch)}")
        self.patch = int(patch[0])
        self.prefix = int(module.num_prefix_tokens)
        size = module.patch_embed.img_size
        self.image_size = None if size is None else pair(size)
        blocks = list(module.blocks)
        self.blocks = self._name_blocks(
            given, blocks, [width] * len(blocks), [self.patch] * len(blocks)
        )
        if not self._takes_any_size(module):
            self.fixed_size, self.other_size = self.image_size, SET_INPUT_SIZE

    def _takes_any_size(self, module: Any) -> bool:
        """Whether positions can be resized in each forward."""
        return False

    def map_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the grid as the patch embedding cuts or pads it."""
        module: Any = self.module
        height, width = module.patch_embed.dynamic_feat_size(image_size)
        return int(height), int(width)

    def run(self, module: Any, pixel_values: Tensor) -> Any:
        """Call the model without its classifier, resizing positions where the size asks for it."""
        size = (pixel_values.shape[2], pixel_values.shape[3])
        resize = size != self.image_size and self.fixed_size is None
        return super().run(view_changing(module, ANY_SIZE if resize else {}), pixel_values)

    def _dense_projection(self) -> DenseProjection | None:
        if self._pool is None:
            return Tail(self.module, ("norm", "fc_norm"), self.blocks[-1].width)
        if is_a(self._pool, "timm", "AttentionPoolLatent"):
            return LatentPoolValues(self.module, self.pooled_width or 0)
        return Tail(self.module, ("norm",), self.blocks[-1].width)


@register_tower("vision")
class TimmViT(TimmTokens):
    """timm's `VisionTransformer`: class, register, distilled or no prefix tokens, any pool.

    A model with SigLIP's pool and no classifier shares a space with text: its own feature's.
    """

    family = "VisionTransformer"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is a ViT, or one of those that are refused with a reason."""
        return is_a(module, "timm", cls.family, *REFUSED)

    def __init__(self, given: nn.Module) -> None:
        """Read the model; see `TimmTokens`. A ValueError says why a class does not fit."""
        module: Any = unwrap(given)
        for name, reason in REFUSED.items():
            if is_a(module, "timm", name):
                raise ValueError(f"timm {name} is not supported: {reason}")
        super().__init__(given)
        if is_a(self._pool, "timm", "AttentionPoolLatent") and not self.classifiers:
            self.joint_width = self.pooled_width

    def _takes_any_size(self, module: Any) -> bool:
        return getattr(self._pool, "pos_embed", None) is None


@register_tower("vision")
class TimmRelPosViT(TimmTokens):
    """timm's `VisionTransformerRelPos`: positions are biases for one picture size."""

    family = "VisionTransformerRelPos"


@register_tower("vision")
class TimmBeit(TimmTokens):
    """timm's `Beit`: positions are biases for one picture size."""

    family = "Beit"


@register_tower("vision")
class TimmEva(TimmTokens):
    """timm's `Eva`: EVA, EVA-02, the perception encoders, ViTs with rotary positions."""

    family = "Eva"

    def _takes_any_size(self, module: Any) -> bool:
        # Rotations that were computed once, for the size at creation, cannot follow.
        cached = getattr(module.rope, "_use_cached_embed", False)
        return bool(module.dynamic_img_size) or not cached


class LatentPoolValues(DenseProjection):
    """The pool by a learned query (timm's `AttentionPoolLatent`), on every patch alone.

        v = proj(V(norm(x)))                V: the second half of kv
        y = fc_norm(v + mlp(mlp_norm(v)))

    Attention over one token returns that token's value whatever the query, so this is exactly
    what the pool makes of a picture of one patch.
    """

    def forward(self, last_map: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Pool every cell alone; see `DenseProjection.forward`."""
        tokens = rearrange(last_map, "b c h w -> b (h w) c")
        pool = self.borrow("attn_pool", tensors)
        values = pool.kv(self.borrow("norm", tensors)(tokens)).chunk(2, dim=-1)[1]
        values = pool.proj(values)
        if pool.mlp is not None:
            values = values + pool.mlp(pool.norm(values))
        dense: Tensor = self.borrow("fc_norm", tensors)(values)
        return rearrange(dense, "b (h w) c -> b c h w", h=last_map.shape[2])
