"""Text towers around another: a text model of transformers, with something of their own around it.

open_clip's `HFTextEncoder` and transformers' `VisionTextDualEncoderModel` take any text model and
pool and project its tokens; peft's virtual tokens (`prompted_text.py`) come before its texts. The
one inside is found through the registry; blocks, masks and positions are its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from bridger.towers.base import is_a, unwrap
from bridger.towers.open_clip import text_of
from bridger.towers.registry import find_text_tower, register_tower
from bridger.towers.text import TextTower
from bridger.towers.transformers_text import TransformersText
from bridger.towers.views import view_with


class NestedTextTower(TextTower):
    """A text tower that makes a sentence of its own from another's tokens.

    Attributes:
        inner: the tower of the text model inside.
        inner_at: the child that is that text model.
        inner_path: where the inner tower's module lies below `module`.
    """

    inner: TransformersText
    inner_at: ClassVar[str]
    inner_path: str

    def __init__(self, given: nn.Module) -> None:
        """Find the text model inside, and read what is around it.

        Raises:
            TypeError: no family claims the text model inside.
            ValueError: what is around it cannot work on it.
        """
        self.module = self.owner_of(given)
        inner = find_text_tower(getattr(self.module, self.inner_at))
        if not isinstance(inner, TransformersText):
            raise self.refusal(inner.label())
        self.inner, self.name = inner, inner.name
        names = {id(module): name for name, module in self.module.named_modules()}
        self.inner_path = names[id(inner.module)]
        self.blocks = self._name_blocks(
            given,
            [block.module for block in inner.blocks],
            [block.width for block in inner.blocks],
            [None] * len(inner.blocks),
        )
        self.token_width = inner.token_width
        self.max_length, self.vocab_size = inner.max_length, inner.vocab_size
        self.sentence_width = self._read()

    @classmethod
    def owner_of(cls, given: nn.Module) -> Any:
        """Return what holds the text model, in a module of this family or a whole around it."""
        return unwrap(given)

    def refusal(self, found: str) -> Exception:
        """Return what is raised where the tower inside is no text model of transformers."""
        return ValueError(
            f"{self.label()} holds a text model of no known family ({found}), so what it projects "
            "cannot be told: pass that text model itself, as an unknown tower"
        )

    @abstractmethod
    def _read(self) -> int:
        """Return the sentence's width; ValueError where it cannot be made."""

    @abstractmethod
    def project(self, module: Any, result: Any, token_mask: Tensor) -> Tensor:
        """Return the sentence (B, `sentence_width`) from what `run` returned."""

    def describe(self) -> dict[str, Any]:
        """Return the tower's identity and its inner family's; see `Tower.describe`."""
        return {**super().describe(), "inner": self.inner.label()}

    def position_names(self) -> tuple[str, ...]:
        """Return the names of the inner tables."""
        return tuple(f"{self.inner_path}.{name}" for name in self.inner.position_names())

    def default_mask(self, input_ids: Tensor) -> Tensor:
        """Return the inner family's mask."""
        return self.inner.default_mask(input_ids)

    def check_end(self, input_ids: Tensor) -> None:
        """Raise where the inner tower needs an end that it cannot find."""
        self.inner.check_end(input_ids)

    def pad(self, input_ids: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pad as the inner tower needs it."""
        return self.inner.pad(input_ids, token_mask)

    def run(self, module: Any, input_ids: Tensor, token_mask: Tensor) -> Any:
        """Return the inner model's result, in `module` or a view of it."""
        return self.inner.run(module.get_submodule(self.inner_path), input_ids, token_mask)

    def call(self, input_ids: Tensor, token_mask: Tensor, tensors: Mapping[str, Tensor]) -> Any:
        """Run the inner model and return the sentence; see `TextTower.call`."""
        self._check_tensors(tensors)
        module = view_with(self.module, tensors)
        return self.project(module, self.run(module, input_ids, token_mask), token_mask)

    def tokens(self, last_state: Tensor, result: Any, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the inner model's tokens; see `TextTower.tokens`."""
        module = view_with(self.module, tensors)
        return self.inner.finish(module.get_submodule(self.inner_path), last_state)

    def sentence(self, tokens: Tensor, input_ids: Tensor, result: Any) -> Tensor:
        """Return what `call` did."""
        sentence: Tensor = result
        return sentence


@register_tower("text")
class OpenClipHFText(NestedTextTower):
    """open_clip's `HFTextEncoder`, alone or as the `text` of a whole model.

    Its forward masks all ids but the config's padding id, which is what the inner tower does by
    itself; a mask that the user gives is taken in its place, by the pool as well.
    """

    library = "open_clip"
    family = "HFTextEncoder"
    inner_at = "transformer"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is an `HFTextEncoder`, or a whole model that holds one."""
        return is_a(text_of(module), cls.library, "HFTextEncoder")

    @classmethod
    def owner_of(cls, given: nn.Module) -> Any:
        """Return the `HFTextEncoder`."""
        return text_of(unwrap(given))

    def _read(self) -> int:
        encoder: Any = self.module
        if is_a(encoder.pooler, self.library, "MaxPooler"):
            raise ValueError(
                f"{self.label()} with pooler_type='max_pooler' cannot run: open_clip's MaxPooler "
                "fails on the integer mask that it is given. Use 'mean_pooler' or 'cls_pooler'"
            )
        width: int = encoder.output_dim
        return width

    def project(self, module: Any, result: Any, token_mask: Tensor) -> Tensor:
        """Pool and project as the encoder's forward does."""
        projected: Tensor = module.proj(module.pooler(result, token_mask.long()))
        return projected


@register_tower("text")
class DualEncoderText(NestedTextTower):
    """The text side of transformers' `VisionTextDualEncoderModel`: `pooler_output`, projected."""

    library = "transformers"
    family = "VisionTextDualEncoderText"
    inner_at = "text_model"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is the whole model."""
        return is_a(module, cls.library, "VisionTextDualEncoderModel")

    def _read(self) -> int:
        if not self.inner.has_pooler:
            raise ValueError(
                f"{self.label()} projects the pooler_output of its text model, and "
                f"{type(self.inner.module).__name__} has none: expected a text model with a "
                "pooler, such as BertModel or RobertaModel"
            )
        whole: Any = self.module
        width: int = whole.text_projection.out_features
        return width

    def project(self, module: Any, result: Any, token_mask: Tensor) -> Tensor:
        """Project what the text model pools."""
        projected: Tensor = module.text_projection(self.inner.pool(result, token_mask))
        return projected
