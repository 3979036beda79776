"""Towers by name, so that recipes and the command line can say which pair they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from bridger.processing import Processor

KNOWN = (
    "tiny (the embedded pair), open_clip:MODEL[:PRETRAINED][@SIZE] such as "
    "open_clip:ViT-B-16-quickgelu:openai@416, transformers:MODEL such as "
    "transformers:openai/clip-vit-base-patch16, or etris:FILE (a released ETRIS checkpoint)"
)


def load_towers(name: str) -> tuple[nn.Module, nn.Module, Processor | None]:
    """Load a pair of towers.

    Args:
        name: "tiny", the embedded pair; "open_clip:MODEL[:PRETRAINED][@SIZE]", with SIZE the
            side of the pictures in pixels; "transformers:MODEL"; or "etris:FILE", the towers in
            a released ETRIS checkpoint.

    Returns:
        The vision tower, the text tower, and the processor where it comes with them.

    Raises:
        ValueError: the name has another form.
    """
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
    raise ValueError(f"towers {name!r} are unknown; known are {KNOWN}")


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

    model = etris.load(path)
    model.detach()
    return model.encoder.vision.module, model.encoder.text.module, model.processor
