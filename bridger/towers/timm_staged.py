"""Towers of timm whose maps shrink in stages: CNNs, Swin Transformers and their mixtures.

timm's models say in `feature_info` which modules end a stage, how wide its maps are and by how
much they are reduced. Blocks are the last such module at every reduction of 4 or more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from einops import rearrange
from torch import Tensor, nn

from bridger.towers.base import Block, child_at, is_a, pair, unwrap
from bridger.towers.dense import DenseProjection, Tail
from bridger.towers.pre_logits import StagedMapTower, last_of_each_stride
from bridger.towers.registry import register_tower
from bridger.towers.timm_base import SET_INPUT_SIZE, TimmTower
from bridger.towers.timm_trial import only_size
from bridger.towers.vision import ChannelsLastMapVisionTower, MapVisionTower

ONE_CELL = {"b c h w": "(b h w) c 1 1", "b h w c": "(b h w) 1 1 c"}
"""Every cell as a map of its own, by the layout of maps."""


class TimmStages(TimmTower, StagedMapTower):
    """A model of timm with stages.

    Attributes:
        tail: what runs after the last stage, before the pool; None where that is not known, and
            the last map is then left as it is.
        layout: how the tail takes the map.
    """

    tail: ClassVar[tuple[str, ...] | None] = None
    layout: ClassVar[str] = "b c h w"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is of the class that gives the family its name."""
        return is_a(module, "timm", cls.family)

    def __init__(self, given: nn.Module) -> None:
        """Read the model's stages; ValueError where its `feature_info` names none."""
        module: Any = unwrap(given)
        stages = _stages(module)
        if not stages:
            raise ValueError(
                f"{type(module).__name__}.feature_info names no stages, by which {self.label()} "
                "knows what to bridge: pass a model as timm.create_model gives it"
            )
        self._width = int(getattr(module, "head_hidden_size", None) or module.num_features)
        self._read_head(given, self._width)
        self.blocks = self._name_blocks(
            given,
            [stage.module for stage in stages],
            [stage.width for stage in stages],
            [stage.stride for stage in stages],
        )
        self.image_size = self.fixed_size = _strict_size(module)
        self.other_size = f"{SET_INPUT_SIZE}, or create the model with strict_img_size=False"

    def run(self, module: Any, pixel_values: Tensor) -> Any:
        """Call the model without its classifier; see `PreLogitsVisionTower.run`."""
        if not self.recomputable and getattr(module, "grad_checkpointing", False):
            raise RuntimeError(
                f"activation checkpointing of {self.label()} runs the layers inside its stages "
                "without the stages, which can then not be bridged: "
                "call model.set_grad_checkpointing(False)"
            )
        return super().run(module, pixel_values)

    def _dense_projection(self) -> DenseProjection | None:
        if self.tail is None:
            return None
        return CellHead(self.module, self.tail, self._width, self.layout)


class TimmMaps(TimmStages, MapVisionTower):
    """Stages with maps (B, C, H, W)."""


class TimmChannelsLast(TimmStages, ChannelsLastMapVisionTower):
    """Stages with maps (B, H, W, C)."""

    layout = "b h w c"


class CellHead(Tail):
    """What runs after the last stage, then the model's head on each cell, as if it were a map.

    The pool of one cell is that cell, so this is the norm and the hidden layers that the head
    applies to the pooled feature. What runs after the last stage sees the whole map.
    """

    def forward(self, last_map: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Run tail and head; see `DenseProjection.forward`."""
        last_map = super().forward(last_map, tensors)
        batch, _, height, _ = last_map.shape
        cells = rearrange(last_map, f"b c h w -> {ONE_CELL[self.layout]}")
        head = self.borrow("forward_head", tensors)
        dense: Tensor = head(cells, pre_logits=True).flatten(1)
        return rearrange(dense, "(b h w) c -> b c h w", b=batch, h=height)


def _stages(module: Any) -> list[Block]:
    """Return the stages that `feature_info` names, or none where it does not fit them."""
    blocks = []
    for info in getattr(module, "feature_info", ()):
        name = info["module"] if isinstance(info, Mapping) else ""
        # A module deeper than this lies inside a block, on one of its branches.
        if not name or name.count(".") > 1:
            return []
        stage = child_at(module, name)
        if stage is None:
            return []
        blocks.append(Block(name, stage, int(info["num_chs"]), int(info["reduction"])))
    stages = last_of_each_stride(blocks)
    strides = [stage.stride or 0 for stage in stages]
    twice = len({id(stage.module) for stage in stages}) < len(stages)
    return [] if len(stages) < 2 or strides != sorted(strides) or twice else stages


def _strict_size(module: Any) -> tuple[int, int] | None:
    embed = getattr(module, "patch_embed", None)
    size = getattr(embed, "img_size", None)
    if size is None or not getattr(embed, "strict_img_size", False):
        return None
    return pair(size)


class ByFeatureInfo(TimmStages):
    """Any model of timm whose `feature_info` names at least two stages.

    Asked last. Its last map is the last stage's, as it is; at sizes that the last stride does
    not divide, the map's size may be one less than `map_grid` says. A trial forward sees whether
    stages return maps, and whether the model takes one picture size only.
    """

    def __init__(self, given: nn.Module) -> None:
        """Read the stages and try them; ValueError where they are no maps."""
        super().__init__(given)
        only = only_size(self, self.fixed_size)
        if self.fixed_size is None and only is not None:
            self.image_size = self.fixed_size = only
            self.other_size = "resize the pictures"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is such a model, with maps of the family's layout."""
        layout = "b h w c" if getattr(module, "output_fmt", None) == "NHWC" else "b c h w"
        return cls.layout == layout and _is_timm(module) and bool(_stages(module))

    def describe(self) -> dict[str, Any]:
        """Return the identity with the model's class, which the family does not tell."""
        return {**super().describe(), "model": type(self.module).__name__}


def _is_timm(module: nn.Module) -> bool:
    return type(module).__module__.startswith("timm.") and hasattr(module, "get_classifier")


@register_tower("vision")
class TimmStaged(ByFeatureInfo, TimmMaps):
    """Any such model with maps (B, C, H, W)."""

    family = "Staged"


@register_tower("vision")
class TimmStagedChannelsLast(ByFeatureInfo, TimmChannelsLast):
    """Any such model with maps (B, H, W, C)."""

    family = "StagedChannelsLast"


@register_tower("vision")
class TimmResNet(TimmMaps):
    """timm's `ResNet`, and those that derive from it: ResNeXt, SE-ResNet, Res2Net, ResNeSt."""

    family = "ResNet"
    tail = ()
    recomputable = False


@register_tower("vision")
class TimmResNetV2(TimmMaps):
    """timm's `ResNetV2`: pre-activation, so that a norm follows the last stage (BiT)."""

    family = "ResNetV2"
    tail = ("norm",)


@register_tower("vision")
class TimmRegNet(TimmMaps):
    """timm's `RegNet`."""

    family = "RegNet"
    tail = ("final_conv",)


@register_tower("vision")
class TimmConvNeXt(TimmMaps):
    """timm's `ConvNeXt`, whose norm sits in its head."""

    family = "ConvNeXt"
    tail = ("norm_pre",)
    rounds_up = False


@register_tower("vision")
class TimmEfficientNet(TimmMaps):
    """timm's `EfficientNet`, and what is built from it: MobileNetV2, MixNet, MNASNet."""

    family = "EfficientNet"
    tail = ("conv_head", "bn2")
    recomputable = False


@register_tower("vision")
class TimmMobileNetV3(TimmMaps):
    """timm's `MobileNetV3`, whose head convolves after it has pooled."""

    family = "MobileNetV3"
    tail = ()
    recomputable = False


@register_tower("vision")
class TimmPVT(TimmMaps):
    """timm's `PyramidVisionTransformerV2`."""

    family = "PyramidVisionTransformerV2"
    tail = ()


@register_tower("vision")
class TimmFastVit(TimmMaps):
    """timm's `FastVit`, MobileCLIP's among them."""

    family = "FastVit"
    tail = ("final_conv",)


@register_tower("vision")
class TimmMaxxVit(TimmMaps):
    """timm's `MaxxVit`: MaxViT, whose windows must tile every map, and CoAtNet, of fixed size."""

    family = "MaxxVit"
    tail = ("norm",)

    def __init__(self, given: nn.Module) -> None:
        """Read the stages, and the window that must tile the last map, or be all of it."""
        super().__init__(given)
        last: Any = self.blocks[-1].module
        stride = self.blocks[-1].stride or 1
        cells: Any = next(
            (part.window_size for part in last.modules() if hasattr(part, "window_size")), (1, 1)
        )
        self._window = (int(cells[0]) * stride, int(cells[1]) * stride)
        self._tiles = any(hasattr(module, "partition_size") for module in last.modules())
        if not self._tiles and cells != (1, 1):
            self.image_size = self.fixed_size = self._window
            self.other_size = "create the model with that img_size"

    def check_input(self, pixel_values: Tensor) -> None:
        """Raise a ValueError unless the windows tile the last map; see `VisionTower`."""
        super().check_input(pixel_values)
        height, width = self._window
        if self._tiles and (pixel_values.shape[2] % height or pixel_values.shape[3] % width):
            raise ValueError(
                f"the windows of this {self.label()} tile pictures whose height and width are "
                f"multiples of {height} and {width} pixels, found {pixel_values.shape[2]} x "
                f"{pixel_values.shape[3]}: {SET_INPUT_SIZE}"
            )


@register_tower("vision")
class TimmSwin(TimmChannelsLast):
    """timm's `SwinTransformer`."""

    family = "SwinTransformer"
    tail = ("norm",)


@register_tower("vision")
class TimmSwinV2(TimmChannelsLast):
    """timm's `SwinTransformerV2`."""

    family = "SwinTransformerV2"
    tail = ("norm",)
