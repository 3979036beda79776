"""Draws masks on their picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias
from zlib import crc32

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from bridger.pictures import read_picture
from bridger.predictions.masks import COLOURS

if TYPE_CHECKING:
    from bridger.pictures import ImageLike
    from bridger.predictions.masks import Prediction

Pixels = npt.NDArray[np.float32]
Colour: TypeAlias = tuple[int, int, int]
DIM, TINT = 0.6, 0.35
"""Brightness outside of all masks; share of the colour inside."""


def draw(
    prediction: Prediction,
    image: ImageLike,
    words: Sequence[str] | None,
    least_side: int,
    scores: bool,
    colours: Sequence[Colour] = COLOURS,
) -> Image.Image:
    """Draw the masks, in these colours one after the other; see `Prediction.overlay`."""
    picture = opened(image)
    height, width = prediction.masks.shape[1:]
    if picture.size != (width, height):
        raise ValueError(
            f"the masks are {width} x {height} pixels, the picture is {picture.width} x "
            f"{picture.height}; pass the picture that they were predicted for"
        )
    picture = enlarged(picture, least_side)
    masks = [smooth(mask, picture.size) for mask in prediction.masks]
    line = max(1.5, max(picture.size) / 320)
    canvas = _paint(np.asarray(picture, dtype=np.float32), masks, line, colours)
    drawn = Image.fromarray(np.rint(canvas).clip(0, 255).astype(np.uint8))
    if words is None:
        return drawn
    return _caption(drawn, words, prediction.scores.tolist() if scores else None, colours)


def colours_of(names: Sequence[str]) -> list[Colour]:
    """Return a colour for each of a few names, as far as it is free the same in all pictures."""
    taken: dict[str, int] = {}
    for name in sorted(names):
        place = crc32(name.encode()) % len(COLOURS)
        while place in taken.values() and len(taken) < len(COLOURS):
            place = (place + 1) % len(COLOURS)
        taken[name] = place
    return [COLOURS[taken[name]] for name in names]


def opened(image: ImageLike) -> Image.Image:
    """Return a picture of any kind as one to draw on."""
    return Image.fromarray(read_picture(image).permute(1, 2, 0).contiguous().numpy())


def enlarged(picture: Image.Image, least_side: int) -> Image.Image:
    """Enlarge a picture whose longer side is smaller than that many pixels."""
    factor = max(1.0, least_side / max(picture.size))
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def font_for(lines: Sequence[str], letters: int, room: float) -> Any:
    """Return a font of that many pixels, or a smaller one in which every line fits the room."""
    font = ImageFont.load_default(letters)
    while letters > 8 and max(map(font.getlength, lines)) > room:
        letters -= 1
        font = ImageFont.load_default(letters)
    return font


def smooth(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> Pixels:
    """Enlarge a mask to (width, height) with a soft edge: (height, width) from 0 to 1."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    if grey.size != size:
        # Blur by half a cell of the small picture, so that the steps of its pixels vanish.
        grey = grey.resize(size, Image.Resampling.BICUBIC)
        grey = grey.filter(ImageFilter.GaussianBlur(size[0] / mask.shape[1] / 2))
    soft = np.asarray(grey, dtype=np.float32) / 255
    return np.asarray(((soft - 0.5) * 4 + 0.5).clip(0, 1), dtype=np.float32)


def _paint(
    picture: Pixels, masks: Sequence[Pixels], line: float, colours: Sequence[Colour]
) -> Pixels:
    """Darken what no mask covers, tint what one covers, and draw the outlines."""
    grey = picture.mean(axis=2, keepdims=True)
    dim = DIM * (0.5 * picture + 0.5 * grey)
    covered = np.max([np.zeros(picture.shape[:2], np.float32), *masks], axis=0)[..., None]
    canvas = picture * covered + dim * (1 - covered)
    for index, mask in enumerate(masks):
        colour = np.array(colours[index % len(colours)], dtype=np.float32)
        canvas += (colour - canvas) * (TINT * mask[..., None])
    for index, mask in enumerate(masks):
        colour = np.array(colours[index % len(colours)], dtype=np.float32)
        canvas += (255 - canvas) * _ring(mask, 2.2 * line)[..., None]
        canvas += (colour - canvas) * _ring(mask, 1.2 * line)[..., None]
    return np.asarray(canvas, dtype=np.float32)


def _ring(mask: Pixels, width: float) -> Pixels:
    """A soft line along the edge of a mask."""
    blurred = Image.fromarray(np.rint(mask * 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(width)
    )
    # Near a straight edge a blurred step rises from 0 to 1 within about 4 sigma; 0.5 is the edge.
    distance = np.abs(np.asarray(blurred, dtype=np.float32) / 255 - 0.5)
    return np.asarray(((0.3 - distance) * 6).clip(0, 1), dtype=np.float32)


def scored(words: str, score: float) -> str:
    """Write a score behind words."""
    return f"{words}   {score:.2f}"


def _caption(
    picture: Image.Image,
    words: Sequence[str],
    scores: Sequence[float] | None,
    colours: Sequence[Colour],
) -> Image.Image:
    """Put a line per expression under the picture: colour, words, and the score if there is one."""
    height = max(20, round(max(picture.size) / 22))
    lines = list(words)
    if scores is not None:
        lines = [
            scored(sentence, score) if score > 0 else f"{sentence}   (nothing found)"
            for sentence, score in zip(words, scores, strict=True)
        ]
    font = font_for(lines, round(0.6 * height), picture.width - 1.5 * height)
    size = (picture.width, picture.height + height * len(lines))
    whole = Image.new("RGB", size, (24, 26, 30))
    whole.paste(picture)
    pen = ImageDraw.Draw(whole)
    for index, line in enumerate(lines):
        top = picture.height + index * height
        square = (0.25 * height, top + 0.25 * height, 0.75 * height, top + 0.75 * height)
        pen.rounded_rectangle(square, radius=0.12 * height, fill=colours[index % len(colours)])
        pen.text((height, top + 0.5 * height), line, (240, 240, 240), font, anchor="lm")
    return whole
