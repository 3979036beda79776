"""Draws boxes with names on their picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from bridger.predictions.masks import COLOURS
from bridger.predictions.overlay import enlarged, font_for, opened

if TYPE_CHECKING:
    from bridger.pictures import ImageLike
    from bridger.predictions.boxes import DetectionPrediction

DARK, LIGHT = (24, 26, 30), (255, 255, 255)


def draw_boxes(prediction: DetectionPrediction, image: ImageLike, least_side: int) -> Image.Image:
    """Draw the boxes, the best last and so on top; see `DetectionPrediction.overlay`."""
    picture = opened(image)
    height, width = prediction.size
    if picture.size != (width, height):
        raise ValueError(
            f"the boxes are of a picture of {width} x {height} pixels, this one has "
            f"{picture.width} x {picture.height}; pass the picture that they were predicted for"
        )
    picture = enlarged(picture, least_side)
    pen = ImageDraw.Draw(picture)
    scale = picture.width / width
    line = max(2, round(max(picture.size) / 220))
    letters = max(12, round(max(picture.size) / 32))
    for index in prediction.scores.argsort():
        label = int(prediction.labels[index])
        colour = COLOURS[label % len(COLOURS)]
        box = [scale * float(edge) for edge in prediction.boxes[index]]
        # A white line around the coloured one tells it from any ground.
        pen.rectangle(box, outline=LIGHT, width=2 * line)
        pen.rectangle(box, outline=colour, width=line)
        said = f"{prediction.names[label]}  {prediction.scores[index]:.2f}"
        _label(pen, picture.size, said, box, letters, colour)
    return picture


def _label(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    said: str,
    box: list[float],
    letters: int,
    colour: tuple[int, int, int],
) -> None:
    """Write on a plate above the box, or inside its upper edge where there is no room."""
    pad = letters / 4
    font = font_for([said], letters, size[0] - 2 * pad)
    width, height = font.getlength(said) + 2 * pad, letters + 2 * pad
    left = max(0.0, min(box[0], size[0] - width))
    top = box[1] - height if box[1] >= height else box[1]
    pen.rectangle((left, top, left + width, top + height), fill=colour)
    pen.text((left + pad, top + height / 2), said, DARK, font, anchor="lm")
