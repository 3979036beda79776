"""Text towers of transformers behind peft's virtual tokens: prompt, p- and prefix tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bridger.towers.base import has_prompts, is_a, is_layer
from bridger.towers.nested_text import NestedTextTower
from bridger.towers.registry import register_tower
from bridger.towers.transformers import call_plainly
from bridger.towers.trial import home_of, watch
from bridger.towers.views import tensor_at

WHERE = (
    "virtual tokens work before encoders that read both ways and take embeddings (BERT and its "
    "kin). Use a method of peft that works inside layers, such as LoRA, IA3 or LN-tuning"
)


@register_tower("text")
class PromptedText(NestedTextTower):
    """A text model of transformers wrapped by peft for prompt, p- or prefix tuning.

    The virtual tokens are no part of the texts: Bridgers and heads neither read nor change them,
    and the sentence is read at the text's own tokens, as without them. Prompt and p-tuning put
    states of their own through the blocks, before those of the text; prefix tuning gives every
    block keys and values alone. Both take up positions.

    Attributes:
        method: what peft calls the kind of virtual tokens.
        virtual_tokens: how many there are.
        virtual_states: how many of a block's states are theirs: none under prefix tuning.
        adapter: their name in peft.
    """

    library = "peft"
    family = "PromptedText"
    inner_at = "base_model"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether peft puts virtual tokens before the texts of this model."""
        return has_prompts(module)

    @classmethod
    def owner_of(cls, given: nn.Module) -> Any:
        """Return peft's model itself."""
        return given

    def __init__(self, given: nn.Module) -> None:
        """Read peft's model, and try whether its virtual tokens reach the blocks.

        Raises:
            TypeError: they cannot do anything here.
            ValueError: they leave no room for a text, or have frozen layers of peft.
        """
        model: Any = given
        config = model.active_peft_config
        self.method: str = config.peft_type.value
        self.virtual_tokens: int = config.num_virtual_tokens
        self.recomputable = self.method != "PREFIX_TUNING"  # recomputed layers drop their cache
        self.virtual_states = self.virtual_tokens if self.recomputable else 0
        if not is_a(model, "peft", "PeftModelForFeatureExtraction"):
            raise TypeError(
                f"peft runs {self.method} on an encoder only with task_type='FEATURE_EXTRACTION' "
                f"in its config, found {config.task_type!r}"
            )
        super().__init__(given)
        self.adapter: str = model.active_adapter
        self.max_length -= self.virtual_tokens
        if self.max_length < 2:  # a start and an end
            raise ValueError(
                f"{self.virtual_tokens} virtual tokens take up positions, and the position table "
                f"of this {self.inner.label()} has {self.inner.max_length}: no text fits behind "
                "them. Use fewer"
            )
        self._refuse_frozen_layers()
        self._try()

    def refusal(self, found: str) -> Exception:
        """Return what is raised where virtual tokens cannot come before such a tower's texts."""
        return TypeError(f"{self.method} does not work on {found}: {WHERE}")

    def _read(self) -> int:
        return self.inner.sentence_width

    def _refuse_frozen_layers(self) -> None:
        for layer in self.module.modules():
            if is_layer(layer) and not any(p.requires_grad for p in layer.parameters()):
                raise ValueError(
                    "peft froze the layers that it had put into this text model when it wrapped "
                    "the model for virtual tokens, so they would not be trained. Take them out, "
                    "and put them in again once the model is wrapped: "
                    "peft.get_peft_model(wrapped.get_base_model(), config)"
                )

    def _check_adapter(self) -> None:
        model: Any = self.module
        if model.active_adapter != self.adapter:
            raise ValueError(
                f"this tower was attached with the virtual tokens {self.adapter!r}, and "
                f"{model.active_adapter!r} were made active since: attach again, or "
                f"set_adapter({self.adapter!r})"
            )

    def _try(self) -> None:
        length = min(3, self.max_length)
        ids = torch.ones(2, length, dtype=torch.long, device=home_of(self.module).device)
        mask = ids.bool()
        mask[1, -1] = False  # a mask of nothing but true may be left out on the way
        name = type(self.inner.module).__name__
        try:
            found = watch(self.module, lambda: self.run(self.module, ids, mask)).result
            plain = watch(self.module, lambda: self.inner.run(self.inner.module, ids, mask)).result
        except Exception as error:  # whatever a model makes of arguments that it does not know
            reason = str(error).split("\n")[0]
            raise TypeError(f"{self.method} fails in {name} ({reason}): {WHERE}") from error
        tokens = found.last_hidden_state[:, self.virtual_states :]
        if tokens.shape != plain.last_hidden_state.shape:
            raise TypeError(
                f"{self.method} with {self.virtual_tokens} virtual tokens was expected to make "
                f"{self.virtual_states} states more than the text has tokens in {name}, "
                f"found {found.last_hidden_state.shape[1] - ids.shape[1]}"
            )
        if torch.equal(tokens, plain.last_hidden_state):
            raise TypeError(f"{self.method} does nothing in {name}: {WHERE}")

    def describe(self) -> dict[str, Any]:
        """Return the text model's identity, and what is before its texts.

        Raises:
            ValueError: other virtual tokens have been made active.
        """
        self._check_adapter()
        prompts = {"type": self.method, "num_virtual_tokens": self.virtual_tokens}
        return {**self.inner.describe(), "max_length": self.max_length, "prompts": prompts}

    def call(self, input_ids: Tensor, token_mask: Tensor, tensors: Mapping[str, Tensor]) -> Any:
        """Run peft's model and return the sentence; see `TextTower.call`.

        Raises:
            ValueError: other virtual tokens have been made active, or checkpointing would drop
                a prefix.
        """
        self._check_adapter()
        if not self.recomputable:
            self._refuse_checkpointing()
        standing_in = self._both_ways(tensors) if self.virtual_states else tensors
        return super().call(input_ids, token_mask, standing_in)

    def _both_ways(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Let a word embedding stand in where peft itself calls it, too."""
        model: Any = self.module
        words = {id(p): name for name, p in model.word_embeddings.named_parameters()}
        both = dict(tensors)
        for name, tensor in tensors.items():
            if again := words.get(id(tensor_at(model, name))):
                both[f"word_embeddings.{again}"] = tensor
        return both

    def _refuse_checkpointing(self) -> None:
        for module in self.inner.module.modules():
            if getattr(module, "gradient_checkpointing", False) and module.training:
                raise ValueError(
                    "transformers drops the cache that carries peft's prefix where it "
                    "checkpoints activations: call gradient_checkpointing_disable() on the text "
                    "model, or use prompt tuning"
                )

    def run(self, module: Any, input_ids: Tensor, token_mask: Tensor) -> Any:
        """Return the result of peft's model, virtual states included."""
        return call_plainly(module, input_ids=input_ids, attention_mask=token_mask.long())

    def project(self, module: Any, result: Any, token_mask: Tensor) -> Tensor:
        """Return the sentence at the text's own tokens."""
        tokens = result.last_hidden_state[:, self.virtual_states :]
        pooler = module.get_submodule(self.inner_path)._modules.get("pooler")
        return self.inner.pool_tokens(tokens, token_mask) if pooler is None else pooler(tokens)

    def read_tokens(self, block: int, output: Any) -> Tensor:
        """Return the states (B, L, C) of the text's own tokens."""
        return super().read_tokens(block, output)[:, self.virtual_states :]

    def write_tokens(self, block: int, output: Any, tokens: Tensor) -> Any:
        """Return the output with other states (B, L, C) behind those of the virtual tokens."""
        virtual = super().read_tokens(block, output)[:, : self.virtual_states]
        states = torch.cat([virtual, tokens.to(virtual.dtype)], dim=1)
        return super().write_tokens(block, output, states)
