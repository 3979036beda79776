"""Vision towers that may end in a classifier: their feature is what would go into it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from bridger.towers.base import Block
from bridger.towers.views import view_changing
from bridger.towers.vision import VisionTower, grid_of

POSITIONS = ("pos_embed", "pos_embedding", "relative_position_bias_table")
"""What timm and torchvision call parameters that hold positions, absolute or relative."""


class PreLogitsVisionTower(VisionTower):
    """A vision encoder whose own forward runs on a view without its classifier.

    The result is thus the feature that the classifier would read, to the last bit; for a model
    without a classifier it is the model's own result.

    Attributes:
        classifiers: names, below `module`, of what would turn the feature into logits.
        fixed_size: the only picture size (H, W) that the model takes, or None.
        other_size: what to do for pictures of another size, where there is a fixed one.
    """

    classifiers: tuple[str, ...]
    fixed_size: tuple[int, int] | None = None
    other_size: str = "resize the pictures"

    def position_names(self) -> tuple[str, ...]:
        """Return the names of the tables, found by the names that both libraries give them."""
        names = (name for name, _ in self.module.named_parameters())
        return tuple(name for name in names if name.rpartition(".")[2] in POSITIONS)

    def check_input(self, pixel_values: Tensor) -> None:
        """Raise a ValueError unless the model takes these pictures; see `VisionTower`."""
        super().check_input(pixel_values)
        found = (pixel_values.shape[2], pixel_values.shape[3])
        if self.fixed_size is not None and found != self.fixed_size:
            raise ValueError(
                f"this {self.label()} takes pictures of {_shown(self.fixed_size)} pixels only, "
                f"found {_shown(found)}: {self.other_size}"
            )

    def run(self, module: Any, pixel_values: Tensor) -> Any:
        """Call the model without its classifier, in the dtype of its first parameter."""
        headless = view_changing(module, {name: nn.Identity() for name in self.classifiers})
        return headless(pixel_values.to(next(module.parameters()).dtype))

    def pooled(self, result: Any) -> Tensor | None:
        """Return the feature before the classifier, or None where the model does not pool."""
        return result if isinstance(result, Tensor) and result.ndim == 2 else None


class StagedMapTower(PreLogitsVisionTower):
    """A hierarchical encoder, whose maps shrink from stage to stage.

    Attributes:
        rounds_up: whether sizes are rounded up or down where a stride does not divide them.
    """

    rounds_up: bool = True

    def map_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the size over the last stride, rounded as the family rounds."""
        return grid_of(image_size, self.blocks[-1].stride or 1, self.rounds_up)


def last_of_each_stride(blocks: Iterable[Block]) -> list[Block]:
    """Return the last block at every stride of at least 4 pixels.

    Earlier maps are as large as a quarter of the picture or more, too many cells to attend to.
    """
    last: dict[int, Block] = {block.stride or 1: block for block in blocks}
    return [block for stride, block in last.items() if stride >= 4]


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
