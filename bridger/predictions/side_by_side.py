"""Pictures beside and under one another, for looking at many at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def beside(images: Sequence[Image.Image]) -> Image.Image:
    """Put pictures beside one another, their upper edges in line."""
    from PIL import Image

    row = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)))
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width
    return row


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Put pictures under one another, their left edges in line."""
    from PIL import Image

    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet
