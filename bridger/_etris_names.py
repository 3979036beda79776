"""Where each tensor of a released ETRIS checkpoint lives in a `BridgedModel`.

The names on both sides are compared as text: a rule turns our name into the released one. Names
that differ in more than their spelling are named in `_slot`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from bridger.model import BridgedModel

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

_STAGE = r"encoder\.bridgers\.stages\.(\d+)\."
_HEAD = r"heads\.[^.]+\."
_NECK = _HEAD + r"hierarchical_alignment\."
_DECODER = _HEAD + r"global_alignment\."
_PROJECTOR = _HEAD + r"projector\."
_LAYER = _DECODER + r"layers\.(\d+)\."
_GATE = _NECK + r"gates\.(\d+)\."

_TOWERS: list[Rule] = [
    (r"encoder\.towers\.text\.(.+)", r"backbone.\1"),
    (r"encoder\.dense\.connect\.(.+)", r"backbone.visual.attnpool.connect.\1"),
    (r"encoder\.tower_tensors\.text:(.+)", lambda m: f"backbone.{_dots(m[1])}"),
    (r"encoder\.tower_tensors\.vision:(.+)", lambda m: f"backbone.visual.{_dots(m[1])}"),
]
_BRIDGERS: list[Rule] = [
    (_STAGE + r"text_in\.(.+)", r"bridger.linear1.\1.\2"),
    (_STAGE + r"text_out\.(.+)", r"bridger.linear2.\1.\2"),
    # Norms begin at the second stage, and count from 0 there.
    (_STAGE + r"vision_norm\.(.+)", lambda m: f"bridger.ln_v.{int(m[1]) - 1}.{m[2]}"),
    (_STAGE + r"text_norm\.(.+)", lambda m: f"bridger.ln_t.{int(m[1]) - 1}.{m[2]}"),
]
_VIT_BRIDGERS: list[Rule] = [
    (_STAGE + r"vision_(in|out)\.conv\.(.+)", r"bridger.zoom_\2.\1.0.\3"),
    (_STAGE + r"vision_(in|out)\.norm\.(.+)", r"bridger.zoom_\2.\1.1.\3"),
    (_STAGE + r"interactor\.(v|t)\w+\.(.+)", r"bridger.fusion_\2.\1.multihead_attn.\3"),
]
_RESNET_BRIDGERS: list[Rule] = [
    (_STAGE + r"vision_(in|out)\.conv\.(.+)", r"bridger.zoom_\2.\1.\3"),
    (_STAGE + r"interactor\.(v|t)\w+\.self_attn\.(.+)", r"bridger.fusion_\2.\1.self_attn.\3"),
    (_STAGE + r"interactor\.(v|t)\w+\.cross_attn\.(.+)", r"bridger.fusion_\2.\1.multihead_attn.\3"),
    (_STAGE + r"interactor\.(v|t)\w+\.ffn_up\.(.+)", r"bridger.fusion_\2.\1.linear1.\3"),
    (_STAGE + r"interactor\.(v|t)\w+\.ffn_down\.(.+)", r"bridger.fusion_\2.\1.linear2.\3"),
    (_STAGE + r"interactor\.(v|t)\w+\.norm_self\.(.+)", r"bridger.fusion_\2.\1.norm1.\3"),
    (_STAGE + r"interactor\.(v|t)\w+\.norm_cross\.(.+)", r"bridger.fusion_\2.\1.norm2.\3"),
    (_STAGE + r"interactor\.(v|t)\w+\.norm_ffn\.(.+)", r"bridger.fusion_\2.\1.norm3.\3"),
]
_DECODERS: list[Rule] = [
    (_NECK + r"sentence\.(.+)", r"neck.txt_proj.\1"),
    # The maps of the three stages are called 3, 4 and 5.
    (_NECK + r"zooms\.(\d+)\.conv\.(.+)", lambda m: f"neck.f{int(m[1]) + 3}_proj.0.{m[2]}"),
    (_NECK + r"zooms\.(\d+)\.norm\.(.+)", lambda m: f"neck.f{int(m[1]) + 3}_proj.1.{m[2]}"),
    (_GATE + r"out\.(.+)", lambda m: f"{_fusion(m[1])}.out_proj.{m[2]}"),
    (_GATE + r"value\.(.+)", lambda m: f"{_fusion(m[1])}.in_proj_{m[2]}"),
    (_NECK + r"merge\.(.+)", r"neck.aggr.\1"),
    (_NECK + r"place\.(.+)", r"neck.coordconv.0.conv1.\1"),
    (_NECK + r"smooth\.(.+)", r"neck.coordconv.1.\1"),
    (_LAYER + r"self_attn\.(.+)", r"decoder.layers.\1.self_attn.\2"),
    (_LAYER + r"cross_attn\.(.+)", r"decoder.layers.\1.multihead_attn.\2"),
    (_LAYER + r"norm_self_in\.(.+)", r"decoder.layers.\1.norm1.\2"),
    (_LAYER + r"norm_cross_in\.(.+)", r"decoder.layers.\1.norm2.\2"),
    (_LAYER + r"norm_ffn\.(.+)", r"decoder.layers.\1.norm3.\2"),
    (_LAYER + r"norm_self_out\.(.+)", r"decoder.layers.\1.self_attn_norm.\2"),
    (_LAYER + r"norm_cross_out\.(.+)", r"decoder.layers.\1.cross_attn_norm.\2"),
    (_LAYER + r"ffn\.(.+)", r"decoder.layers.\1.ffn.\2"),
    (_DECODER + r"norm\.(.+)", r"decoder.norm.\1"),
    (_PROJECTOR + r"first\.(.+)", r"proj.vis.1.\1"),
    (_PROJECTOR + r"second\.(.+)", r"proj.vis.3.\1"),
    (_PROJECTOR + r"last\.(.+)", r"proj.vis.4.\1"),
    (_PROJECTOR + r"sentence\.(.+)", r"proj.txt.\1"),
]


class Slot(NamedTuple):
    """Where one released tensor lives in `BridgedModel.state_dict()`.

    Attributes:
        parts: our names; the released tensor is these, one after the other along its first
            dimension.
        transposed: whether the first two dimensions are the other way round.
        shadowed: a tower's own tensor, where `parts` is the adapter's copy that stands in for it.
    """

    parts: tuple[str, ...]
    transposed: bool = False
    shadowed: str | None = None

    def shape(self, own: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Return the released tensor's shape."""
        shape = list(own[self.parts[0]].shape)
        if self.parts[1:]:
            shape[0] = sum(len(own[part]) for part in self.parts)
        if self.transposed:
            shape[:2] = shape[1], shape[0]
        return tuple(shape)

    def read(self, own: Mapping[str, Tensor]) -> Tensor:
        """Return a copy of the released tensor."""
        tensors = [own[part] for part in self.parts]
        tensor = torch.cat(tensors) if tensors[1:] else tensors[0].clone()
        return tensor.transpose(0, 1).contiguous() if self.transposed else tensor

    def write(self, own: Mapping[str, Tensor], released: Tensor) -> None:
        """Copy a released tensor of that shape into the model's."""
        if self.transposed:
            released = released.transpose(0, 1)
        pieces = [released]
        if self.parts[1:]:
            pieces = list(torch.split(released, [len(own[part]) for part in self.parts]))
        for part, piece in zip(self.parts, pieces, strict=True):
            own[part].copy_(piece)
        if self.shadowed is not None:
            own[self.shadowed].copy_(released)


def released_slots(model: BridgedModel) -> tuple[dict[str, Slot], list[str]]:
    """Find the released name of every tensor of a model.

    Returns:
        Slots by released name, and those of our names that no released one stands for.
    """
    own = model.state_dict()
    config = model.encoder.config
    vit = config is not None and config.interactor == "gate"
    rules = [
        *_TOWERS,
        *_BRIDGERS,
        *(_VIT_BRIDGERS if vit else _RESNET_BRIDGERS),
        *_DECODERS,
    ]
    slots: dict[str, Slot] = {}
    homeless = []
    for name in own:
        if "query_key_" in name:
            continue  # comes with its gate's value
        released = _rename(name, rules)
        if released is None:
            homeless.append(name)
            continue
        slot = _slot(name, vit)
        other = slots.get(released)
        if other is not None:
            copy, tower = sorted([name, other.parts[0]], key=lambda n: ".towers." in n)
            slot = Slot((copy,), shadowed=tower)
        slots[released] = slot
    return slots, homeless


def _slot(name: str, vit: bool) -> Slot:
    if ".gates." in name and ".value." in name:
        # The released code packs the projections of queries, keys and values.
        return Slot((name.replace("value.", "query_key_"), name))
    # The last map's layer is a transposed 1x1 convolution for ViT: a 1x1 convolution, transposed.
    return Slot((name,), transposed=vit and name.endswith("zooms.2.conv.weight"))


def _rename(name: str, rules: list[Rule]) -> str | None:
    for pattern, released in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(released) if isinstance(released, str) else released(match)
    return None


def _dots(key: str) -> str:
    return key.replace("/", ".")


def _fusion(index: str) -> str:
    return f"neck.fusion{int(index) + 3}.multihead_attn"
