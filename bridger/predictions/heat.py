"""Draws where words looked as heat over their picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from bridger.predictions.attention import token_names
from bridger.predictions.overlay import enlarged, font_for, opened

if TYPE_CHECKING:
    from bridger.pictures import ImageLike
    from bridger.predictions.attention import Attention, Direction

Pixels = npt.NDArray[np.float32]

HEAT = ((40, 11, 84), (139, 34, 105), (212, 72, 66), (251, 155, 6), (252, 255, 164))
"""From a little more than evenly to most: rising brightness, legible without telling hues."""
DOUBLINGS = 3
"""The scale reaches from even attention to 2**3 times that, the same for all pictures."""
GROUND, INK, QUIET = (24, 26, 30), (240, 240, 240), (150, 156, 166)
GAP, LINE, MARGIN = 4, 24, 74
"""Pixels between a sheet's pictures, of a line of words, and left of the pictures."""
SAID: dict[Direction, str] = {
    "text_to_picture": "where each word looks",
    "picture_to_text": "what looks at each word",
}


def draw_heat(
    attention: Attention,
    image: ImageLike,
    word: str | int,
    stage: int | None,
    direction: Direction,
    least_side: int,
) -> Image.Image:
    """Draw one word's heat at one stage with a scale below; see `WithAttention`."""
    picture = _fitting(attention, image)
    heat = attention.heat(word, stage, direction)
    number = attention.stages_with(direction)[-1] if stage is None else stage
    said = word if isinstance(word, str) else token_names(attention.tokens)[word]
    painted = _painted(enlarged(picture, least_side), heat)
    return _with_scale(painted, f"{said} \u00b7 stage {number}")


def draw_sheet(attention: Attention, image: ImageLike, least_side: int) -> Image.Image:
    """Draw all tokens at all stages, in both directions; see `WithAttention`."""
    small = enlarged(_fitting(attention, image), least_side)
    small.thumbnail((least_side, least_side))
    width, height = small.width + GAP, small.height + GAP
    names = token_names(attention.tokens)
    stages = {direction: attention.stages_with(direction) for direction in SAID}
    blocks = {direction: at for direction, at in stages.items() if at}
    rows = sum(map(len, blocks.values()))
    size = (MARGIN + width * len(names), LINE + LINE * len(blocks) + height * rows)
    sheet = Image.new("RGB", size, GROUND)
    pen = ImageDraw.Draw(sheet)
    font, label = font_for(names, 13, small.width), font_for(["stage 00"], 13, MARGIN - 16)
    for column, name in enumerate(names):
        middle = MARGIN + width * column + small.width / 2
        pen.text((middle, LINE / 2), name, INK, font, anchor="mm")
    top = LINE
    for direction, at in blocks.items():
        pen.text((MARGIN, top + LINE / 2), SAID[direction], QUIET, label, anchor="lm")
        top += LINE
        for stage in at:
            pen.text((8, top + small.height / 2), f"stage {stage}", INK, label, anchor="lm")
            for column in range(len(names)):
                painted = _painted(small, attention.heat(column, stage, direction))
                sheet.paste(painted, (MARGIN + width * column, top))
            top += height
    return _with_scale(sheet, "")


def _fitting(attention: Attention, image: ImageLike) -> Image.Image:
    """Return the picture; ValueError where it is none of the size that was asked about."""
    picture = opened(image)
    height, width = attention.placement.size
    if picture.size != (width, height):
        raise ValueError(
            f"attention was kept for a picture of {width} x {height} pixels, this one has "
            f"{picture.width} x {picture.height}; pass the picture that was asked about"
        )
    return picture


def _painted(picture: Image.Image, heat: Pixels) -> Image.Image:
    """Paint heat over the picture in grey: nothing up to 1."""
    doublings = np.log2(np.maximum(heat, 1)).clip(max=DOUBLINGS).astype(np.float32)
    grown = Image.fromarray(doublings).resize(picture.size, Image.Resampling.BILINEAR)
    level: Pixels = np.asarray(grown, dtype=np.float32) / np.float32(DOUBLINGS)
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] * 0.75
    share = 0.85 * np.minimum(1, 3 * level)[..., None]  # soon enough to be seen on any ground
    canvas = (1 - share) * grey + share * _colours(level)
    return Image.fromarray(np.rint(canvas).clip(0, 255).astype(np.uint8))


def _colours(level: Pixels) -> Pixels:
    """Return the colours (..., 3) of levels from 0 to 1."""
    at = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(level, at, channel) for channel in zip(*HEAT, strict=True)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _with_scale(picture: Image.Image, said: str) -> Image.Image:
    """Put lines below: what is drawn, and what the colours mean."""
    letters = max(12, round(picture.width / 56)) if said else 13
    height = 3 * letters
    whole = Image.new("RGB", (picture.width, picture.height + height), GROUND)
    whole.paste(picture)
    pen = ImageDraw.Draw(whole)
    font = font_for([said or "stage"], letters, 0.45 * picture.width)
    small = font_for(["times even attention"], letters, 0.3 * picture.width)
    upper, lower = picture.height + 0.7 * letters, picture.height + 1.5 * letters
    width = round(min(0.3 * picture.width, 16 * letters))
    right = picture.width - letters - small.getlength("8")
    level = np.linspace(0, 1, width).astype(np.float32)
    ramp = np.broadcast_to(level, (round(0.7 * letters), width))
    whole.paste(
        Image.fromarray(_colours(ramp).astype(np.uint8)), (round(right - width), round(upper))
    )
    for doubling in range(DOUBLINGS + 1):
        at = (right - width + width * doubling / DOUBLINGS, lower + 0.7 * letters)
        pen.text(at, str(2**doubling), QUIET, small, anchor="mm")
    pen.text((right - width - letters, upper), "times even attention", QUIET, small, anchor="rt")
    pen.text((letters / 2, picture.height + height / 2), said, INK, font, anchor="lm")
    return whole
