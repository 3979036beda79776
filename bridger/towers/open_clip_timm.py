"""Towers of open_clip that wrap a model of timm: SigLIP, EVA-CLIP, MobileCLIP, ConvNeXt CLIPs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bridger.towers.base import is_a, unwrap
from bridger.towers.nested_vision import NestedVisionTower
from bridger.towers.open_clip import visual_of
from bridger.towers.registry import register_tower


@register_tower("vision")
class OpenClipTimm(NestedVisionTower):
    """open_clip's `TimmModel`, alone or as the `visual` of a whole model.

    The feature is projected by the wrapper's `head`, by the classifier of the timm model (which
    open_clip gives the joint width where there is no head), or not at all (SigLIP).
    """

    library = "open_clip"
    family = "TimmModel"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is the wrapper, or a whole model that holds one."""
        return is_a(visual_of(module), "open_clip", "TimmModel")

    def __init__(self, given: nn.Module) -> None:
        """Read wrapper and timm model; a pool in the wrapper's head is not supported."""
        visual = visual_of(unwrap(given))
        if "pool" in visual.head._modules:
            raise ValueError(
                f"{self.label()} with a pool of its own ({type(visual.head.pool).__name__}) is not "
                "supported: build it with timm_pool 'avg', 'token' or 'map'"
            )
        if not isinstance(visual.trunk.get_classifier(), nn.Module):
            raise ValueError(
                f"{self.label()} around {type(visual.trunk).__name__}, which has several "
                "classifiers, is not supported: pass the model of timm itself, visual.trunk"
            )
        parts = [*visual.trunk.get_classifier().modules(), *visual.head.modules()]
        widths = [part.out_features for part in parts if isinstance(part, nn.Linear)]
        self._nest(given, visual, visual.trunk, widths[-1] if widths else None)

    def project(self, module: Any, feature: Tensor) -> Tensor:
        """Apply the timm model's classifier, then the wrapper's head; see `NestedVisionTower`."""
        projected: Tensor = module.head(module.trunk.get_classifier()(feature))
        return projected
