"""Vision towers of transformers: plain ViTs that share no space with text."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from bridger.towers.registry import register_tower
from bridger.towers.transformers_vision import TransformersTokens


class PlainVit(TransformersTokens):
    """A ViT whose final norm is called `layernorm`, as most are."""

    # The second is where transformers 4 has them.
    blocks_at: ClassVar[tuple[str, ...]] = ("layers", "encoder.layer")
    norms_at: ClassVar[tuple[str, ...]] = ("layernorm",)
    pools = "first"


@register_tower("vision")
class VitVision(PlainVit):
    """`ViTModel`: its pooler (dense, tanh) is the feature, or the normed class token without it."""

    family = "ViT"
    classes = ("ViTModel",)
    refused = {
        "ViTMAEModel": (
            "it drops and shuffles its patches at random, in eval mode too. "
            "Load the weights into ViTModel: ViTModel.from_pretrained(<the same name>)"
        )
    }


@register_tower("vision")
class DeitVision(PlainVit):
    """`DeiTModel`: a class and a distillation token; its pooler reads the class token."""

    family = "DeiT"
    classes = ("DeiTModel",)
    class_tokens = 2


@register_tower("vision")
class VitMsnVision(PlainVit):
    """`ViTMSNModel`, which has no pooler: its feature is the normed class token."""

    family = "ViTMSN"
    classes = ("ViTMSNModel",)


@register_tower("vision")
class IJepaVision(PlainVit):
    """`IJepaModel`, which has neither class token nor pooler: the mean of its normed patches."""

    family = "IJepa"
    classes = ("IJepaModel",)
    class_tokens = 0
    pools = "mean"


@register_tower("vision")
class Dinov2Vision(PlainVit):
    """`Dinov2Model` and `Dinov2WithRegistersModel`: the normed class token."""

    family = "Dinov2"
    classes = ("Dinov2Model", "Dinov2WithRegistersModel")


@register_tower("vision")
class Dinov3Vision(PlainVit):
    """`DINOv3ViTModel`: rotary positions, so it takes any size; the normed class token."""

    family = "DINOv3ViT"
    classes = ("DINOv3ViTModel",)
    blocks_at = ("model.layer", "layer")
    norms_at = ("norm",)


class BeitLike(PlainVit):
    """BEiT's build: positions relative by default, and a mean of patches that is normed behind.

    With `use_mean_pooling` the norm belongs to the pooler, where there is one, and the model's
    last state is not normed. Without a pooler the feature is what it would have read.
    """

    norms_at = ("pooler.layernorm", "layernorm")

    def __init__(self, given: nn.Module) -> None:
        """Read the ViT and how it pools."""
        super().__init__(given)
        self.pools = "mean" if self._encoder(self.module).config.use_mean_pooling else "first"


@register_tower("vision")
class BeitVision(BeitLike):
    """`BeitModel`."""

    family = "Beit"
    classes = ("BeitModel",)


@register_tower("vision")
class Data2VecVision(BeitLike):
    """`Data2VecVisionModel`."""

    family = "Data2VecVision"
    classes = ("Data2VecVisionModel",)


@register_tower("vision")
class BlipVision(PlainVit):
    """BLIP's, BLIP-2's and InstructBLIP's, whose pooler output is the class token normed twice."""

    family = "BlipVision"
    classes = ("BlipVisionModel", "Blip2VisionModel", "InstructBlipVisionModel")
    blocks_at = ("encoder.layers",)
    norms_at = ("post_layernorm",)
