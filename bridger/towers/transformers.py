"""Towers of transformers: what its encoders share, and CLIP's text model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from bridger.towers.base import is_a, unwrap
from bridger.towers.registry import register_tower
from bridger.towers.text import TextTower, through_first, through_highest
from bridger.towers.views import view_with

LIBRARY = "transformers"


def _call(encoder: Any, **inputs: Any) -> Any:
    """Call an encoder for its plain result, whatever its config asks for.

    Hidden states would leave hooks on the user's blocks; tuples have no names to read by.
    """
    return encoder(**inputs, **_plain_options(type(encoder).forward))


@cache
def _plain_options(forward: Callable[..., Any]) -> dict[str, bool]:
    """Return the options for a plain result, as far as that forward takes them."""
    takes = inspect.signature(forward).parameters.values()
    names = {parameter.name for parameter in takes}
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes)
    options = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}
    if hasattr(forward, "__wrapped__"):  # then `return_dict` is taken by the library's decorator
        names.add("return_dict")
    return {name: value for name, value in options.items() if open_ended or name in names}


def _core_path(module: Any, name: str) -> str:
    """Return "name." where the encoder proper is such a child, or "" where it is the module.

    Which of the two holds for `CLIPVisionModel` and `CLIPTextModel` depends on the version.
    """
    return f"{name}." if name in module._modules else ""


def _name_of(core: Any) -> str | None:
    name = getattr(core.config, "_name_or_path", None)
    return str(name) if name else None


@register_tower("text")
class ClipText(TextTower):
    """`CLIPTextModel`, `CLIPTextModelWithProjection`, or a whole `CLIPModel`.

    The text model is causal, so padding on the right needs no mask and gets none: what a text
    says is then the same in any batch.
    """

    library = LIBRARY
    family = "CLIPText"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is one of the family's classes."""
        names = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPTextTransformer")
        return is_a(module, LIBRARY, "CLIPModel", *names)

    def __init__(self, given: nn.Module) -> None:
        """Read the text model and, where there is one, its projection."""
        module = self.module = unwrap(given)
        self._whole = is_a(module, LIBRARY, "CLIPModel")
        self._path = _core_path(module, "text_model")
        core = module.text_model if self._path else module
        self.name = _name_of(module)
        self.eos_id: int = core.config.eos_token_id
        layers, width = core.encoder.layers, core.config.hidden_size
        self.blocks = self._name_blocks(
            given, list(layers), [width] * len(layers), [None] * len(layers)
        )
        projection = module._modules.get("text_projection")
        self.token_width = width
        self.sentence_width = width if projection is None else projection.out_features
        self.max_length = core.embeddings.position_embedding.num_embeddings
        self.vocab_size = core.embeddings.token_embedding.num_embeddings

    def position_names(self) -> tuple[str, ...]:
        """Return the name of the table, of which the model reads the first L rows."""
        return (f"{self._path}embeddings.position_embedding.weight",)

    def default_mask(self, input_ids: Tensor) -> Tensor:
        """Return the mask through the end of the text, found as the model finds it."""
        if self.eos_id == 2:  # old configs: the model takes the highest id instead
            return through_highest(input_ids)
        return through_first(input_ids == self.eos_id, f"end-of-text id {self.eos_id}")

    def call(self, input_ids: Tensor, token_mask: Tensor, tensors: Mapping[str, Tensor]) -> Any:
        """Run the model without a mask; see `TextTower.call`."""
        self._check_tensors(tensors)
        module: Any = view_with(self.module, tensors)
        core = module.text_model if self._whole else module
        result = _call(core, input_ids=input_ids)
        return module.text_projection(result.pooler_output) if self._whole else result

    def tokens(self, last_state: Tensor, result: Any, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return `final_layer_norm` of the last state; see `TextTower.tokens`."""
        module: Any = view_with(self.module, tensors)
        core = module.text_model if self._path else module
        normed: Tensor = core.final_layer_norm(last_state)
        return normed

    def sentence(self, tokens: Tensor, input_ids: Tensor, result: Any) -> Tensor:
        """Return the end-of-text token, projected where the model projects."""
        if self._whole:
            whole: Tensor = result
            return whole
        projected = "text_projection" in self.module._modules
        sentence: Tensor = result.text_embeds if projected else result.pooler_output
        return sentence
