"""Vision towers of transformers that work in stages: Swin Transformers and convolutional nets."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from bridger.towers.base import is_a, pair
from bridger.towers.registry import refuse_tower, register_tower
from bridger.towers.transformers import LIBRARY
from bridger.towers.transformers_vision import TransformersVision
from bridger.towers.views import tensor_at, view_with
from bridger.towers.vision import MapVisionTower, TokenVisionTower, grid_of


class Stages(TransformersVision):
    """A hierarchical encoder, whose maps shrink from stage to stage; a block is a stage.

    Attributes:
        rounds_up: whether sizes are rounded up or down where a stride does not divide them.
    """

    rounds_up: ClassVar[bool] = True
    joint_width = None

    def __init__(self, given: nn.Module) -> None:
        """Read the stages; see `TransformersVision`."""
        super().__init__(given)
        config, stages = self._encoder(self.module).config, self._layers()
        widths, strides = self._layout(config, len(stages))
        self.blocks = self._name_blocks(given, stages, widths, strides)
        self.pooled_width = widths[-1]

    @abstractmethod
    def _layout(self, config: Any, count: int) -> tuple[list[int], list[int]]:
        """Return the widths and strides of what the stages return."""

    def map_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the last stage's map size."""
        return self._grid(len(self.blocks) - 1, image_size)

    def _grid(self, block: int, image_size: tuple[int, int]) -> tuple[int, int]:
        return grid_of(image_size, self.blocks[block].stride or 1, self.rounds_up)


class ConvolutionalStages(Stages, MapVisionTower):
    """A convolutional net: maps (B, C, H, W) that halve from stage to stage; any size is native."""

    blocks_at: ClassVar[tuple[str, ...]] = ("encoder.stages",)
    image_size = None

    def _layout(self, config: Any, count: int) -> tuple[list[int], list[int]]:
        first = self._first_stride(config)
        return list(config.hidden_sizes), [first * 2**stage for stage in range(count)]

    @abstractmethod
    def _first_stride(self, config: Any) -> int:
        """Return the pixels per cell of the first stage's map."""


@register_tower("vision")
class ConvNextVision(ConvolutionalStages):
    """`ConvNextModel` and `ConvNextV2Model`: the mean of the last map, normed."""

    family = "ConvNext"
    classes = ("ConvNextModel", "ConvNextV2Model")
    norms_at = ("layernorm",)
    rounds_up = False

    def _first_stride(self, config: Any) -> int:
        stride: int = config.patch_size
        return stride


@register_tower("vision")
class Dinov3ConvNextVision(ConvolutionalStages):
    """`DINOv3ConvNextModel`: the mean of the last map, normed."""

    family = "DINOv3ConvNext"
    classes = ("DINOv3ConvNextModel",)
    blocks_at = ("model.stages", "stages")
    norms_at = ("layer_norm",)
    rounds_up = False

    def _first_stride(self, config: Any) -> int:
        return 4


@register_tower("vision")
class ResNetVision(ConvolutionalStages):
    """`ResNetModel`: the mean of the last map, which no norm follows."""

    family = "ResNet"
    classes = ("ResNetModel",)

    def _first_stride(self, config: Any) -> int:
        return 8 if config.downsample_in_first_stage else 4


@register_tower("vision")
class RegNetVision(ConvolutionalStages):
    """`RegNetModel`: the mean of the last map, which no norm follows."""

    family = "RegNet"
    classes = ("RegNetModel",)

    def _first_stride(self, config: Any) -> int:
        return 4 if config.downsample_in_first_stage else 2


class MergingStages(Stages, TokenVisionTower):
    """Stages of tokens (B, h*w, C), each but the last of which ends by merging 2 x 2 of them.

    A stage returns its tokens after merging, in a tuple. What follows them differs: the same
    state as a map (Swin, since transformers 5), or the state before merging and both sizes.
    """

    blocks_at = ("encoder.layers",)
    norms_at = ("layernorm",)
    prefix = 0

    def __init__(self, given: nn.Module) -> None:
        """Read the stages; see `TransformersVision`."""
        super().__init__(given)
        self.image_size = pair(self._encoder(self.module).config.image_size)

    def _layout(self, config: Any, count: int) -> tuple[list[int], list[int]]:
        merged = [min(stage + 1, count - 1) for stage in range(count)]
        height, width = pair(config.patch_size)
        if height != width:
            raise ValueError(f"{self.label()} must have square patches, found {height} x {width}")
        self.patch = height
        return [config.embed_dim * 2**n for n in merged], [height * 2**n for n in merged]

    def block_grid(self, block: int, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the grid after the stage: sizes are padded up to whole cells."""
        return self._grid(block, image_size)

    def write_map(self, block: int, output: Any, new_map: Tensor) -> Any:
        """Return the output with other tokens, and with them wherever it holds the same state."""
        written = super().write_map(block, output, new_map)
        if not isinstance(output, tuple):
            return written
        tokens, copy, *rest = written
        if copy is output[0]:
            copy = tokens
        elif copy.ndim == 4:
            copy = new_map.to(copy.dtype).contiguous()
        return (tokens, copy, *rest)


@register_tower("vision")
class SwinVision(MergingStages):
    """`SwinModel`: the mean of the normed tokens.

    Its layers shrink their windows, for good, when a map is smaller than a window, and stop
    shifting them when it is as small: one picture changes what the model says of later ones, or
    breaks it. So too small pictures are refused, and the tower runs on views of the layers.
    """

    family = "Swin"
    classes = ("SwinModel",)

    def check_input(self, pixel_values: Tensor) -> None:
        """Raise a ValueError unless a window fits into the last map; see `VisionTower`."""
        super().check_input(pixel_values)
        size = (pixel_values.shape[2], pixel_values.shape[3])
        window: int = self._encoder(self.module).config.window_size
        stride = self.blocks[-1].stride or 1
        if min(self.map_grid(size)) < window:
            raise ValueError(
                f"pictures of {size[0]} x {size[1]} pixels are too small for this "
                f"{self.label()}: its windows are {window} x {window} cells of its last map, so "
                f"sides must be at least {(window - 1) * stride + 1} pixels"
            )

    def run(self, module: Any, pixel_values: Tensor) -> Any:
        """Call the model on views of its layers; see `TransformersVision.run`."""
        # A view reaches down to what is exchanged: every layer holds a table.
        tables = {name: tensor_at(module, name) for name in self.position_names()}
        return super().run(view_with(module, tables), pixel_values)


@register_tower("vision")
class Swinv2Vision(MergingStages):
    """`Swinv2Model`: the mean of the normed tokens; positions are computed, not looked up."""

    family = "Swinv2"
    classes = ("Swinv2Model",)


@register_tower("vision")
class FocalNetVision(MergingStages):
    """`FocalNetModel`: the mean of the normed tokens."""

    family = "FocalNet"
    classes = ("FocalNetModel",)
    blocks_at = ("encoder.stages",)


def _is_hiera(module: nn.Module) -> bool:
    return is_a(module, LIBRARY, "HieraPreTrainedModel")


refuse_tower(
    "vision",
    _is_hiera,
    "its tokens lie window by window, not row by row, so they are no map: "
    "expected another hierarchical model, such as SwinModel or ConvNextModel",
)
