"""Expressions on their way to the text tower: from (B, N, L) to rows, and released texts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bridger.number_checks import refuse_if


def flatten_expressions(
    input_ids: Tensor | None, attention_mask: Tensor | None, expression_mask: Tensor | None
) -> tuple[Tensor, Tensor | None, int]:
    """Turn (B, L) or (B, N, L) texts into rows, ordered image by image.

    Args:
        input_ids: (B, L), or (B, N, L).
        attention_mask: like input_ids, or None.
        expression_mask: (B, N), false at the padding of a ragged N: such rows become copies of
            the image's first real expression, which every tower can run on.

    Returns:
        ids (B*N, L), mask (B*N, L) or None, and N.

    Raises:
        ValueError: shapes that do not fit, or an image without a real expression.
    """
    if not isinstance(input_ids, Tensor) or input_ids.ndim not in (2, 3):
        found = tuple(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids)
        raise ValueError(f"input_ids must be (B, L) or (B, N, L), got {found}")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids {tuple(input_ids.shape)}, "
            f"got {tuple(attention_mask.shape)}"
        )
    if input_ids.ndim == 2:
        if expression_mask is not None:
            raise ValueError("expression_mask goes with input_ids of shape (B, N, L)")
        return input_ids, attention_mask, 1
    if expression_mask is not None:
        input_ids, attention_mask = _fill_padding(input_ids, attention_mask, expression_mask)
    mask = None if attention_mask is None else attention_mask.flatten(0, 1)
    return input_ids.flatten(0, 1), mask, input_ids.shape[1]


def _fill_padding(
    input_ids: Tensor, attention_mask: Tensor | None, expression_mask: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Put each image's first real expression where a ragged N is padded."""
    real = expression_mask.to(device=input_ids.device, dtype=torch.bool)
    if real.shape != input_ids.shape[:2]:
        raise ValueError(
            f"expression_mask must be (B, N) = {tuple(input_ids.shape[:2])}, "
            f"got {tuple(real.shape)}"
        )
    refuse_if(
        ~real.any(dim=1).all(),
        lambda: ValueError(
            "an image has no real expression: each row of expression_mask needs one"
        ),
    )
    slots = torch.arange(real.shape[1], device=real.device).expand_as(real)
    source = torch.where(real, slots, real.int().argmax(dim=1, keepdim=True))
    index = source.unsqueeze(-1).expand_as(input_ids)
    mask = None if attention_mask is None else attention_mask.gather(1, index)
    return input_ids.gather(1, index), mask


def check_word_length(word_length: int | None, max_length: int) -> int | None:
    """Return the word length, or raise a ValueError where the text tower cannot take it."""
    if word_length is not None and type(word_length) is not int:
        raise TypeError(
            f"word_length must be a whole number of tokens or None, got {word_length!r}"
        )
    if word_length is not None and not 2 <= word_length <= max_length:
        raise ValueError(
            f"word_length must lie between 2 and the text tower's {max_length} tokens, "
            f"got {word_length}"
        )
    return word_length


def as_released(
    input_ids: Tensor, token_mask: Tensor | None, word_length: int
) -> tuple[Tensor, Tensor]:
    """Pad and mask texts as the released code of ETRIS does.

    Its Bridgers read padding too, so a text's features depend on the length that it is padded to;
    and it takes every id 0 for padding, a real "!" included.

    Args:
        input_ids: (B, L).
        token_mask: (B, L), the caller's own mask, or None.
        word_length: the length that it was trained with.

    Returns:
        ids and mask, both (B, word_length).

    Raises:
        ValueError: the texts are longer.
    """
    missing = word_length - input_ids.shape[1]
    if missing < 0:
        raise ValueError(
            f"this model was trained on {word_length} tokens, got {input_ids.shape[1]}: "
            f"cut the texts when tokenising, with the end-of-text token as the last one"
        )
    real = input_ids != 0
    if token_mask is not None:
        real &= token_mask
    return F.pad(input_ids, (0, missing)), F.pad(real, (0, missing))
