"""timm's vision classes for the conformance suite, as small as they can be built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helpers_families import VisionRow
from helpers_towers import fill
from torch import nn

Build = Callable[[], nn.Module]


def timm_model(name: str, **changes: Any) -> nn.Module:
    """A timm model with other sizes, filled with random numbers."""
    import timm

    return fill(timm.create_model(name, pretrained=False, **changes))


def vit(name: str, **changes: Any) -> Build:
    """A ViT of 4 blocks, 32 wide."""
    small = dict(img_size=64, embed_dim=32, depth=4, num_heads=2, num_classes=0)
    return lambda: timm_model(name, **{**small, **changes})


def staged(name: str, **changes: Any) -> Build:
    """A model with stages, without its classifier unless `changes` asks for one."""
    return lambda: timm_model(name, **{"num_classes": 0, **changes})


def swin(name: str, **changes: Any) -> Build:
    """A Swin Transformer with one block per stage and windows of 4 x 4 cells."""
    small = dict(img_size=64, window_size=4, depths=FOUR, embed_dim=12, num_heads=(1, 2, 2, 4))
    return staged(name, **small, **changes)


def open_clip_timm(name: str, pool: str, proj: str | None, size: int = 64) -> Build:
    """open_clip's `TimmModel` around a model of timm."""

    def build() -> nn.Module:
        from open_clip.timm_model import TimmModel

        model = TimmModel(name, 24, image_size=size, pool=pool, proj=proj or "")
        if hasattr(model.trunk, "set_input_size"):
            model.set_input_size(size)
        return fill(model)

    return build


def dual_encoder() -> nn.Module:
    """transformers' `VisionTextDualEncoderModel` from the halves of a tiny CLIP."""
    from helpers_towers import JOINT, hf_clip_config
    from transformers import (
        CLIPTextModel,
        CLIPVisionModel,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
    )

    config = hf_clip_config(image_size=64, patch_size=16)
    whole = VisionTextDualEncoderConfig.from_vision_text_configs(
        config.vision_config, config.text_config, projection_dim=JOINT
    )
    vision, text = CLIPVisionModel(config.vision_config), CLIPTextModel(config.text_config)
    return fill(VisionTextDualEncoderModel(whole, vision, text))


FOUR: tuple[int, ...] = (1, 1, 1, 1)
WIDTHS = (16, 24, 32, 48)
FIXED: dict[str, Any] = dict(other_sizes=())

ROTATIONS = {"half": "alone it differs by 61 % in bfloat16: its rotations are made in that type"}
ROUNDED = dict.fromkeys(
    ("autocast", "half"),
    "alone it differs by 4 to 7 %, which Bridgers enlarge above the 10 % asked",
)

ROWS: list[VisionRow] = [
    VisionRow("timm/VisionTransformer", vit("vit_tiny_patch16_224", num_classes=7), fast=True),
    VisionRow("timm/VisionTransformer CLIP", vit("vit_base_patch16_clip_224")),
    VisionRow("timm/VisionTransformer SigLIP", vit("vit_base_patch16_siglip_224")),
    VisionRow(
        "timm/VisionTransformer registers",
        vit("vit_small_patch14_reg4_dinov2", img_size=56),
        image_size=(56, 56),
        other_sizes=((56, 84), (84, 56)),
    ),
    VisionRow("timm/VisionTransformer mean", vit("vit_medium_patch16_gap_240", num_classes=7)),
    VisionRow(
        "timm/VisionTransformerDistilled", vit("deit_tiny_distilled_patch16_224", num_classes=7)
    ),
    VisionRow("timm/VisionTransformer dynamic", vit("vit_tiny_patch16_224", dynamic_img_size=True)),
    VisionRow("timm/VisionTransformerRelPos", vit("vit_relpos_small_patch16_224"), **FIXED),
    VisionRow("timm/Beit", vit("beit_base_patch16_224"), **FIXED),
    VisionRow("timm/Eva", vit("eva02_base_patch16_clip_224"), **FIXED),
    VisionRow(
        "timm/Eva dynamic",
        vit("eva02_base_patch16_clip_224", dynamic_img_size=True),
        exceptions=ROTATIONS,
    ),
    VisionRow("timm/Eva pool", vit("vit_pe_core_base_patch16_224", num_classes=24), **FIXED),
    VisionRow(
        "timm/ResNet",
        staged("resnet18", layers=FOUR, channels=WIDTHS, num_classes=7),
    ),
    VisionRow("timm/ResNetV2", staged("resnetv2_50", layers=FOUR, channels=WIDTHS, stem_chs=8)),
    VisionRow("timm/RegNet", staged("regnetx_002")),
    VisionRow("timm/ConvNeXt", staged("convnext_atto", depths=FOUR, dims=WIDTHS, num_classes=7)),
    VisionRow("timm/EfficientNet", staged("test_efficientnet", num_classes=7)),
    VisionRow("timm/MobileNetV3", staged("mobilenetv3_small_050", num_classes=7)),
    VisionRow(
        "timm/PyramidVisionTransformerV2",
        staged("pvt_v2_b0", depths=FOUR, embed_dims=WIDTHS, num_heads=(1, 2, 2, 4)),
    ),
    VisionRow(
        "timm/FastVit",
        staged("fastvit_mci0", layers=FOUR, embed_dims=(32, 32, 64, 64)),
        exceptions=ROUNDED,
    ),
    VisionRow(
        "timm/MaxxVit",
        staged("maxvit_rmlp_pico_rw_256", img_size=64, depths=FOUR, embed_dim=(32, 32, 64, 64)),
        other_sizes=((64, 128), (128, 64)),
    ),
    VisionRow("timm/SwinTransformer", swin("swin_tiny_patch4_window7_224"), **FIXED),
    VisionRow(
        "timm/SwinTransformer any size",
        swin("swin_tiny_patch4_window7_224", strict_img_size=False),
    ),
    VisionRow("timm/SwinTransformerV2", swin("swinv2_tiny_window8_256"), **FIXED),
    VisionRow("timm/Staged ByobNet", staged("test_byobnet")),
    VisionRow(
        "timm/StagedChannelsLast MambaOut", staged("mambaout_femto", depths=FOUR, dims=WIDTHS)
    ),
    VisionRow("open_clip/TimmModel ViT", open_clip_timm("test_vit", "", "linear")),
    VisionRow("open_clip/TimmModel SigLIP", open_clip_timm("test_vit", "map", "none")),
    VisionRow("open_clip/TimmModel ConvNeXt", open_clip_timm("test_convnext", "", "mlp")),
    VisionRow(
        "open_clip/TimmModel ResNet",
        open_clip_timm("test_resnet", "avg", None),
    ),
    VisionRow("transformers/VisionTextDualEncoderModel", dual_encoder),
]
