"""CLIP in both of its libraries: towers alone, towers in wholes, and pairs as users pass them."""

from __future__ import annotations

from helpers_families import PairRow, Row, TextRow, VisionRow
from helpers_towers import PAIRS, hf_clip, hf_text, hf_vision, open_clip_resnet, open_clip_vit

VIT = dict(image_size=(32, 32), other_sizes=((48, 64), (64, 32)))

ROWS: list[Row] = [
    VisionRow("open_clip/VisionTransformer", lambda: open_clip_vit().visual, fast=True, **VIT),
    VisionRow("open_clip/CLIP (ViT)", open_clip_vit, **VIT),
    VisionRow("open_clip/ModifiedResNet", lambda: open_clip_resnet().visual, fast=True),
    VisionRow("open_clip/CLIP (ResNet)", open_clip_resnet),
    VisionRow("transformers/CLIPVisionModel", lambda: hf_vision(projection=False), **VIT),
    VisionRow("transformers/CLIPVisionModelWithProjection", hf_vision, fast=True, **VIT),
    VisionRow("transformers/CLIPModel", hf_clip, **VIT),
    TextRow("open_clip/CLIP", open_clip_vit, fast=True),
    TextRow("open_clip/TextTransformer", lambda: open_clip_vit(custom=True).text),
    TextRow(
        "open_clip/TextTransformer (not causal)",
        lambda: open_clip_vit(custom=True, text=dict(no_causal_mask=True)).text,
    ),
    TextRow("open_clip/CustomTextCLIP", lambda: open_clip_vit(custom=True)),
    TextRow("transformers/CLIPTextModel", lambda: hf_text(projection=False)),
    TextRow("transformers/CLIPTextModelWithProjection", hf_text, fast=True),
    TextRow("transformers/CLIPModel (text)", hf_clip),
    *(
        PairRow(name, build, image_size=(64, 64) if "resnet" in name else (32, 32), fast=True)
        for name, build in PAIRS.items()
        if name not in ("hf_clip_plain", "mixed")
    ),
    PairRow("mixed", PAIRS["mixed"], image_size=(64, 64), other_sizes=((64, 96),)),
]
