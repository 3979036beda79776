"""Vision towers of transformers: CLIP and the models that are built like it."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from bridger.towers.base import is_a
from bridger.towers.dense import DenseProjection, NormProjection
from bridger.towers.registry import register_tower
from bridger.towers.transformers import LIBRARY
from bridger.towers.transformers_vision import TransformersTokens

SUFFIXES = ("VisionModel", "VisionModelWithProjection", "VisionTransformer", "Model")


class ClipLikeVision(TransformersTokens):
    """A vision model, alone, with its projection, or in a whole, which projects it as well.

    `module` is what holds the projection, where there is one. Without it, the feature lies in a
    space of its own.

    Attributes:
        whole: class of the whole dual encoder.
    """

    whole: ClassVar[str]
    blocks_at = ("encoder.layers",)
    norms_at = ("post_layernorm",)
    pools = "first"

    def __init_subclass__(cls, **options: Any) -> None:
        """Name a family's classes after its whole, as the library does."""
        super().__init_subclass__(**options)
        stem = cls.whole.removesuffix("Model")
        cls.family, cls.classes = f"{stem}Vision", tuple(stem + suffix for suffix in SUFFIXES)

    def __init__(self, given: nn.Module) -> None:
        """Read the vision model and, where there is one, its projection."""
        super().__init__(given)
        self._in_whole = is_a(self.module, LIBRARY, self.whole)
        projection: Any = self.module._modules.get("visual_projection")
        if projection is not None:
            self.joint_width = self.pooled_width = projection.out_features

    def run(self, module: Any, pixel_values: Tensor) -> Any:
        """Call the vision model; in a whole, the result is the projected feature itself."""
        if not self._in_whole:
            return super().run(module, pixel_values)
        result = super().run(module.vision_model, pixel_values)
        return module.visual_projection(result.pooler_output)

    def pooled(self, result: Any) -> Tensor:
        """Return the normed class token, projected where the model projects."""
        if self._in_whole:
            whole: Tensor = result
            return whole
        pooled: Tensor = result.pooler_output if self.joint_width is None else result.image_embeds
        return pooled

    def _dense_projection(self) -> DenseProjection:
        projection = None if self.joint_width is None else "visual_projection"
        norm = f"{self._path}post_layernorm"
        return NormProjection(self.module, norm, projection, self.pooled_width or 0)


@register_tower("vision")
class ClipVision(ClipLikeVision):
    """`CLIPVisionModel`, `CLIPVisionModelWithProjection`, or a whole `CLIPModel`."""

    whole = "CLIPModel"


@register_tower("vision")
class AltClipVision(ClipLikeVision):
    """`AltCLIPVisionModel`, or a whole `AltCLIPModel`."""

    whole = "AltCLIPModel"


@register_tower("vision")
class ChineseClipVision(ClipLikeVision):
    """`ChineseCLIPVisionModel`, or a whole `ChineseCLIPModel`."""

    whole = "ChineseCLIPModel"


@register_tower("vision")
class MetaClip2Vision(ClipLikeVision):
    """`MetaClip2VisionModel`, with or without projection, or a whole `MetaClip2Model`."""

    whole = "MetaClip2Model"


@register_tower("vision")
class ClipSegVision(ClipLikeVision):
    """`CLIPSegVisionModel`, or a whole `CLIPSegModel`."""

    whole = "CLIPSegModel"
