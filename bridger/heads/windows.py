"""Large pictures in windows, each of which fills the towers' input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bridger.config import check_share
from bridger.heads.base import Head, HeadOutput
from bridger.heads.dense import DenseHead
from bridger.pictures import ImageLike, read_picture
from bridger.predictions.maps import PictureMaps, Piece
from bridger.processing import Processor
from bridger.texts import Texts

OVERLAP = 0.5


def starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where windows begin along a side; the last is moved back until it ends inside.

    Args:
        length: of the side.
        window: of a window.
        overlap: share of a window that the next one covers too.
    """
    step = max(1, round(window * (1 - overlap)))
    return [*range(0, max(length - window, 0), step), max(length - window, 0)]


def in_windows(
    head: Head,
    ask: Callable[[Tensor], HeadOutput],
    processor: Processor,
    image: ImageLike,
    texts: Texts,
    *,
    window: int,
    overlap: float = OVERLAP,
    at_once: int = 1,
    **options: Any,
) -> Any:
    """Return a picture's result, made window by window; probabilities are averaged in overlaps.

    A picture that is no larger than the window is one window: the result is that without windows.

    Args:
        head: what decodes.
        ask: gives the head's output for pixel values (B, 3, H, W).
        processor: fits each window into the input.
        image: the picture.
        texts: what is asked.
        window: side of the windows in the picture's own pixels.
        overlap: share of a window that the next one covers too, at least 0 and below 1.
        at_once: windows of one batch.
        **options: of the head's `result`.

    Raises:
        ValueError: a window or an overlap that cannot be.
    """
    assert isinstance(head, DenseHead)  # others have no option of that name
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise ValueError(f"window must be a side in pixels, 1 or more, got {window!r}")
    check_share("overlap", overlap)
    picture = read_picture(image)
    size = (picture.shape[1], picture.shape[2])
    corners = [
        (y, x) for y in starts(size[0], window, overlap) for x in starts(size[1], window, overlap)
    ]
    pieces: list[Piece] = []
    absent: list[Tensor] = []
    for first in range(0, len(corners), at_once):
        some = corners[first : first + at_once]
        pixels, placements = processor.images(
            [picture[:, y : y + window, x : x + window] for y, x in some]
        )
        output = ask(pixels)
        pieces += head.pieces(output, placements, some)
        if output.no_target is not None:
            absent.append(output.no_target)
    # What any of the windows shows is in the picture.
    none = torch.cat(absent).amin(dim=0, keepdim=True) if absent else None
    maps = PictureMaps(tuple(pieces), size, processor.restore)
    return head.result(maps, texts, replace(output, no_target=none), 0, **options)
