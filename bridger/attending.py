"""Where Bridgers looked while a model answered: what `predict(..., return_attention=True)` adds.

Shapes: B pictures, S sentences of one forward, L tokens, M cells of the map (H' W').
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from bridger.bridgers.attention_maps import Looks, Recorded, looks_of
from bridger.bridgers.zoom import target_size
from bridger.predictions.attention import Attention, StageAttention, Weights, WithAttention
from bridger.texts import Texts

if TYPE_CHECKING:
    from bridger.model import BridgedModel
    from bridger.warp import Placement


def check_attention(model: BridgedModel, options: Mapping[str, Any]) -> None:
    """Refuse to say where Bridgers look where none do, or none that can be drawn.

    Raises:
        ValueError: no Bridgers act, or the picture is cut in windows.
    """
    if not model.encoder.enabled:
        raise ValueError(
            "there is no attention to return: this model has no Bridgers (config=None), or they "
            "are disabled; leave return_attention out"
        )
    if "window" in options:
        raise ValueError(
            "return_attention=True looks at a picture that is answered about as a whole: leave "
            "window out"
        )


def with_attention(
    model: BridgedModel,
    results: Sequence[Any],
    recorded: Recorded,
    asked: Sequence[Sequence[Texts]],
    placements: Sequence[Placement],
) -> list[Any]:
    """Return the results of B pictures with where Bridgers looked.

    Args:
        model: that answered.
        results: of its head, (B).
        recorded: cross-attention, of all forwards in which these pictures were asked about.
        asked: (B), for each the texts of these forwards, in their order.
        placements: (B) where each picture lies in the input.

    Raises:
        TypeError: the head's results cannot hold attention.
        ValueError: nothing was recorded, as the interactor has no attention to record.
    """
    bridgers = model.encoder.bridgers
    assert bridgers is not None  # `check_attention` has seen them
    if not recorded:
        raise ValueError(
            f"the interactor {bridgers.config.interactor!r} does not say where it looks: only "
            "bridger.bridgers.MultiheadAttention does, under the names `vision` and `text`"
        )
    if not all(isinstance(result, WithAttention) for result in results):
        raise TypeError(
            f"{type(results[0]).__name__} holds no attention: a head's results do that extend "
            "bridger.predictions.WithAttention"
        )
    forwards = looks_of(bridgers, recorded, len(asked[0]))
    return [
        replace(
            result,
            attention=tuple(
                _attention(model, looks, texts, picture, number, placement)
                for looks, texts in zip(forwards, chunks, strict=True)
                for number in range(len(texts.input_ids))
            ),
        )
        for picture, (result, chunks, placement) in enumerate(
            zip(results, asked, placements, strict=True)
        )
    ]


def _attention(
    model: BridgedModel,
    looks: Sequence[Looks],
    texts: Texts,
    picture: int,
    number: int,
    placement: Placement,
) -> Attention:
    """Return where the Bridgers looked for one sentence of a forward's texts and one picture."""
    config, processor = model.encoder.config, model.processor
    assert config is not None and processor is not None
    row = picture * len(texts.input_ids) + number
    height, width = target_size(placement.input_size, config.zoom_stride)
    length = next(
        weights.shape[dim]
        for one in looks
        for weights, dim in ((one.vision, -1), (one.text, -2))
        if weights is not None
    )
    missing = length - texts.input_ids.shape[1]  # to what the tower, or this batch, pads to
    ids = F.pad(texts.input_ids[number].cpu(), (0, missing), value=processor.words.pad_id)
    read = F.pad(texts.attention_mask[number].cpu(), (0, missing), value=False)
    if not config.mask_padding:
        read = read | True

    def of_row(weights: Tensor | None, kept: Any, pattern: str) -> Weights | None:
        if weights is None:
            return None
        mapped: Tensor = rearrange(weights[row].cpu()[kept], pattern, h=height, w=width)
        array: Weights = mapped.numpy()
        return array

    stages = tuple(
        StageAttention(
            one.stage,
            of_row(one.text, read, "l (h w) -> l h w"),
            of_row(one.vision, (slice(None), read), "(h w) l -> h w l"),
        )
        for one in looks
    )
    tokens = processor.words.tokens(ids[read].tolist())
    return Attention(tuple(tokens), stages, placement, config.zoom_stride)
