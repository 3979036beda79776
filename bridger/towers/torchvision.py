"""Towers of torchvision: ViT, Swin Transformer, and CNNs, each with or without its classifier."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from bridger.towers.base import Block, bare, child_at, is_a, unwrap
from bridger.towers.dense import DenseProjection, Tail
from bridger.towers.pre_logits import PreLogitsVisionTower, StagedMapTower, last_of_each_stride
from bridger.towers.registry import register_tower
from bridger.towers.views import resize_positions
from bridger.towers.vision import ChannelsLastMapVisionTower, MapVisionTower, TokenVisionTower

LIBRARY = "torchvision"


@register_tower("vision")
class TorchvisionViT(PreLogitsVisionTower, TokenVisionTower):
    """torchvision's `VisionTransformer`.

    Its own forward takes one picture size; at others the same modules are called one by one,
    with positions resized.
    """

    library = LIBRARY
    family = "VisionTransformer"
    prefix = 1
    joint_width = None

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is the ViT."""
        return is_a(module, LIBRARY, "VisionTransformer")

    def __init__(self, given: nn.Module) -> None:
        """Read the ViT."""
        module: Any = unwrap(given)
        self.module = module
        self.patch = int(module.patch_size)
        self.image_size = (int(module.image_size), int(module.image_size))
        layers, width = list(module.encoder.layers), int(module.hidden_dim)
        self.blocks = self._name_blocks(
            given, layers, [width] * len(layers), [self.patch] * len(layers)
        )
        hidden = [name for name, _ in module.heads.named_children() if name != "head"]
        self._tail = ("encoder.ln", *(f"heads.{name}" for name in hidden))
        self.classifiers = ("heads.head",) if hasattr(module.heads, "head") else ()
        self.pooled_width = int(module.representation_size or width)

    def fit_positions(self, name: str, table: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Resize all rows but the class token's to the picture's grid."""
        if image_size == self.image_size:
            return table
        native = self.map_grid(self.image_size or image_size)
        return resize_positions(table[0], native, self.map_grid(image_size), self.prefix)[None]

    def run(self, module: Any, pixel_values: Tensor) -> Any:
        """Call the ViT without its classifier, in its way or, at other sizes, step by step."""
        if pixel_values.shape[-2:] == self.image_size:
            return super().run(module, pixel_values)
        patches = module.conv_proj(pixel_values.to(module.conv_proj.weight.dtype))
        tokens = rearrange(patches, "b c h w -> b (h w) c")
        tokens = torch.cat([module.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        pooled = module.encoder(tokens)[:, 0]
        for path in self._tail[1:]:
            pooled = module.get_submodule(path)(pooled)
        return pooled

    def _dense_projection(self) -> DenseProjection:
        return Tail(self.module, self._tail, self.pooled_width or 0)


class TorchvisionStages(StagedMapTower):
    """A model of torchvision with stages.

    Attributes:
        classifier: the layer that turns the pooled feature into logits.
        tail: what runs after the last stage, on every cell; empty where nothing does.
        layout: how the tail takes the map.
    """

    library = LIBRARY
    joint_width = None
    classifier: ClassVar[str]
    tail: ClassVar[tuple[str, ...]] = ()
    layout: ClassVar[str] = "b c h w"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is of the class that gives the family its name."""
        return is_a(module, LIBRARY, cls.family)

    def __init__(self, given: nn.Module) -> None:
        """Read stages and classifier; a classifier that was taken out is no harm."""
        module: Any = unwrap(given)
        self.module = module
        self.image_size = None
        stages = self.stages(module)
        self.blocks = self._name_blocks(
            given,
            [stage.module for stage in stages],
            [stage.width for stage in stages],
            [stage.stride for stage in stages],
        )
        self._tail = [path for path in self._tail_of(module) if child_at(module, path) is not None]
        widths = [_width(module.get_submodule(path)) for path in self._tail]
        self._dense_width = widths[-1] if widths else self.blocks[-1].width
        head = bare(child_at(module, self.classifier))
        is_linear = isinstance(head, nn.Linear)
        self.classifiers = (self.classifier,) if is_linear else ()
        self.pooled_width = int(head.in_features) if is_linear else self._dense_width

    @abstractmethod
    def stages(self, module: Any) -> list[Block]:
        """Return the stages, found by `_walk`."""

    def _tail_of(self, module: Any) -> tuple[str, ...]:
        return self.tail

    def _dense_projection(self) -> DenseProjection | None:
        if not self._tail:
            return None
        return Tail(self.module, self._tail, self._dense_width, self.layout)


def _walk(parts: Iterable[tuple[str, nn.Module]]) -> list[Block]:
    """Return the parts of a trunk with their widths, and their strides from the picture on."""
    blocks: list[Block] = []
    stride = 1
    for name, part in parts:
        stride *= _stride(part)
        blocks.append(Block(name, part, _width(part), stride))
    return blocks


def _stride(part: nn.Module) -> int:
    """Return the factor by which a part of a trunk shrinks its map."""
    if is_a(part, LIBRARY, "PatchMerging", "PatchMergingV2"):
        return 2
    strides: list[Any] = [
        layer.stride for layer in part.modules() if isinstance(layer, (nn.Conv2d, nn.MaxPool2d))
    ]
    return max((int(torch.tensor(stride).max()) for stride in strides), default=1)


def _width(part: nn.Module) -> int:
    """Return the channels that leave a part: its last convolution's, or its last norm's."""
    width = 0
    for layer in part.modules():
        if isinstance(layer, nn.LayerNorm):
            width = width or int(layer.normalized_shape[0])
        elif isinstance(layer, nn.Conv2d):
            width = layer.out_channels
    return width


@register_tower("vision")
class TorchvisionResNet(TorchvisionStages, MapVisionTower):
    """torchvision's `ResNet`, dilated or not, or the `IntermediateLayerGetter` around one (MDETR).

    The getter has no pooled feature.
    """

    family = "ResNet"
    classifier = "fc"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is a ResNet or a getter that goes through at least two of its layers."""
        getter = is_a(module, LIBRARY, "IntermediateLayerGetter") and "layer2" in module._modules
        return getter or super().matches(module)

    def __init__(self, given: nn.Module) -> None:
        """Read the layers that are there."""
        super().__init__(given)
        if not is_a(self.module, LIBRARY, self.family):
            self.pooled_width = None

    def stages(self, module: Any) -> list[Block]:
        """Return `layer1` to `layer4`."""
        return [part for part in _walk(module.named_children()) if part.name.startswith("layer")]


@register_tower("vision")
class TorchvisionRegNet(TorchvisionStages, MapVisionTower):
    """torchvision's `RegNet`."""

    family = "RegNet"
    classifier = "fc"

    def stages(self, module: Any) -> list[Block]:
        """Return the four blocks of the trunk."""
        return _walk([("stem", module.stem), *module.trunk_output.named_children()])[1:]


@register_tower("vision")
class TorchvisionConvNeXt(TorchvisionStages, MapVisionTower):
    """torchvision's `ConvNeXt`, whose norm sits in its classifier."""

    family = "ConvNeXt"
    classifier = "classifier.2"
    tail = ("classifier.0",)
    rounds_up = False

    def stages(self, module: Any) -> list[Block]:
        """Return every other part of `features`; the ones between embed or shrink."""
        return _walk(module.features.named_children())[1::2]


@register_tower("vision")
class TorchvisionSwin(TorchvisionStages, ChannelsLastMapVisionTower):
    """torchvision's `SwinTransformer`, version 1 or 2."""

    family = "SwinTransformer"
    classifier = "head"
    tail = ("norm",)
    layout = "b h w c"

    def stages(self, module: Any) -> list[Block]:
        """Return every other part of `features`; the ones between embed or merge."""
        return _walk(module.features.named_children())[1::2]


class TorchvisionFeatures(TorchvisionStages, MapVisionTower):
    """A CNN with a list of `features`, the last of which only widens the map.

    Blocks are the last parts at every stride of 4 or more.
    """

    def stages(self, module: Any) -> list[Block]:
        """Return the last part at every stride."""
        return last_of_each_stride(_walk([*module.features.named_children()][:-1]))

    def _tail_of(self, module: Any) -> tuple[str, ...]:
        return (f"features.{len(module.features) - 1}",)


@register_tower("vision")
class TorchvisionEfficientNet(TorchvisionFeatures):
    """torchvision's `EfficientNet`, version 1 or 2."""

    family = "EfficientNet"
    classifier = "classifier.1"


@register_tower("vision")
class TorchvisionMobileNetV2(TorchvisionFeatures):
    """torchvision's `MobileNetV2`."""

    family = "MobileNetV2"
    classifier = "classifier.1"


@register_tower("vision")
class TorchvisionMobileNetV3(TorchvisionFeatures):
    """torchvision's `MobileNetV3`, whose pooled feature is what the last layer would classify."""

    family = "MobileNetV3"
    classifier = "classifier.3"
