"""Draws boxes with names on their picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from bridger.predictions.masks import COLOURS
from bridger.predictions.overlay import enlarged, font_for, opened, scored

if TYPE_CHECKING:
    from bridger.pictures import ImageLike
    from bridger.predictions.boxes import DetectionPrediction

Plate = tuple[float, float, float, float]

DARK, LIGHT = (24, 26, 30), (255, 255, 255)
MOST_STEPS = 8  # that a name moves down, so that it stays near its box


def draw_boxes(
    prediction: DetectionPrediction, image: ImageLike, least_side: int, scores: bool
) -> Image.Image:
    """Draw the boxes, then their names; see `DetectionPrediction.overlay`."""
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
    best_first = prediction.scores.argsort()[::-1]
    boxes = [[scale * float(edge) for edge in box] for box in prediction.boxes]
    colours = [COLOURS[label % len(COLOURS)] for label in prediction.labels.tolist()]
    for index in best_first[::-1]:  # the best on top
        # A white line within the coloured one tells it from any ground.
        pen.rectangle(boxes[index], outline=LIGHT, width=2 * line)
        pen.rectangle(boxes[index], outline=colours[index], width=line)
    plates: list[Plate] = []
    for index in best_first:
        name = prediction.names[int(prediction.labels[index])]
        said = scored(name, float(prediction.scores[index])) if scores else name
        font = font_for([said], letters, 0.95 * picture.width)
        size = (font.getlength(said) + letters / 2, 1.5 * letters)
        plates.append(_free_plate(boxes[index], size, picture.size, plates))
        pen.rectangle(plates[-1], fill=colours[index])
        left, top, _, bottom = plates[-1]
        pen.text((left + letters / 4, (top + bottom) / 2), said, DARK, font, anchor="lm")
    return picture


def _free_plate(
    box: Sequence[float], size: tuple[float, float], room: tuple[int, int], taken: Sequence[Plate]
) -> Plate:
    """Return where a name may stand: above its box, or below names that stand there already.

    Args:
        box: of the object.
        size: (width, height) of the plate.
        room: (width, height) of the picture.
        taken: the plates of better boxes.
    """
    width, height = size
    left = max(0.0, min(box[0], room[0] - width))
    top = box[1] - height if box[1] >= height else box[1]
    for _ in range(MOST_STEPS):
        plate = (left, top, left + width, top + height)
        if not any(_overlap(plate, other) for other in taken):
            break
        top += height + 1
    return plate


def _overlap(a: Plate, b: Plate) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
