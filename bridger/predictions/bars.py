"""Draws the probabilities of classes below their picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from bridger.predictions.masks import COLOURS
from bridger.predictions.overlay import enlarged, font_for, opened

if TYPE_CHECKING:
    from bridger.pictures import ImageLike

PAPER, INK, TRACK, GREY = (24, 26, 30), (240, 240, 240), (48, 51, 57), (118, 124, 134)


def draw_bars(
    image: ImageLike, bars: Sequence[tuple[str, float, bool]], least_side: int
) -> Image.Image:
    """Draw the picture and its bars; see `ClassificationPrediction.overlay`.

    Args:
        image: the picture.
        bars: name, probability and whether the class is found, from top to bottom.
        least_side: see there.
    """
    picture = enlarged(opened(image), least_side)
    height = max(24, round(max(picture.size) / 18))
    whole = Image.new("RGB", (picture.width, picture.height + height * len(bars)), PAPER)
    whole.paste(picture)
    pen = ImageDraw.Draw(whole)
    names = [name for name, _, _ in bars]
    gap, column = height / 3, 0.42 * picture.width
    font = font_for(names, round(0.6 * height), column - 2 * gap)
    figures = font_for(["100 %"], round(0.6 * height), 0.2 * picture.width)
    # Names stand in a column of their own, figures right of the longest bar.
    left, right = column, picture.width - 2 * gap - figures.getlength("100 %")
    for row, (name, probability, found) in enumerate(bars):
        top = picture.height + row * height
        middle, upper, lower = top + height / 2, top + 0.25 * height, top + 0.75 * height
        pen.text((gap, middle), name, INK if found else GREY, font, anchor="lm")
        pen.rectangle((left, upper, right, lower), fill=TRACK)
        colour = COLOURS[row % len(COLOURS)] if found else GREY
        pen.rectangle((left, upper, left + probability * (right - left), lower), fill=colour)
        percent = f"{100 * probability:.0f} %"
        pen.text((picture.width - gap, middle), percent, INK, figures, anchor="rm")
    return whole
