"""Towers of transformers: CLIP's vision model, with or without projection, or in a whole."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bridger.towers.base import is_a, unwrap
from bridger.towers.dense import DenseProjection, NormProjection
from bridger.towers.registry import register_tower
from bridger.towers.vision import TokenVisionTower

LIBRARY = "transformers"


def _call(encoder: Any, **inputs: Any) -> Any:
    """Call an encoder for its plain result, whatever its config asks for.

    Hidden states would leave hooks on the user's blocks; tuples have no names to read by.
    """
    extra = {"output_hidden_states": False, "output_attentions": False}
    if not is_a(encoder, LIBRARY, "CLIPVisionTransformer", "CLIPTextTransformer"):
        extra["return_dict"] = True  # those two always return objects
    return encoder(**inputs, **extra)


def _core_path(module: Any, name: str) -> str:
    """Return "name." where the encoder proper is such a child, or "" where it is the module.

    Which of the two holds for `CLIPVisionModel` and `CLIPTextModel` depends on the version.
    """
    return f"{name}." if name in module._modules else ""


def _name_of(core: Any) -> str | None:
    name = getattr(core.config, "_name_or_path", None)
    return str(name) if name else None


@register_tower("vision")
class ClipVision(TokenVisionTower):
    """`CLIPVisionModel`, `CLIPVisionModelWithProjection`, or a whole `CLIPModel`."""

    library = LIBRARY
    family = "CLIPVision"
    prefix = 1

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is one of the family's classes."""
        names = ("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPVisionTransformer")
        return is_a(module, LIBRARY, "CLIPModel", *names)

    def __init__(self, given: nn.Module) -> None:
        """Read the vision model and, where there is one, its projection."""
        module = self.module = unwrap(given)
        self._whole = is_a(module, LIBRARY, "CLIPModel")
        self._path = _core_path(module, "vision_model")
        core = module.vision_model if self._path else module
        config = core.config
        self.name = _name_of(module)
        self.patch = config.patch_size
        self.image_size = (config.image_size, config.image_size)
        layers, width = core.encoder.layers, config.hidden_size
        self.blocks = self._name_blocks(
            given, list(layers), [width] * len(layers), [self.patch] * len(layers)
        )
        projection = module._modules.get("visual_projection")
        self.joint_width = None if projection is None else projection.out_features
        self.pooled_width = self.joint_width or width

    def position_names(self) -> tuple[str, ...]:
        """Return the name of the table; the model resizes it by itself."""
        return (f"{self._path}embeddings.position_embedding.weight",)

    def run(self, module: Any, pixel_values: Tensor) -> Any:
        """Call the model; at its own picture size interpolation changes no bit."""
        core = module.vision_model if self._whole else module
        result = _call(core, pixel_values=pixel_values, interpolate_pos_encoding=True)
        return module.visual_projection(result.pooler_output) if self._whole else result

    def pooled(self, result: Any) -> Tensor:
        """Return the normed class token, projected where the model projects."""
        if self._whole:
            whole: Tensor = result
            return whole
        pooled: Tensor = result.pooler_output if self.joint_width is None else result.image_embeds
        return pooled

    def _dense_projection(self) -> DenseProjection:
        projection = None if self.joint_width is None else "visual_projection"
        norm = f"{self._path}post_layernorm"
        return NormProjection(self.module, norm, projection, self.pooled_width or 0)
