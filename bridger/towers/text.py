"""What the library asks of a text tower, and the rules for masks that families choose from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bridger.number_checks import answers_later, refuse_if
from bridger.towers.base import Tower, shown, state_of, with_state

ANY_LENGTH = 1_000_000_000
"""`max_length` of towers without a table that ends."""


class TextTower(Tower):
    """A text encoder.

    Attributes:
        token_width: channels C of the tokens after the final norm.
        sentence_width: channels of the sentence feature, projected where the tower projects.
        max_length: most tokens that it takes: what its position table holds, or `ANY_LENGTH`.
        vocab_size: rows of the token embedding.
    """

    token_width: int
    sentence_width: int
    max_length: int
    vocab_size: int

    def describe(self) -> dict[str, Any]:
        """Return the tower's identity; see `Tower.describe`."""
        return {
            **super().describe(),
            "token_width": self.token_width,
            "sentence_width": self.sentence_width,
            "max_length": self.max_length,
            "vocab_size": self.vocab_size,
        }

    def prepare(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Check the ids, decide which tokens are real, and pad where the tower needs it.

        Args:
            input_ids: (B, L) integers.
            attention_mask: (B, L), true at real tokens, padding on the right; without it the
                family's own rule decides.

        Returns:
            ids (B, L') and token_mask (B, L') bool. L' is L, or the trained length for towers
            that see padding as they were trained to.

        Raises:
            ValueError: wrong shape or dtype, too long, ids out of range, no real token.
        """
        self._check_ids(input_ids)
        if answers_later(input_ids):
            # A look into the embeddings beyond their end would end the process first.
            input_ids = input_ids.clamp(0, self.vocab_size - 1)
        if attention_mask is None:
            return self.pad(input_ids, self.default_mask(input_ids))
        self.check_end(input_ids)
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask must be like input_ids {tuple(input_ids.shape)}, "
                f"found {tuple(attention_mask.shape)}"
            )
        mask = attention_mask.to(input_ids.device).bool()
        check_mask(mask, "attention_mask")
        return self.pad(input_ids, mask)

    def pad(self, input_ids: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids and the mask as the tower's forward takes them.

        Args:
            input_ids: (B, L).
            token_mask: (B, L) bool.
        """
        return input_ids, token_mask

    def check_end(self, input_ids: Tensor) -> None:
        """Raise a ValueError where the tower could not find the end of a text by itself.

        Asked of texts that come with a mask. Towers that look for no end override it.

        Args:
            input_ids: (B, L).
        """
        self.default_mask(input_ids)

    @abstractmethod
    def default_mask(self, input_ids: Tensor) -> Tensor:
        """Return the family's own mask (B, L) of real tokens; ValueError where a row has none.

        Args:
            input_ids: (B, L).
        """

    @abstractmethod
    def call(self, input_ids: Tensor, token_mask: Tensor, tensors: Mapping[str, Tensor]) -> Any:
        """Run the tower's own forward on what `prepare` returned.

        Args:
            input_ids: (B, L).
            token_mask: (B, L) bool. Causal towers ignore it: padding on the right cannot reach
                a real token, and a text must not depend on what it is batched with.
            tensors: adapter-owned tensors in the tower's own shapes, by name below `module`.

        Returns:
            What the tower returns, or its sentence feature: what `sentence` reads. With nothing
            to replace, it is `module` itself that runs, not a view of it.
        """

    def read_tokens(self, block: int, output: Any) -> Tensor:
        """Return a block's state (B, L, C).

        Args:
            block: index into `blocks`.
            output: what the block returned.
        """
        return state_of(output)

    def write_tokens(self, block: int, output: Any, tokens: Tensor) -> Any:
        """Return a block's output with other tokens (B, L, C), in its container and dtype.

        Args:
            block: index into `blocks`.
            output: what the block returned; it is not written to.
            tokens: of the output's shape.
        """
        state = state_of(output)
        if tokens.shape != state.shape:
            raise ValueError(
                f"block {self.blocks[block].name!r} holds tokens {tuple(state.shape)}, "
                f"found {tuple(tokens.shape)}"
            )
        return with_state(output, tokens.to(state.dtype))

    @abstractmethod
    def tokens(self, last_state: Tensor, result: Any, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the tokens (B, L, `token_width`) after the final norm, unprojected.

        Args:
            last_state: (B, L, C), the last block's.
            result: what `call` returned.
            tensors: adapter-owned tensors, as for `call`.
        """

    @abstractmethod
    def sentence(self, tokens: Tensor, input_ids: Tensor, result: Any) -> Tensor:
        """Return the sentence feature (B, `sentence_width`), projected, not normalised.

        Args:
            tokens: what the method `tokens` returned.
            input_ids: (B, L).
            result: what `call` returned.
        """

    def _check_ids(self, input_ids: Tensor) -> None:
        if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.numel() == 0:
            shape = getattr(input_ids, "shape", type(input_ids).__name__)
            raise ValueError(f"input_ids must be (B, L) and not empty, found {shown(shape)}")
        if input_ids.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"input_ids must be int64 or int32, found {input_ids.dtype}")
        if input_ids.shape[1] > self.max_length:
            raise ValueError(
                f"{self.label()} takes at most {self.max_length} tokens, "
                f"found {input_ids.shape[1]}: cut the texts when tokenising"
            )
        low, high = torch.aminmax(input_ids)
        refuse_if(
            (low < 0) | (high >= self.vocab_size),
            lambda: ValueError(
                f"input_ids must lie in 0 ... {self.vocab_size - 1}, found {int(low)} ... "
                f"{int(high)}: use the tower's own tokenizer"
            ),
        )


def through_first(hits: Tensor, wanted: str) -> Tensor:
    """Return a mask (B, L) that is true up to and including each row's first hit.

    Args:
        hits: (B, L) bool.
        wanted: what a hit is, for the message.

    Raises:
        ValueError: a row has no hit.
    """
    missing = ~hits.any(dim=1)

    def explain() -> ValueError:
        rows = missing.nonzero().flatten().tolist()
        return ValueError(
            f"row {rows[0]} of input_ids has no {wanted} "
            f"({len(rows)} of {len(hits)} rows): use the tower's own tokenizer"
        )

    refuse_if(missing.any(), explain)
    return hits.long().cumsum(dim=1) - hits.long() == 0


def through_highest(input_ids: Tensor) -> Tensor:
    """Return a mask (B, L) through the first highest id of each row: CLIP's end-of-text rule.

    Raises:
        ValueError: a row of several tokens is all the same id, so nothing ends it.
    """
    highest = input_ids.max(dim=1, keepdim=True).values
    blank = (input_ids.min(dim=1, keepdim=True).values == highest) & (input_ids.shape[1] > 1)
    return through_first((input_ids == highest) & ~blank, "end-of-text token")


def without_padding(input_ids: Tensor, pad_id: int | None) -> Tensor:
    """Return a mask (B, L) that is true up to the padding; without a padding id, everywhere.

    Raises:
        ValueError: a row is empty, or has padding before or between its tokens.
    """
    if pad_id is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    real = input_ids != pad_id
    check_mask(real, f"input_ids != {pad_id} (the padding id)")
    return real


def mean_of_real(tokens: Tensor, token_mask: Tensor) -> Tensor:
    """Return the mean (B, C) over the tokens (B, L, C) where the mask (B, L) is true."""
    kept = tokens.masked_fill(~token_mask[..., None], 0)
    return kept.sum(dim=1) / token_mask.sum(dim=1, keepdim=True).to(tokens.dtype)


def fill_up(
    input_ids: Tensor, token_mask: Tensor, length: int, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Return ids (B, L) and their mask, both padded on the right to `length`."""
    missing = length - input_ids.shape[1]
    if not missing:
        return input_ids, token_mask
    padded = F.pad(input_ids, (0, missing), value=pad_id)
    return padded, F.pad(token_mask, (0, missing), value=False)


def siglip_pad_id(vocab_size: int) -> int:
    """Return what SigLIP's tokenizers pad with.

    It is 0 for Gemma's vocabulary (SigLIP 2), and otherwise 1, which ends a text as well.
    """
    return 0 if vocab_size >= 256_000 else 1


def siglip_mask(input_ids: Tensor, pad_id: int) -> Tensor:
    """Return SigLIP's mask (B, L): where padding id and end of text are one, the first is read."""
    if pad_id != 1:
        return without_padding(input_ids, pad_id)
    before = F.pad(input_ids[:, :-1] != pad_id, (1, 0), value=True)
    return before.long().cumprod(dim=1).bool()


def check_mask(mask: Tensor, what: str) -> None:
    """Raise a ValueError unless every row is true from its first token on, without gaps."""
    empty = ~mask.any(dim=1)
    refuse_if(
        empty.any(),
        lambda: ValueError(
            f"row {int(empty.nonzero()[0])} of {what} has no true token: the text is empty"
        ),
    )
    refuse_if(
        (mask[:, 1:] & ~mask[:, :-1]).any(),
        lambda: ValueError(
            f"{what} must be true from a row's first token on, without gaps: "
            "pad on the right (tokenizer.padding_side = 'right')"
        ),
    )
