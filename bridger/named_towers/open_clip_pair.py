"""open_clip's models by name, at another picture size, and from a file on this machine."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from bridger.config import did_you_mean
from bridger.towers.views import resize_positions

NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's archives


def load_open_clip(name: str, pretrained: str, size: int | None) -> Any:
    """Load a model of open_clip.

    Args:
        name: of the model.
        pretrained: a tag of open_clip, or a file: a state dict, or one of OpenAI's archives;
            "": random weights.
        size: side of the pictures in pixels, None: the model's own. A ViT's table of positions is
            resized once, as the released code of ETRIS does (open_clip's own way is another); a
            ResNet's is resized in every forward, and stays as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: open_clip has no such model or tag; a size that does not split into patches.
    """
    import open_clip
    from open_clip.model import ModifiedResNet, VisionTransformer

    name = name.replace("/", "-")
    if name not in open_clip.list_models():
        known = did_you_mean(name, open_clip.list_models())
        raise ValueError(f"open_clip has no model {name!r}: {known}")
    clip = _create(name, pretrained)
    visual: Any = clip.visual
    if size is None:
        return clip
    if isinstance(visual, VisionTransformer):
        _resize_vit(visual, size)
    elif not isinstance(visual, ModifiedResNet):
        return _create(name, pretrained, force_image_size=size)
    visual.preprocess_cfg = {**visual.preprocess_cfg, "size": (size, size)}
    return clip


def _create(name: str, pretrained: str, **options: Any) -> Any:
    import open_clip

    if os.path.isfile(pretrained) and _is_archive(pretrained):
        clip: nn.Module = open_clip.create_model(name, **options)
        tensors = torch.jit.load(pretrained, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        clip.load_state_dict({n: t for n, t in tensors.items() if n not in NOT_WEIGHTS})
        return clip
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained and pretrained not in tags and not os.path.isfile(pretrained):
        if os.sep in pretrained:
            raise FileNotFoundError(f"there is no file {pretrained}")
        raise ValueError(
            f"open_clip has no weights {pretrained!r} for {name}, nor is there such a file: "
            f"{did_you_mean(pretrained, tags)}"
        )
    return open_clip.create_model(name, pretrained=pretrained or None, **options)


def _is_archive(path: str) -> bool:
    """Whether the file holds a TorchScript program, as OpenAI's do, and not a state dict."""
    try:
        reader = torch._C.PyTorchFileReader(path)
    except RuntimeError:
        return False
    return any(record.startswith("code/") for record in reader.get_all_records())


def _resize_vit(visual: Any, size: int) -> None:
    patch = visual.patch_size[0]
    if size % patch:
        raise ValueError(f"pictures of {size} pixels do not split into patches of {patch}")
    grid = (size // patch, size // patch)
    table = visual.positional_embedding
    resized = resize_positions(table.detach(), visual.grid_size, grid, prefix=1)
    visual.positional_embedding = nn.Parameter(resized, table.requires_grad)
    visual.grid_size, visual.image_size = grid, (size, size)
