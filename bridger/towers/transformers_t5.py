"""Text towers of transformers: the encoders of T5 and its kin, and why decoders are refused."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bridger.towers.base import is_a
from bridger.towers.registry import refuse_tower, register_tower
from bridger.towers.text import ANY_LENGTH, mean_of_real
from bridger.towers.transformers import LIBRARY
from bridger.towers.transformers_text import MaskedText


@register_tower("text")
class T5Text(MaskedText):
    """`T5EncoderModel`, `MT5EncoderModel`, `UMT5EncoderModel`, or the encoder of a full T5.

    Its positions are relative, so any length will do. No token stands for the text: the sentence
    is the mean over all real tokens.
    """

    family = "T5Encoder"
    encoders = (
        "T5EncoderModel",
        "T5Stack",
        "MT5EncoderModel",
        "MT5Stack",
        "UMT5EncoderModel",
        "UMT5Stack",
    )
    entry = "encoder"
    blocks_at = ("block",)
    words_at = ("embed_tokens",)
    norm_at = "final_layer_norm"

    def _longest(self, encoder: Any) -> int:
        return ANY_LENGTH

    def pool_tokens(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Return the mean over real tokens."""
        return mean_of_real(tokens, token_mask)


def _has_both_halves(module: nn.Module) -> bool:
    # The config of an encoder alone still speaks of the whole that it was taken from, and what
    # predicts masked words is called a decoder as well.
    config = getattr(module, "config", None)
    return (
        is_a(module, LIBRARY, "PreTrainedModel")
        and bool(getattr(config, "is_encoder_decoder", False))
        and any(name.rpartition(".")[2] == "decoder" for name, _ in module.named_modules())
    )


def _generates(module: nn.Module) -> bool:
    if not is_a(module, LIBRARY, "PreTrainedModel"):
        return False
    causal = any(getattr(part, "is_causal", False) is True for part in module.modules())
    return causal or is_a(module, LIBRARY, "GenerationMixin")


refuse_tower(
    "text",
    _generates,
    "it is a decoder, made to continue texts: expected an encoder that reads a whole text, such "
    "as BertModel or T5EncoderModel, or the text side of a dual encoder, such as CLIPModel",
)
refuse_tower(
    "text",
    _has_both_halves,
    "it is an encoder and a decoder in one: expected the encoder alone, such as T5EncoderModel, "
    "or what model.get_encoder() returns",
)
