"""Text towers of transformers behind peft's virtual tokens: prompt, p- and prefix tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bridger.towers.base import has_prompts, is_a
from bridger.towers.registry import find_text_tower, register_tower
from bridger.towers.text import TextTower
from bridger.towers.transformers import call_plainly
from bridger.towers.transformers_text import TransformersText
from bridger.towers.trial import home_of, watch
from bridger.towers.views import view_with

WHERE = (
    "virtual tokens work before encoders that read both ways and take embeddings (BERT and its "
    "kin). Use a method of peft that works inside layers, such as LoRA, IA3 or LN-tuning"
)


@register_tower("text")
class PromptedText(TextTower):
    """A text model of transformers wrapped by peft for prompt, p- or prefix tuning.

    The virtual tokens are no part of the texts: Bridgers and heads neither read nor change them,
    and the sentence is read at the text's own tokens, as without them. Prompt and p-tuning put
    states of their own through the blocks, before those of the text; prefix tuning gives every
    block keys and values alone. Both take up positions.

    Attributes:
        inner: the tower of the text model.
    """

    library = "peft"
    family = "PromptedText"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether peft puts virtual tokens before the texts of this model."""
        return has_prompts(module)

    def __init__(self, given: nn.Module) -> None:
        """Read peft's model, and try whether its virtual tokens reach the blocks.

        Raises:
            TypeError: they cannot do anything here.
        """
        self.module = given
        model: Any = given
        config = model.active_peft_config
        self._type: str = config.peft_type.value
        if not is_a(model, "peft", "PeftModelForFeatureExtraction"):
            raise TypeError(
                f"peft runs {self._type} on an encoder only with task_type='FEATURE_EXTRACTION' "
                f"in its config, found {config.task_type!r}"
            )
        inner = find_text_tower(model.get_base_model())
        if not isinstance(inner, TransformersText):
            raise TypeError(f"{self._type} does not work on {inner.label()}: {WHERE}")
        self.inner, self.name = inner, inner.name
        names = {id(module): name for name, module in given.named_modules()}
        self._inner_path = names[id(inner.module)]
        self._virtual: int = config.num_virtual_tokens
        self._states = 0 if self._type == "PREFIX_TUNING" else self._virtual
        self.blocks = self._name_blocks(
            given,
            [block.module for block in inner.blocks],
            [block.width for block in inner.blocks],
            [None] * len(inner.blocks),
        )
        self.token_width, self.sentence_width = inner.token_width, inner.sentence_width
        self.max_length = inner.max_length - self._virtual
        self.vocab_size = inner.vocab_size
        self._try()

    def _try(self) -> None:
        ids = torch.ones(2, 3, dtype=torch.long, device=home_of(self.module).device)
        mask = ids.bool()
        mask[1, 2] = False  # a mask of nothing but true may be left out on the way
        name = type(self.inner.module).__name__
        try:
            found = watch(self.module, lambda: self._run(self.module, ids, mask)).result
            plain = watch(self.module, lambda: self.inner.run(self.inner.module, ids, mask)).result
        except Exception as error:  # whatever a model makes of arguments that it does not know
            reason = str(error).split("\n")[0]
            raise TypeError(f"{self._type} fails in {name} ({reason}): {WHERE}") from error
        tokens = found.last_hidden_state[:, self._states :]
        if tokens.shape != plain.last_hidden_state.shape:
            raise TypeError(
                f"{self._type} with {self._virtual} virtual tokens was expected to make "
                f"{self._states} states more than the text has tokens in {name}, "
                f"found {found.last_hidden_state.shape[1] - ids.shape[1]}"
            )
        if torch.equal(tokens, plain.last_hidden_state):
            raise TypeError(f"{self._type} does nothing in {name}: {WHERE}")

    @staticmethod
    def _run(module: nn.Module, input_ids: Tensor, token_mask: Tensor) -> Any:
        return call_plainly(module, input_ids=input_ids, attention_mask=token_mask.long())

    def describe(self) -> dict[str, Any]:
        """Return the text model's identity, and what is before its texts."""
        own = super().describe()
        prompts = {"type": self._type, "num_virtual_tokens": self._virtual}
        return {**self.inner.describe(), "max_length": own["max_length"], "prompts": prompts}

    def position_names(self) -> tuple[str, ...]:
        """Return the names of the text model's tables."""
        return tuple(f"{self._inner_path}.{name}" for name in self.inner.position_names())

    def default_mask(self, input_ids: Tensor) -> Tensor:
        """Return the text model's own mask."""
        return self.inner.default_mask(input_ids)

    def check_end(self, input_ids: Tensor) -> None:
        """Raise where the text model needs an end that it cannot find."""
        self.inner.check_end(input_ids)

    def call(self, input_ids: Tensor, token_mask: Tensor, tensors: Mapping[str, Tensor]) -> Any:
        """Run peft's model and return the sentence; see `TextTower.call`."""
        self._check_tensors(tensors)
        module: Any = view_with(self.module, tensors)
        result = self._run(module, input_ids, token_mask)
        tokens = result.last_hidden_state[:, self._states :]
        pooler = module.get_submodule(self._inner_path)._modules.get("pooler")
        return self.inner.pool_tokens(tokens, token_mask) if pooler is None else pooler(tokens)

    def read_tokens(self, block: int, output: Any) -> Tensor:
        """Return the states (B, L, C) of the text's own tokens."""
        return super().read_tokens(block, output)[:, self._states :]

    def write_tokens(self, block: int, output: Any, tokens: Tensor) -> Any:
        """Return the output with other states (B, L, C) behind those of the virtual tokens."""
        virtual = super().read_tokens(block, output)[:, : self._states]
        states = torch.cat([virtual, tokens.to(virtual.dtype)], dim=1)
        return super().write_tokens(block, output, states)

    def tokens(self, last_state: Tensor, result: Any, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the text's own tokens behind the text model's final norm."""
        module: Any = view_with(self.module, tensors)
        return self.inner.finish(module.get_submodule(self._inner_path), last_state)

    def sentence(self, tokens: Tensor, input_ids: Tensor, result: Any) -> Tensor:
        """Return what `call` did."""
        sentence: Tensor = result
        return sentence
