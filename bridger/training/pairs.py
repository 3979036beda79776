"""Towers by name, so that recipes and the command line can say which pair they mean."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from bridger.processing import Processor

KNOWN = (
    "tiny (the embedded pair), open_clip:MODEL[:PRETRAINED][@SIZE] such as "
    "open_clip:ViT-B-16-quickgelu:openai@416, transformers:MODEL such as "
    "transformers:openai/clip-vit-base-patch16, etris:FILE[@WORDS] (a released ETRIS checkpoint), "
    "timm:MODEL[:PRETRAINED] and torchvision:MODEL[:WEIGHTS] for vision alone, and any two of "
    "these as VISION,TEXT"
)


def load_towers(name: str) -> tuple[nn.Module, nn.Module, Processor | None]:
    """Load a pair of towers.

    Args:
        name: "tiny", the embedded pair; "open_clip:MODEL[:PRETRAINED][@SIZE]", with SIZE the
            side of the pictures in pixels; "transformers:MODEL"; "etris:FILE[@WORDS]", the
            towers in a released ETRIS checkpoint, with WORDS the tokens of a text, which it does
            not tell (17, or 22 for G-Ref; by default 17); or "VISION,TEXT", one of each, where
            the vision tower may be "timm:MODEL[:PRETRAINED]" or "torchvision:MODEL[:WEIGHTS]"
            too. Without PRETRAINED or WEIGHTS, open_clip's, timm's and torchvision's are random.

    Returns:
        The vision tower, the text tower, and the processor where it comes with them.

    Raises:
        ValueError: the name has another form.
    """
    if "," in name and not name.startswith("etris:"):
        vision, text = name.split(",", 1)
        if vision == text:
            return load_towers(text)
        return _vision(vision), load_towers(text)[1], None
    library, _, model = name.partition(":")
    if name == "tiny":
        from bridger.tiny_clip import load_tiny_clip

        return load_tiny_clip()
    if library == "open_clip" and model:
        return _from_open_clip(model)
    if library == "transformers" and model:
        from transformers import AutoModel

        both: Any = AutoModel.from_pretrained(model)
        return both, both, None
    if library == "etris" and model:
        return _from_etris(model)
    if library in ("timm", "torchvision") and model:
        raise ValueError(f"{name!r} is a vision tower alone: expected VISION,TEXT, or {KNOWN}")
    raise ValueError(f"towers {name!r} are unknown; known are {KNOWN}")


def _vision(name: str) -> nn.Module:
    library, _, model = name.partition(":")
    model, _, pretrained = model.partition(":")
    if library == "timm" and model:
        import timm

        tagged = f"{model}.{pretrained}" if pretrained else model
        tower: nn.Module = timm.create_model(tagged, pretrained=bool(pretrained), num_classes=0)
        return tower
    if library == "torchvision" and model:
        import torchvision

        return torchvision.models.get_model(model, weights=pretrained or None)  # type: ignore[no-any-return]
    return load_towers(name)[0]


def _from_open_clip(model: str) -> tuple[nn.Module, nn.Module, Processor | None]:
    import open_clip

    model, _, size = model.partition("@")
    if size and not size.isdecimal():
        raise ValueError(f"the size after @ is a whole number of pixels, got {size!r}")
    name, _, pretrained = model.partition(":")
    options = {"force_image_size": int(size)} if size else {}
    clip: Any = open_clip.create_model(name, pretrained=pretrained or None, **options)
    return clip.visual, clip, None


def _from_etris(path: str) -> tuple[nn.Module, nn.Module, Processor | None]:
    from bridger import etris

    file, _, words = path.rpartition("@")
    given = words.isdecimal() and not os.path.exists(path)
    model = etris.load(file, int(words)) if given else etris.load(path)
    model.detach()
    return model.encoder.vision.module, model.encoder.text.module, model.processor
