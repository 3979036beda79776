"""The text tower of open_clip's CoCa, whose class token stands behind the padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bridger.towers.base import state_of, with_state
from bridger.towers.open_clip import OpenClipText, text_of
from bridger.towers.registry import register_tower
from bridger.towers.text import fill_up, without_padding


@register_tower("text")
class CocaText(OpenClipText):
    """open_clip's `TextTransformer` with `embed_cls=True`, alone or as the `text` of a whole.

    The class token is the last one and takes the position behind the text's padding, so texts are
    padded to the trained length. It is no word: states are read and written without it, and it is
    kept as it is. The tower finds padding by its id, so ids that a mask leaves out become padding.
    Its own tokens are not normed, only the class token is, which becomes the sentence.
    """

    family = "CoCaText"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether it is such a `TextTransformer`, or a whole model that holds one."""
        return super().matches(module) and getattr(text_of(module), "cls_emb", None) is not None

    def __init__(self, given: nn.Module) -> None:
        """Read the Transformer."""
        super().__init__(given)
        self.max_length -= 1  # the last row is the class token's
        self.fixed_length = True

    def _refuse(self, text: Any) -> None:
        """Take any pooling: the class token overrides it."""

    def default_mask(self, input_ids: Tensor) -> Tensor:
        """Return the mask of all ids but the padding id, as the tower masks them itself."""
        return without_padding(input_ids, self.pad_id)

    def check_end(self, input_ids: Tensor) -> None:
        """Ask for nothing: `pad` makes a mask known to the tower."""

    def pad(self, input_ids: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pad to the trained length, and wherever the mask says so."""
        masked = input_ids.masked_fill(~token_mask, self.pad_id)
        return fill_up(masked, token_mask, self.max_length, self.pad_id)

    def read_tokens(self, block: int, output: Any) -> Tensor:
        """Return a block's state (B, L, C) without the class token."""
        return state_of(output)[:, :-1]

    def write_tokens(self, block: int, output: Any, tokens: Tensor) -> Any:
        """Return a block's output with other tokens before the same class token."""
        state = state_of(output)
        words = super().write_tokens(block, state[:, :-1], tokens)
        return with_state(output, torch.cat([words, state[:, -1:]], dim=1))

    def tokens(self, last_state: Tensor, result: Any, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the last state as it is: the tower hands its tokens on without a norm."""
        return last_state
