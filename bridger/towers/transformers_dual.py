"""Dual encoders of transformers that are put together from any two encoders."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bridger.towers.base import is_a, unwrap
from bridger.towers.nested_vision import NestedVisionTower
from bridger.towers.registry import register_tower


@register_tower("vision")
class DualEncoderVision(NestedVisionTower):
    """The vision half of a whole `VisionTextDualEncoderModel`, whatever its encoder."""

    library = "transformers"
    family = "VisionTextDualEncoder"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is the whole model."""
        return is_a(module, "transformers", "VisionTextDualEncoderModel")

    def __init__(self, given: nn.Module) -> None:
        """Read the encoder and the projection of its pooled feature."""
        whole: Any = unwrap(given)
        self._nest(given, whole, whole.vision_model, whole.visual_projection.out_features)

    def project(self, module: Any, feature: Tensor) -> Tensor:
        """Apply the model's projection; see `NestedVisionTower.project`."""
        projected: Tensor = module.visual_projection(feature)
        return projected
