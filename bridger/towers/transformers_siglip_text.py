"""Text towers of transformers' SigLIP and SigLIP 2."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bridger.towers.registry import register_tower
from bridger.towers.text import fill_up, siglip_mask, siglip_pad_id
from bridger.towers.transformers_text import UnmaskedText


@register_tower("text")
class SiglipText(UnmaskedText):
    """`SiglipTextModel`, `Siglip2TextModel`, or a whole model of either.

    The model pools the last position and saw every text padded to one length in training, with
    the padding in sight: it gets ids padded to that length, and no mask.

    Attributes:
        pad_id: what fills texts up to the trained length; it may be set to something else.
    """

    family = "SiglipText"
    encoders = (
        "SiglipTextModel",
        "SiglipTextTransformer",
        "Siglip2TextModel",
        "Siglip2TextTransformer",
    )
    wholes = ("SiglipModel", "Siglip2Model")
    pad_id: int

    def __init__(self, given: nn.Module) -> None:
        """Read the encoder, as for every family, and what fills its texts up."""
        super().__init__(given)
        # Configs of SigLIP 2 leave the padding id at the first SigLIP's, its tokenizer does not.
        if self.pad_id is None or siglip_pad_id(self.vocab_size) == 0:
            self.pad_id = siglip_pad_id(self.vocab_size)

    def _pooled_width(self, encoder: Any) -> int:
        width: int = encoder.head.out_features
        return width

    def default_mask(self, input_ids: Tensor) -> Tensor:
        """Return the mask up to the padding, of which the first id is read as the text's end."""
        return siglip_mask(input_ids, self.pad_id)

    def pad(self, input_ids: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pad to the trained length."""
        return fill_up(input_ids, token_mask, self.max_length, self.pad_id)
