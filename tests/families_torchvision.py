"""torchvision's vision classes for the conformance suite, as small as they can be built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helpers_families import VisionRow
from helpers_towers import fill
from torch import nn


def _build(module: str, name: str, *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import importlib

        library = importlib.import_module(f"torchvision.models.{module}")
        return fill(getattr(library, name)(*args, **kwargs))

    return build


def _resnet(block: str = "BasicBlock", **kwargs: Any) -> nn.Module:
    from torchvision.models import resnet

    kwargs = {"num_classes": 7, **kwargs}
    return fill(resnet.ResNet(getattr(resnet, block), [1, 2, 1, 1], **kwargs))


def _getter() -> nn.Module:
    """A ResNet as MDETR holds it: no pool, and BatchNorms that never move."""
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.ops import FrozenBatchNorm2d

    layers = {f"layer{i}": str(i) for i in (1, 2, 3, 4)}
    model = IntermediateLayerGetter(_resnet(norm_layer=FrozenBatchNorm2d), layers)
    return fill(model)


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    widths = [16, 24, 32, 48]
    blocks = [
        CNBlockConfig(width, after, 1)
        for width, after in zip(widths, [*widths[1:], None], strict=True)
    ]
    return fill(ConvNeXt(blocks, num_classes=7))


def _swin(v2: bool) -> nn.Module:
    from torchvision.models import swin_transformer as swin

    version: dict[str, Any] = {}
    if v2:
        version = dict(block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2)
    return fill(
        swin.SwinTransformer(
            [4, 4], 16, [2, 1, 1, 1], [2, 2, 4, 4], [4, 4], num_classes=7, **version
        )
    )


def _efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    rows = [
        (1, 3, 1, 16, 8, 1),
        (4, 3, 2, 8, 16, 2),
        (4, 5, 2, 16, 24, 1),
        (4, 3, 2, 24, 32, 1),
        (4, 5, 1, 32, 40, 1),
        (4, 5, 2, 40, 48, 1),
        (4, 3, 1, 48, 56, 1),
    ]
    return fill(
        EfficientNet([MBConvConfig(*row) for row in rows], 0.1, num_classes=7, last_channel=64)
    )


def _mobilenet_v3() -> nn.Module:
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    rows = [
        (16, 3, 16, 16, True, "RE", 2, 1),
        (16, 3, 32, 24, False, "RE", 2, 1),
        (24, 3, 32, 24, False, "RE", 1, 1),
        (24, 5, 48, 40, True, "HS", 2, 1),
        (40, 5, 64, 48, True, "HS", 2, 1),
    ]
    blocks = [InvertedResidualConfig(*row, 1.0) for row in rows]
    return fill(MobileNetV3(blocks, 64, num_classes=7))


VIT = dict(
    image_size=64,
    patch_size=16,
    num_layers=4,
    num_heads=2,
    hidden_dim=32,
    mlp_dim=48,
    num_classes=7,
)

ROWS: list[VisionRow] = [
    VisionRow("torchvision/ResNet", _resnet, fast=True),
    VisionRow(
        "torchvision/ResNet dilated",
        lambda: _resnet("Bottleneck", replace_stride_with_dilation=[False, False, True]),
    ),
    VisionRow("torchvision/IntermediateLayerGetter", _getter),
    VisionRow(
        "torchvision/VisionTransformer",
        _build("vision_transformer", "VisionTransformer", **VIT),
    ),
    VisionRow(
        "torchvision/VisionTransformer with a hidden layer",
        _build("vision_transformer", "VisionTransformer", **VIT, representation_size=24),
    ),
    VisionRow("torchvision/SwinTransformer", lambda: _swin(v2=False)),
    VisionRow("torchvision/SwinTransformer V2", lambda: _swin(v2=True)),
    VisionRow("torchvision/ConvNeXt", _convnext),
    VisionRow("torchvision/EfficientNet", _efficientnet),
    VisionRow("torchvision/RegNet", lambda: _regnet()),
    VisionRow(
        "torchvision/MobileNetV2",
        _build("mobilenetv2", "MobileNetV2", num_classes=7, width_mult=0.25),
    ),
    VisionRow("torchvision/MobileNetV3", _mobilenet_v3),
]


def _regnet() -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    params = BlockParams([1, 2, 1, 1], [16, 24, 32, 48], [8] * 4, [1.0] * 4, [2] * 4, 0.25)
    return fill(RegNet(params, num_classes=7, stem_width=16))
