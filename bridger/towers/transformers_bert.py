"""Text towers of transformers: BERT and its descendants, alone or in dual encoders built on them.

Where a model has no pooler, its sentence is the first token: all of them were trained with a
token there that stands for the text, and the library's classifiers on them read it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bridger.towers.registry import refuse_tower, register_tower
from bridger.towers.text import mean_of_real
from bridger.towers.transformers import core_of
from bridger.towers.transformers_text import MaskedText


@register_tower("text")
class BertText(MaskedText):
    """`BertModel`; its sentence is its pooler's, or the first token where it has none."""

    family = "Bert"
    encoders = ("BertModel",)


@register_tower("text")
class ElectraText(MaskedText):
    """`ElectraModel`, which has no pooler: its sentence is the first token."""

    family = "Electra"
    encoders = ("ElectraModel",)


@register_tower("text")
class RobertaText(MaskedText):
    """`RobertaModel`, `XLMRobertaModel`, `CamembertModel`.

    The sentence is the pooler's, or the first token where there is none. Positions count from
    the padding id, so a table of 514 rows takes 512 tokens.
    """

    family = "Roberta"
    encoders = ("RobertaModel", "XLMRobertaModel", "CamembertModel")


@register_tower("text")
class MpnetText(MaskedText):
    """`MPNetModel`: positions as RoBERTa's, and a table of relative ones that all blocks share.

    The sentence is the pooler's, or the first token where there is none.
    """

    family = "MPNet"
    encoders = ("MPNetModel",)


@register_tower("text")
class DebertaText(MaskedText):
    """`DebertaModel` and `DebertaV2Model` (also v3), without a pooler.

    The sentence is the first token, which the library's `ContextPooler` reads as well.
    """

    family = "Deberta"
    encoders = ("DebertaModel", "DebertaV2Model")


@register_tower("text")
class DistilBertText(MaskedText):
    """`DistilBertModel`, which has no pooler: its sentence is the first token."""

    family = "DistilBert"
    encoders = ("DistilBertModel",)
    blocks_at = ("transformer.layer",)


@register_tower("text")
class ModernBertText(MaskedText):
    """`ModernBertModel`: rotary positions, a final norm, no pooler.

    The sentence is what the config's `classifier_pooling` names: the first token ("cls"), or the
    mean over all real ones ("mean").
    """

    family = "ModernBert"
    encoders = ("ModernBertModel",)
    blocks_at = ("layers",)
    words_at = ("embeddings.tok_embeddings",)
    norm_at = "final_norm"

    def pool_tokens(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Pool as the library's own classifier would."""
        if self.encoder_of(self.module).config.classifier_pooling == "mean":
            return mean_of_real(tokens, token_mask)
        return super().pool_tokens(tokens, token_mask)


@register_tower("text")
class NomicBertText(MaskedText):
    """`NomicBertModel` of the library itself (since 5.x): rotary positions.

    The sentence is the pooler's, or the first token where there is none.
    """

    family = "NomicBert"
    encoders = ("NomicBertModel",)
    blocks_at = ("layers",)


@register_tower("text")
class ChineseClipText(MaskedText):
    """`ChineseCLIPTextModel`, or a whole `ChineseCLIPModel`: BERT.

    Alone, the sentence is its pooler's. In the whole it is the first token, projected.
    """

    family = "ChineseCLIPText"
    encoders = ("ChineseCLIPTextModel",)
    wholes = ("ChineseCLIPModel",)


@register_tower("text")
class AltClipText(MaskedText):
    """`AltCLIPTextModel`, or a whole `AltCLIPModel`: XLM-R, a norm and a linear layer.

    The tokens are behind both, as wide as the teacher that the model was distilled from; the
    sentence is the first of them, projected in the whole.
    """

    family = "AltCLIPText"
    encoders = ("AltCLIPTextModel",)
    wholes = ("AltCLIPModel",)
    blocks_at = ("roberta.encoder.layers", "roberta.encoder.layer")
    words_at = ("roberta.embeddings.word_embeddings",)

    @property
    def has_pooler(self) -> bool:
        """Always: the library calls the first token so."""
        return True

    def _token_width(self, encoder: Any) -> int:
        width: int = encoder.transformation.out_features
        return width

    def finish(self, module: Any, last_state: Tensor) -> Tensor:
        """Return the last state normed and transformed."""
        encoder = self.encoder_of(module)
        finished: Tensor = encoder.transformation(encoder.pre_LN(last_state))
        return finished


def _is_albert(module: nn.Module) -> bool:
    return core_of(module, ("AlbertModel",)) is not None


refuse_tower(
    "text",
    _is_albert,
    "ALBERT runs one block object over and over, so its depths cannot be told apart: "
    "expected a model with a block of its own at every depth, such as BertModel",
)
