"""What the text models of transformers share: one base, for which a family declares its parts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from bridger.towers.base import bare, is_a, unwrap
from bridger.towers.registry import refuse_tower
from bridger.towers.text import TextTower, without_padding
from bridger.towers.transformers import LIBRARY, call_plainly, core_of, name_of, part_of
from bridger.towers.views import view_with

ABSOLUTE = ("position_embedding.weight", "position_embeddings.weight", "embed_positions.weight")
RELATIVE = ("rel_embeddings.weight", "relative_attention_bias.weight")


class TransformersText(TextTower):
    """A text model of transformers, alone, under a task's head, or in a whole dual encoder.

    A head (`...ForSequenceClassification` and its like) is left out: its sentence would be logits.
    `module` is the encoder, or the whole where that projects the sentence. `call` returns the
    sentence. Names of parts differ between versions of the library: of several paths below the
    encoder, the first that the model has is taken.

    Attributes:
        encoders: classes that are the encoder, with or without a projection.
        wholes: classes that hold it as `text_model`.
        entry: the child that is the encoder, in classes that wrap it.
        blocks_at, words_at: where its blocks and its token embedding lie.
        norm_at: where its final norm lies, or None where the last block's state is final.
        pad_id: what fills texts up, by the config; None where it names nothing.
    """

    library = LIBRARY
    encoders: ClassVar[tuple[str, ...]]
    wholes: ClassVar[tuple[str, ...]] = ()
    entry: ClassVar[str] = "text_model"
    blocks_at: ClassVar[tuple[str, ...]] = ("encoder.layer",)
    words_at: ClassVar[tuple[str, ...]] = ("embeddings.word_embeddings",)
    norm_at: ClassVar[str | None] = None
    pad_id: int | None

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is one of the family's classes, or a model with a head on one of them."""
        return core_of(module, (*cls.encoders, *cls.wholes)) is not None

    def __init__(self, given: nn.Module) -> None:
        """Read the encoder and, where there is one, its projection.

        Raises:
            ValueError: it is built as a decoder, or a part lies where no known version has it.
        """
        whole = unwrap(given)
        owner: Any = core_of(whole, (*self.encoders, *self.wholes))
        encoder: Any = owner._modules.get(self.entry, owner)
        projection: Any = owner._modules.get("text_projection")
        self._path = "" if projection is None else self.entry
        self.module = encoder if projection is None else owner
        self.name = name_of(owner) or name_of(whole)
        config = encoder.config
        if getattr(config, "is_decoder", False):
            raise ValueError(
                f"{self.label()} is built with is_decoder=True, which hides the end of a text "
                "from its start: build it with is_decoder=False"
            )
        layers = list(part_of(encoder, self.blocks_at, self.label()))
        self.blocks = self._name_blocks(
            given, layers, [config.hidden_size] * len(layers), [None] * len(layers)
        )
        words = bare(part_of(encoder, self.words_at, self.label()))
        self.vocab_size = words.num_embeddings
        self.pad_id = config.pad_token_id
        self.max_length = self._longest(encoder)
        self.token_width = self._token_width(encoder)
        width = self._pooled_width(encoder)
        self.sentence_width = width if projection is None else projection.out_features

    def _longest(self, encoder: Any) -> int:
        """Return the most tokens that the table takes, or that the config was trained for."""
        for name, module in encoder.named_modules():
            part = bare(module)
            if isinstance(part, nn.Embedding) and f"{name}.weight".endswith(ABSOLUTE):
                # Positions that count from the padding id leave the rows up to it to padding.
                unused = 0 if part.padding_idx is None else part.padding_idx + 1
                return part.num_embeddings - unused
        longest: int = encoder.config.max_position_embeddings
        return longest

    def _token_width(self, encoder: Any) -> int:
        width: int = encoder.config.hidden_size
        return width

    def _pooled_width(self, encoder: Any) -> int:
        """Return the width of the sentence before any projection."""
        return self.token_width

    def encoder_of(self, module: Any) -> Any:
        """Return the encoder in `module`, or in a view of it."""
        return getattr(module, self._path) if self._path else module

    def position_names(self) -> tuple[str, ...]:
        """Return the names of all tables, of absolute and of relative positions."""
        prefix = f"{self._path}." if self._path else ""
        return tuple(
            prefix + name
            for name, _ in self.encoder_of(self.module).named_parameters()
            if name.endswith((*ABSOLUTE, *RELATIVE))
        )

    def call(self, input_ids: Tensor, token_mask: Tensor, tensors: Mapping[str, Tensor]) -> Any:
        """Run the encoder and return the sentence; see `TextTower.call`."""
        self._check_tensors(tensors)
        module: Any = view_with(self.module, tensors)
        sentence = self.pool(self.run(module, input_ids, token_mask), token_mask)
        return module.text_projection(sentence) if self._path else sentence

    @abstractmethod
    def run(self, module: Any, input_ids: Tensor, token_mask: Tensor) -> Any:
        """Return the encoder's own output object, from `module` or a view of it."""

    @property
    def has_pooler(self) -> bool:
        """Whether the model itself makes a sentence feature, which it calls `pooler_output`."""
        return self.encoder_of(self.module)._modules.get("pooler") is not None

    def pool(self, result: Any, token_mask: Tensor) -> Tensor:
        """Return the sentence (B, C) before any projection, from what `run` returned."""
        if not self.has_pooler:
            return self.pool_tokens(result.last_hidden_state, token_mask)
        pooled: Tensor = result.pooler_output
        return pooled

    def pool_tokens(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Return the sentence (B, C) of a model without a pooler, from its tokens (B, L, C)."""
        return tokens[:, 0]

    def tokens(self, last_state: Tensor, result: Any, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the model's `last_hidden_state`; see `TextTower.tokens`."""
        return self.finish(view_with(self.module, tensors), last_state)

    def finish(self, module: Any, last_state: Tensor) -> Tensor:
        """Return what the encoder does to its last block's state (B, L, C)."""
        if self.norm_at is None:
            return last_state
        normed: Tensor = self.encoder_of(module).get_submodule(self.norm_at)(last_state)
        return normed

    def sentence(self, tokens: Tensor, input_ids: Tensor, result: Any) -> Tensor:
        """Return what `call` did."""
        sentence: Tensor = result
        return sentence


class MaskedText(TransformersText):
    """A text model that reads both ways and keeps to a mask of its real tokens.

    Without a pooler of its own, the sentence is the first token, which the library's own
    classifiers on such models read.
    """

    def default_mask(self, input_ids: Tensor) -> Tensor:
        """Return the mask of all ids but the config's padding id."""
        return without_padding(input_ids, self.pad_id)

    def check_end(self, input_ids: Tensor) -> None:
        """Ask for nothing: a mask says all that the model needs to know."""

    def run(self, module: Any, input_ids: Tensor, token_mask: Tensor) -> Any:
        """Call the encoder with the mask."""
        encoder = self.encoder_of(module)
        return call_plainly(encoder, input_ids=input_ids, attention_mask=token_mask.long())


class UnmaskedText(TransformersText):
    """A text model that gets no mask: a causal one, or one trained with its padding in sight.

    Its sentence is always its own `pooler_output`, behind a final norm.
    """

    blocks_at = ("encoder.layers",)
    words_at = ("embeddings.token_embedding",)
    norm_at = "final_layer_norm"

    @property
    def has_pooler(self) -> bool:
        """Always: there is no class of such models without it."""
        return True

    def run(self, module: Any, input_ids: Tensor, token_mask: Tensor) -> Any:
        """Call the encoder on the ids alone."""
        return call_plainly(self.encoder_of(module), input_ids=input_ids)


def _has_head(module: Any) -> bool:
    return is_a(module, LIBRARY, "PreTrainedModel") and module.base_model is not module


# Asked last: other refusals say more of what they refuse.
refuse_tower(
    "text",
    _has_head,
    "it puts a task's head on an encoder, and what the head returns (logits) stands for no "
    "sentence: pass the encoder inside it, model.base_model",
)
