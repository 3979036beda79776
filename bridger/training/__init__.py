"""Training: recipes, the Trainer that saves adapters alone, and a whole run in one call.

`BridgerTrainer` needs transformers' Trainer, which is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridger.training.recipes import Recipe

if TYPE_CHECKING:
    from bridger.training.run import train
    from bridger.training.trainer import BridgerTrainer

__all__ = ["BridgerTrainer", "Recipe", "train"]


def __getattr__(name: str) -> Any:
    if name == "BridgerTrainer":
        from bridger.training.trainer import BridgerTrainer

        return BridgerTrainer
    if name == "train":
        from bridger.training.run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
