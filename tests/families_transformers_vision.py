"""Vision towers of transformers, one row a class: small random weights, 64 x 64 pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helpers_families import VisionRow
from helpers_towers import JOINT, VOCAB, fill
from torch import nn

VIT = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=48,
    image_size=64,
    patch_size=16,
)
TEXT = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    vocab_size=VOCAB,
)
MERGING = dict(
    image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 2], num_heads=[1, 2, 2], window_size=4
)
NET = dict(depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32])


def build(name: str, **changes: Any) -> nn.Module:
    """Make a small model of that class, its config changed so."""
    return fill(make(name, **changes))


def make(name: str, **changes: Any) -> Any:
    """Make a small model of that class as the library initialises it."""
    import transformers

    cls = getattr(transformers, name)
    small = next(values for stems, values in SMALL if name.startswith(stems))
    return cls(cls.config_class(**{**small, **changes}))


def whole(name: str, projection: int | None = JOINT, **text: Any) -> Callable[[], nn.Module]:
    """Return a factory of a small whole dual encoder."""
    sides: dict[str, Any] = dict(text_config={**TEXT, **text}, vision_config=VIT)
    shared = {} if projection is None else dict(projection_dim=projection)
    return lambda: fill(_whole(name, {**sides, **shared}))


def _whole(name: str, config: dict[str, Any]) -> nn.Module:
    import transformers

    cls = getattr(transformers, name)
    model: nn.Module = cls(cls.config_class(**config))
    return model


SMALL: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("Swin",), MERGING),
    (("FocalNet",), dict(image_size=64, embed_dim=8, depths=[1, 1, 2])),
    (("ConvNext", "DINOv3ConvNext"), NET),
    (("ResNet",), dict(**NET, embedding_size=8)),
    (("RegNet",), dict(**NET, embedding_size=8, groups_width=4)),
    (("DINOv3ViT",), dict(**VIT, num_register_tokens=4)),
    (("MetaClip2VisionModelWithProjection",), dict(**VIT, projection_dim=JOINT)),
    (("",), VIT),
)
"""Configs by how a class's name starts; the first that fits counts."""


def _row(name: str, **options: Any) -> VisionRow:
    return VisionRow(f"transformers/{name}", lambda: build(name), **options)


ALT = dict(project_dim=JOINT, num_hidden_layers=1)

ROWS: list[VisionRow] = [
    _row("SiglipVisionModel", fast=True),
    VisionRow("transformers/SiglipModel", whole("SiglipModel", None)),
    _row("ViTModel"),
    _row("ViTForImageClassification"),
    _row("DeiTModel"),
    _row("BeitModel"),
    _row("Data2VecVisionModel"),
    _row("IJepaModel"),
    _row("ViTMSNModel"),
    _row("Dinov2Model"),
    _row("Dinov2WithRegistersModel"),
    _row("DINOv3ViTModel"),
    _row("BlipVisionModel"),
    _row("Blip2VisionModel"),
    _row("InstructBlipVisionModel"),
    _row("AltCLIPVisionModel"),
    VisionRow("transformers/AltCLIPModel", whole("AltCLIPModel", **ALT)),
    _row("ChineseCLIPVisionModel"),
    VisionRow("transformers/ChineseCLIPModel", whole("ChineseCLIPModel")),
    _row("MetaClip2VisionModel"),
    _row("MetaClip2VisionModelWithProjection"),
    VisionRow("transformers/MetaClip2Model", whole("MetaClip2Model")),
    _row("CLIPSegVisionModel"),
    VisionRow("transformers/CLIPSegModel", whole("CLIPSegModel")),
    _row("SwinModel"),
    _row("SwinForImageClassification"),
    _row("Swinv2Model"),
    _row("FocalNetModel"),
    _row("ConvNextModel"),
    _row("ConvNextForImageClassification"),
    _row("ConvNextV2Model"),
    _row("DINOv3ConvNextModel"),
    _row("ResNetModel"),
    _row("RegNetModel"),
]
