"""Text towers of transformers: the encoders of BART and its kin, which translate and summarise.

What no decoder reads is not their concern, so only the encoder is taken. No token stands for the
text: the sentence is the mean over all real tokens, as open_clip's NLLB-CLIP takes it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bridger.towers.registry import register_tower
from bridger.towers.text import mean_of_real
from bridger.towers.transformers_text import MaskedText


class _EncoderHalf(MaskedText):
    """The encoder of a model that has a decoder as well, given alone (`model.get_encoder()`)."""

    blocks_at = ("layers",)
    words_at = ("embed_tokens",)

    def _longest(self, encoder: Any) -> int:
        # Learned tables have two rows more, which no token uses.
        longest: int = encoder.config.max_position_embeddings
        return longest

    def pool_tokens(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Return the mean over real tokens."""
        return mean_of_real(tokens, token_mask)


@register_tower("text")
class BartText(_EncoderHalf):
    """`BartEncoder`: learned positions, a norm after each block and none at the end."""

    family = "BartEncoder"
    encoders = ("BartEncoder",)


@register_tower("text")
class MBartText(_EncoderHalf):
    """`MBartEncoder` and `M2M100Encoder` (NLLB's too): norms before, and one at the end.

    MBART's positions are learned; M2M100's are sines, so there is no table to train.
    """

    family = "MBartEncoder"
    encoders = ("MBartEncoder", "M2M100Encoder")
    norm_at = "layer_norm"
