"""What every tower of timm shares: where its classifier sits and whether it pools."""

from __future__ import annotations

from typing import Any

from torch import nn

from bridger.towers.base import unwrap
from bridger.towers.pre_logits import PreLogitsVisionTower

SET_INPUT_SIZE = "call model.set_input_size((height, width)) before attaching"


class TimmTower(PreLogitsVisionTower):
    """A model of timm, whole: `joint_width` is None, since its head, if any, is a classifier."""

    library = "timm"
    joint_width: int | None = None

    def _read_head(self, given: nn.Module, width: int) -> None:
        """Set `module`, `classifiers` and `pooled_width`, given the width of the feature."""
        module: Any = unwrap(given)
        self.module = module
        found = module.get_classifier()
        names = {id(child): name for name, child in module.named_modules()}
        self.classifiers = tuple(
            names[id(head)]
            for head in (found if isinstance(found, tuple) else (found,))
            if not isinstance(head, nn.Identity)
        )
        self.pooled_width = width if _pools(module) else None


def _pools(module: Any) -> bool:
    """Whether the model pools its last state; only an empty name says that it does not."""
    head = getattr(module, "head", None)
    pool = getattr(module, "global_pool", getattr(head, "global_pool", "avg"))
    return bool(getattr(pool, "pool_type", pool))
