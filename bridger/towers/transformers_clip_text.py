"""Text towers of transformers' CLIP and MetaCLIP 2."""

from __future__ import annotations

from torch import Tensor, nn

from bridger.towers.registry import register_tower
from bridger.towers.text import through_first, through_highest
from bridger.towers.transformers_text import UnmaskedText


class _CausalText(UnmaskedText):
    """A causal text model that pools the token which ends a text.

    Padding on the right cannot reach a real token, so it needs no mask and gets none: what a text
    says is then the same in any batch.

    Attributes:
        eos_id: the id that ends a text.
    """

    eos_id: int

    def __init__(self, given: nn.Module) -> None:
        """Read the encoder, as for every family, and what ends its texts."""
        super().__init__(given)
        self.eos_id = self.encoder_of(self.module).config.eos_token_id

    def default_mask(self, input_ids: Tensor) -> Tensor:
        """Return the mask through the end of the text, found as the model finds it."""
        return through_first(input_ids == self.eos_id, f"end-of-text id {self.eos_id}")


@register_tower("text")
class ClipText(_CausalText):
    """`CLIPTextModel`, `CLIPTextModelWithProjection`, or a whole `CLIPModel`."""

    family = "CLIPText"
    encoders = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPTextTransformer")
    wholes = ("CLIPModel",)

    def default_mask(self, input_ids: Tensor) -> Tensor:
        """Return the mask through the end of the text, found as the model finds it."""
        if self.eos_id == 2:  # old configs: the model takes the highest id instead
            return through_highest(input_ids)
        return super().default_mask(input_ids)


@register_tower("text")
class MetaClip2Text(_CausalText):
    """`MetaClip2TextModel`, `MetaClip2TextModelWithProjection`, or a whole `MetaClip2Model`."""

    family = "MetaClip2Text"
    encoders = (
        "MetaClip2TextModel",
        "MetaClip2TextModelWithProjection",
        "MetaClip2TextTransformer",
    )
    wholes = ("MetaClip2Model",)
