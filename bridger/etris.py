"""Checkpoints of the released ETRIS code, both ways, to the last bit.

    model = bridger.etris.load("best_model.pth")        # or from_state_dict(state_dict)
    model.predict(image, "the dog on the left")
    bridger.etris.save(model, "again.pth")              # or to_state_dict(model)

The released code is github.com/kkakkkka/ETRIS at cdc6d8e, for ViT-B/16, RN50 and RN101.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bridger._etris_layout import ReleasedLayout
from bridger._etris_names import released_slots
from bridger._files import replacing
from bridger.attach import attach_bridgers
from bridger.bridgers import BridgerConfig
from bridger.heads import ReferringSegmentationHead
from bridger.model import BridgedModel
from bridger.processing import Processor
from bridger.tower_source import remember

IMAGE_SIZE = 416
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH = 64  # of CLIP's attention heads
EXACT = (torch.float32, torch.float16, torch.bfloat16, torch.int64)  # float32 holds them all


def load(path: str | os.PathLike[str], word_length: int = 17, **options: Any) -> BridgedModel:
    """Read a released .pth file; nothing in it but tensors and plain values is run or built.

    Args:
        path: the file, with the state dict alone or with optimiser and scheduler beside it.
        word_length: tokens of a text, see `from_state_dict`.
        **options: of `from_state_dict`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, or holds other things than tensors, or another model.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    # What is no pickle at all fails wherever its first bytes lead: KeyError, IndexError, ...
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint of tensors: expected the .pth that ETRIS' "
            f"train.py writes, whole and unpacked ({type(error).__name__}: {error})"
        ) from error
    try:
        model = from_state_dict(loaded, word_length, **options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    model.tower_source = f"etris:{os.path.abspath(path)}@{word_length}"
    for tower in (model.encoder.vision, model.encoder.text):
        remember(tower.module, model.tower_source)
    return model


def save(model: BridgedModel, path: str | os.PathLike[str]) -> None:
    """Write `{"state_dict": to_state_dict(model)}`, which the released test.py reads.

    The file appears whole or not at all.

    Args:
        model: see `to_state_dict`.
        path: of the file to write.
    """
    with replacing(Path(path)) as partial:
        torch.save({"state_dict": to_state_dict(model)}, partial)


def from_state_dict(
    state_dict: Mapping[str, Any],
    word_length: int = 17,
    *,
    bridger_heads: int | None = None,
    decoder_heads: int = 8,
    image_size: int = IMAGE_SIZE,
) -> BridgedModel:
    """Build towers, Bridgers and head from a released checkpoint.

    Args:
        state_dict: the released model's, with or without "module." before its names, or the whole
            of a .pth file. `logit_scale`, `num_batches_tracked` and attention masks may be absent.
        word_length: tokens of a text: 17 for RefCOCO and RefCOCO+, 22 for both G-Refs.
        bridger_heads: attention heads of the Bridgers, which no shape tells: by default 8 for
            ViT, 4 for ResNets.
        decoder_heads: heads of the decoder.
        image_size: of the processor. A ViT's is in its position table.

    Returns:
        The model in eval mode. `model(pixel_values, input_ids).logits` (B, 1, H/4, W/4) are the
        released model's.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; all are listed.
    """
    tensors, layout = _bare(state_dict)
    resnet = "backbone.visual.layer1.0.conv1.weight" in tensors
    clip = _build_clip(tensors, resnet)
    encoder = attach_bridgers(
        clip.visual,
        clip,
        stages=3,
        config=_bridger_config(tensors, resnet, bridger_heads),
        trainable=("positions", "statistics") if resnet else ("positions",),
        connect=resnet,
        word_length=word_length,
    )
    model = encoder.with_head(
        ReferringSegmentationHead,
        preset="etris",
        width=_shape(tensors, "decoder.norm.weight")[0],
        ffn_width=_shape(tensors, "decoder.layers.0.ffn.0.weight")[0],
        num_layers=_count(tensors, r"decoder\.layers\.(\d+)\."),
        num_heads=decoder_heads,
    )
    if not resnet:
        image_size = clip.visual.image_size[0]
    model.processor = _processor(image_size, word_length)
    _fill(model, tensors)
    model.etris_layout = layout
    return model.eval()


def to_state_dict(model: BridgedModel) -> dict[str, Tensor]:
    """Return the released code's state dict of a model.

    A model from `from_state_dict` gives back the names and the bits that it came from, in their
    order, also after it was saved as an adapter and loaded. Any other one gives all names that
    the released code saves.

    Args:
        model: made of an open_clip CLIP (one object for both towers), Bridgers of an "etris_..."
            preset at three stages, and a head of the "etris" preset. Its ViT should have been
            built for the training's image size: released checkpoints hold a position table of
            that size.

    Returns:
        Copies of the tensors, by released name.

    Raises:
        ValueError: the model is of another form.
    """
    slots, homeless = released_slots(model)
    problems = [*_foreign(model), *(f"no released name for {name}" for name in homeless)]
    if problems:
        raise ValueError("not a model of the released form:\n  " + "\n  ".join(problems))
    layout = model.etris_layout or ReleasedLayout()
    own = model.state_dict()
    dtypes = layout.dtypes or {name: own[slot.parts[0]].dtype for name, slot in slots.items()}
    released = {}
    for name, dtype in dtypes.items():
        mask = layout.masks.get(name)
        tensor = slots[name].read(own).to(dtype) if mask is None else mask.clone()
        released[layout.prefix + name] = tensor
    return released


def _bare(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], ReleasedLayout]:
    """Take the model's tensors out of what a checkpoint holds, without DDP's prefix."""
    inner = state_dict.get("state_dict", state_dict) if isinstance(state_dict, Mapping) else None
    if not isinstance(inner, Mapping):
        raise ValueError(f"expected a state dict by name, found {type(inner or state_dict)}")
    tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    prefix = "module." if tensors and all(n.startswith("module.") for n in tensors) else ""
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    inexact = [
        f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if tensor.dtype not in EXACT
    ]
    if inexact:
        raise ValueError(f"expected tensors of {EXACT}, found {', '.join(inexact[:5])}")
    masks = {name: tensor for name, tensor in tensors.items() if name.endswith("attn_mask")}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    return tensors, ReleasedLayout(prefix, dtypes, masks)


def _fill(model: BridgedModel, tensors: Mapping[str, Tensor]) -> None:
    """Copy a released checkpoint into the model, after everything was found to fit."""
    slots, _ = released_slots(model)
    own = model.state_dict()
    problems = [f"missing: {n}" for n in slots if n not in tensors and not _optional(n)]
    problems += [
        f"unexpected: {n}" for n in tensors if n not in slots and not n.endswith("attn_mask")
    ]
    for name, slot in slots.items():
        if name in tensors:
            expected, found = slot.shape(own), tuple(tensors[name].shape)
            if expected != found:
                problems.append(f"{name}: expected {expected}, found {found}")
    if problems:
        shown = [*problems[:20], *([f"and {len(problems) - 20} more"] if problems[20:] else [])]
        raise ValueError(
            "not a released ETRIS checkpoint of ViT-B/16, RN50 or RN101:\n  " + "\n  ".join(shown)
        )
    with torch.no_grad():
        for name, slot in slots.items():
            if name in tensors:
                slot.write(own, tensors[name])


def _optional(name: str) -> bool:
    return name.endswith(("num_batches_tracked", "logit_scale"))


def _build_clip(tensors: Mapping[str, Tensor], resnet: bool) -> Any:
    """Build open_clip's CLIP of the checkpoint's sizes, its numbers still random."""
    from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg

    grid = "visual.attnpool.positional_embedding" if resnet else "visual.positional_embedding"
    side = math.isqrt(_shape(tensors, f"backbone.{grid}")[0] - 1)
    if resnet:
        vision = CLIPVisionCfg(
            layers=[_count(tensors, rf"backbone\.visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4)],
            width=_shape(tensors, "backbone.visual.layer1.0.conv1.weight")[0],
            image_size=32 * side,
            patch_size=None,
        )
    else:
        width, _, _, patch = _shape(tensors, "backbone.visual.conv1.weight")
        vision = CLIPVisionCfg(
            layers=_count(tensors, r"backbone\.visual\.transformer\.resblocks\.(\d+)\."),
            width=width,
            head_width=HEAD_WIDTH,
            image_size=side * patch,
            patch_size=patch,
        )
    length, width = _shape(tensors, "backbone.positional_embedding")
    text = CLIPTextCfg(
        context_length=length,
        vocab_size=_shape(tensors, "backbone.token_embedding.weight")[0],
        width=width,
        heads=width // HEAD_WIDTH,
        layers=_count(tensors, r"backbone\.transformer\.resblocks\.(\d+)\."),
    )
    joint = _shape(tensors, "backbone.text_projection")[1]
    return CLIP(joint, vision, text, quick_gelu=True)


def _bridger_config(
    tensors: Mapping[str, Tensor], resnet: bool, num_heads: int | None
) -> BridgerConfig:
    changes = {"hidden_dim": _shape(tensors, "bridger.linear1.0.weight")[0]}
    if num_heads is not None:
        changes["num_heads"] = num_heads
    if resnet:
        changes["ffn_dim"] = _shape(tensors, "bridger.fusion_v.0.linear1.weight")[0]
    return BridgerConfig.preset("etris_resnet" if resnet else "etris_vit", **changes)


def _processor(image_size: int, word_length: int) -> Processor:
    from open_clip import SimpleTokenizer

    return Processor(image_size, MEAN, STD, SimpleTokenizer(), word_length)


def _foreign(model: BridgedModel) -> list[str]:
    """Return in what a model's form differs from the released one's."""
    encoder, problems = model.encoder, []
    if encoder.text.library != "open_clip" or "vision" in encoder.towers:
        problems.append("expected both towers in one open_clip CLIP")
    config = encoder.config
    names = ["etris_vit", "etris_resnet"]
    free = ("hidden_dim", "num_heads", "ffn_dim", "dropout", "init")
    if config is None or config not in [
        BridgerConfig.preset(n, **{key: getattr(config, key) for key in free}) for n in names
    ]:
        problems.append(f"expected Bridgers of a preset {' or '.join(names)}, found {config}")
    if len(encoder.stages) != 3:
        problems.append(f"expected 3 stages, found {len(encoder.stages)}")
    if encoder.vision.family == "ModifiedResNet" and not encoder.connect:
        problems.append("expected attach_bridgers(connect=True) for a ResNet")
    heads: list[nn.Module] = list(model.heads.values())
    if len(heads) != 1 or not isinstance(heads[0], ReferringSegmentationHead):
        problems.append("expected one ReferringSegmentationHead")
        return problems
    options = heads[0].config
    wanted = options.replace(
        hierarchical_alignment=True,
        global_alignment=True,
        gate="product",
        decoder_text="tokens",
        keep_inert=True,
    )
    if options != wanted:
        problems.append(f"expected a head of the preset etris, such as {wanted}, found {options}")
    return problems


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(
            f"expected a state dict of the released ETRIS, found none of the name {name!r} "
            f"among {len(tensors)} tensors"
        )
    return tuple(tensors[name].shape)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many numbers stand where the pattern's group is."""
    matches = (re.match(pattern, name) for name in tensors)
    return len({match[1] for match in matches if match})


__all__ = ["ReleasedLayout", "from_state_dict", "load", "save", "to_state_dict"]
