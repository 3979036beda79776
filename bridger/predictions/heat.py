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
    from bridger.predictions.attention import Attention

Pixels = npt.NDArray[np.float32]

HEAT = ((40, 11, 84), (139, 34, 105), (212, 72, 66), (251, 155, 6), (252, 255, 164))
"""From a little more than evenly to most: rising brightness, legible without telling hues."""
LEAST_TOP = 3.0
"""The scale reaches to that multiple of even attention at least, so that even maps look even."""
GROUND, INK, QUIET = (24, 26, 30), (240, 240, 240), (150, 156, 166)


def draw_heat(
    attention: Attention,
    image: ImageLike,
    word: str | int,
    stage: int | None,
    least_side: int,
) -> Image.Image:
    """Draw one word's heat at one stage with a scale below; see `WithAttention`."""
    picture = _fitting(attention, image)
    heat = attention.heat(word, stage)
    top = max(LEAST_TOP, float(heat.max()))
    painted = _painted(enlarged(picture, least_side), heat, top)
    said = word if isinstance(word, str) else token_names(attention.tokens)[word]
    return _with_scale(painted, f"{said} \u00b7 stage {attention.at(stage).stage}", top)


def draw_sheet(attention: Attention, image: ImageLike, least_side: int) -> Image.Image:
    """Draw all tokens at all stages; see `WithAttention`."""
    picture = _fitting(attention, image)
    small = enlarged(picture, least_side)
    small.thumbnail((least_side, least_side))
    attention.at()  # raises where there is nothing to draw
    stages = [one.stage for one in attention.stages if one.text_to_picture is not None]
    numbers = range(len(attention.tokens))
    heats = [[attention.heat(number, stage) for number in numbers] for stage in stages]
    top = max(LEAST_TOP, max(float(heat.max()) for row in heats for heat in row))
    gap, line = 4, 22
    width, height = small.width + gap, small.height + gap
    left = 74
    sheet = Image.new("RGB", (left + width * len(numbers), line + height * len(stages)), GROUND)
    pen = ImageDraw.Draw(sheet)
    names = token_names(attention.tokens)
    font = font_for(names, 13, small.width)
    for column, name in enumerate(names):
        middle = left + width * column + small.width / 2
        pen.text((middle, line / 2), name, INK, font, anchor="mm")
    for row, (stage, along) in enumerate(zip(stages, heats, strict=True)):
        above = line + height * row
        label = font_for(["stage 00"], 13, left - 16)
        pen.text((8, above + small.height / 2), f"stage {stage}", INK, label, anchor="lm")
        for column, heat in enumerate(along):
            sheet.paste(_painted(small, heat, top), (left + width * column, above))
    return _with_scale(sheet, "", top)


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


def _painted(picture: Image.Image, heat: Pixels, top: float) -> Image.Image:
    """Paint heat over the picture in grey: nothing up to 1, the last colour at `top`."""
    level = np.clip((heat - 1) / (top - 1), 0, 1).astype(np.float32)
    grown = Image.fromarray(level).resize(picture.size, Image.Resampling.BILINEAR)
    level = np.asarray(grown, dtype=np.float32)
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] * 0.75
    share = 0.85 * np.minimum(1, 3 * level)[..., None]  # soon enough to be seen on any ground
    canvas = (1 - share) * grey + share * _colours(level)
    return Image.fromarray(np.rint(canvas).clip(0, 255).astype(np.uint8))


def _colours(level: Pixels) -> Pixels:
    """Return the colours (..., 3) of levels from 0 to 1."""
    at = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(level, at, channel) for channel in zip(*HEAT, strict=True)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _with_scale(picture: Image.Image, said: str, top: float) -> Image.Image:
    """Put a line below: what is drawn, and what the colours mean."""
    height = max(24, round(picture.width / 26)) if said else 28
    whole = Image.new("RGB", (picture.width, picture.height + height), GROUND)
    whole.paste(picture)
    pen = ImageDraw.Draw(whole)
    middle, gap = picture.height + height / 2, height / 3
    ends = ("1", f"{top:.1f} times what even attention is")
    font = font_for([said + "".join(ends)], round(0.5 * height), 0.7 * picture.width)
    right = picture.width - gap
    pen.text((right, middle), ends[1], QUIET, font, anchor="rm")
    right -= font.getlength(ends[1]) + gap
    bar = (max(24, round(0.14 * min(picture.width, 900))), max(6, round(0.36 * height)))
    ramp = np.tile(np.linspace(0, 1, bar[0], dtype=np.float32), (bar[1], 1))
    scale = Image.fromarray(_colours(ramp).astype(np.uint8))
    whole.paste(scale, (round(right - bar[0]), round(middle - bar[1] / 2)))
    pen.text((right - bar[0] - gap, middle), ends[0], QUIET, font, anchor="rm")
    pen.text((gap, middle), said, INK, font, anchor="lm")
    return whole
