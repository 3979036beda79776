"""A vision tower of one library inside a model of another, which adds a projection of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from bridger.towers.dense import DenseProjection
from bridger.towers.registry import find_vision_tower
from bridger.towers.views import view_with
from bridger.towers.vision import VisionTower


class NestedVisionTower(VisionTower):
    """A vision encoder that holds another one and projects its pooled feature.

    A family names the inner encoder in its `__init__` by `_nest` and says in `project` what is
    done to its feature. Blocks, grids, positions and states are the inner tower's.

    Attributes:
        inner: the tower of the encoder inside.
    """

    inner: VisionTower
    _path: str

    def _nest(
        self, given: nn.Module, module: nn.Module, encoder: nn.Module, width: int | None
    ) -> None:
        """Find the inner tower, and set all attributes from it.

        The projected space is shared with text. Where the inner tower has no dense projection,
        its last map stays in a space of its own, and `joint_width` is None.

        Args:
            given: what the user gave.
            module: the model that holds the encoder and projects.
            encoder: the module of the inner tower.
            width: of the projected feature; None where it is the inner tower's.

        Raises:
            TypeError, ValueError: there is no tower for the encoder, or it has no pooled feature.
        """
        self.module, self.inner = module, find_vision_tower(encoder)
        if self.inner.pooled_width is None:
            raise ValueError(
                f"{self.label()} reads the pooled feature of its {self.inner.label()}, which "
                f"does not pool by itself: pass that {type(encoder).__name__} itself"
            )
        names = {id(child): name for name, child in module.named_modules()}
        self._path = names[id(self.inner.module)]
        inner = self.inner.blocks
        self.blocks = self._name_blocks(
            given,
            [block.module for block in inner],
            [block.width for block in inner],
            [block.stride for block in inner],
        )
        self.image_size, self.name = self.inner.image_size, self.inner.name
        self.recomputable = self.inner.recomputable
        self.pooled_width = self.inner.pooled_width if width is None else width
        has_recipe = self.inner.dense_projection() is not None
        self.joint_width = self.pooled_width if has_recipe else None

    @abstractmethod
    def project(self, module: Any, feature: Tensor) -> Tensor:
        """Turn the inner tower's pooled feature (..., C) into (..., joint), as the model does.

        Args:
            module: this tower's module, or a view of it.
            feature: of any number of rows: the pooled one, or one per cell of the dense map.
        """

    def describe(self) -> dict[str, Any]:
        """Return the identity, the inner tower's included."""
        return {**super().describe(), "inner": self.inner.describe()}

    def position_names(self) -> tuple[str, ...]:
        """Return the inner tower's names, below this tower's module."""
        return tuple(f"{self._path}.{name}" for name in self.inner.position_names())

    def fit_positions(self, name: str, table: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return the table as the inner tower fits it."""
        return self.inner.fit_positions(name.removeprefix(f"{self._path}."), table, image_size)

    def check_input(self, pixel_values: Tensor) -> None:
        """Raise what the inner tower raises."""
        self.inner.check_input(pixel_values)

    def map_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the inner tower's grid."""
        return self.inner.map_grid(image_size)

    def run(self, module: Any, pixel_values: Tensor) -> Tensor:
        """Call the inner encoder in its family's way, then project its feature."""
        result = self.inner.run(module.get_submodule(self._path), pixel_values)
        feature = self.inner.pooled(result)
        if feature is None:
            raise RuntimeError(f"{self.inner.label()} returned no pooled feature")
        return self.project(module, feature)

    def read_map(self, block: int, output: Any, image_size: tuple[int, int]) -> Tensor:
        """Return the state as the inner tower reads it."""
        return self.inner.read_map(block, output, image_size)

    def write_map(self, block: int, output: Any, new_map: Tensor) -> Any:
        """Return the output as the inner tower writes it."""
        return self.inner.write_map(block, output, new_map)

    def pooled(self, result: Any) -> Tensor:
        """Return the projected feature, which is the result."""
        feature: Tensor = result
        return feature

    def _dense_projection(self) -> DenseProjection | None:
        inner = self.inner.dense_projection()
        return None if inner is None else NestedProjection(self, inner, self._path)


class NestedProjection(DenseProjection):
    """The inner tower's dense map, every cell of which is projected like the pooled feature."""

    def __init__(self, tower: NestedVisionTower, inner: DenseProjection, path: str) -> None:
        """Hold the tower and its inner dense projection; `path` leads to the inner module."""
        super().__init__(tower.module, tower.joint_width or inner.width)
        self.inner = inner
        self._tower, self._prefix = (tower,), f"{path}."

    def forward(self, last_map: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Run the inner projection, then the outer; see `DenseProjection.forward`."""
        inside = {
            name.removeprefix(self._prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(self._prefix)
        }
        tokens = rearrange(self.inner(last_map, inside), "b c h w -> b h w c")
        projected = self._tower[0].project(view_with(self._held[0], tensors), tokens)
        return rearrange(projected, "b h w c -> b c h w")
