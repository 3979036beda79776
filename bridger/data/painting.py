"""Painting: backgrounds, and sprites put upon them with exact masks of what stays visible."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from bridger.data.sprites import TINTS, sprite

Array = npt.NDArray[np.float32]
Bits = npt.NDArray[np.bool_]
Rng = np.random.Generator

_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Placement:
    """How one object stands in a picture; lengths are fractions of the picture's side.

    Attributes:
        kind: index of its kind.
        x, y: centre, from the left and from the top.
        size: longer side of the sprite before rotation.
        angle: rotation in degrees, counter-clockwise.
        flip: whether it is mirrored.
        light: brightness, 1 for the sprite's own.
        tint: name of the colour it is given, or None for its own colours.
    """

    kind: int
    x: float
    y: float
    size: float
    angle: float = 0.0
    flip: bool = False
    light: float = 1.0
    tint: str | None = None


def paint(
    placements: list[Placement], background: Array
) -> tuple[npt.NDArray[np.uint8], Bits, npt.NDArray[np.int64]]:
    """Paints objects one over the other, in their order.

    Args:
        placements: K objects, the farthest first.
        background: (H, W, 3), from 0 to 255. Left unchanged.

    Returns:
        The picture, (H, W, 3) uint8; the visible masks, (K, H, W), disjoint; and how many pixels
        of object i are hidden by object j, (K, K). A pixel belongs to the object that gives it
        more than half of its colour.
    """
    canvas = background.copy()
    side = min(canvas.shape[:2])
    masks = np.zeros((len(placements), *canvas.shape[:2]), dtype=np.bool_)
    hidden = np.zeros((len(placements), len(placements)), dtype=np.int64)
    for i, placement in enumerate(placements):
        stamp = _stamp(placement, side)
        window, stamp = _clip(stamp, placement, canvas.shape[0], canvas.shape[1])
        alpha = stamp[..., 3:] / 255
        canvas[window] += (stamp[..., :3] - canvas[window]) * alpha
        solid = alpha[..., 0] > 0.5
        for j in range(i):
            below = masks[j][window]
            hidden[j, i] = int((below & solid).sum())
            below &= ~solid
        masks[i][window] = solid
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), masks, hidden


def _stamp(placement: Placement, side: int) -> Array:
    """The sprite as it will stand in the picture, (h, w, 4), from 0 to 255."""
    image = Image.fromarray(sprite(placement.kind))
    pixels = max(2, round(placement.size * side))
    # Premultiplied ("RGBa"), so that the colour under transparent pixels does not bleed in.
    image = image.convert("RGBa").resize((pixels, pixels), Image.Resampling.BILINEAR)
    if placement.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if placement.angle:
        image = image.rotate(placement.angle, Image.Resampling.BILINEAR, expand=True)
    stamp: Array = np.asarray(image.convert("RGBA"), dtype=np.float32).copy()
    if placement.tint is not None:
        stamp[..., :3] = _tinted(stamp, placement.tint)
    stamp[..., :3] = np.minimum(stamp[..., :3] * placement.light, 255)
    return stamp


def _tinted(stamp: Array, tint: str) -> Array:
    """Gives a sprite one colour and keeps its light and shade, (h, w, 3)."""
    light = stamp[..., :3] @ _LUMINANCE / 255
    weight = stamp[..., 3]
    mean = float((light * weight).sum() / max(weight.sum(), 1))
    # Dark and bright sprites are pulled towards the middle, where a colour can be seen as such.
    light = np.clip(light + 0.7 * (0.5 - mean), 0, 1)[..., None]
    colour = np.array(TINTS[tint], dtype=np.float32)
    shade = np.where(light < 0.5, colour * 2 * light, colour + (255 - colour) * (2 * light - 1))
    tinted: Array = 0.2 * stamp[..., :3] + 0.8 * shade.astype(np.float32)
    return tinted


def _clip(
    stamp: Array, placement: Placement, height: int, width: int
) -> tuple[tuple[slice, slice], Array]:
    """Cuts a stamp at the picture's edges; gives the window it fills there."""
    h, w = stamp.shape[:2]
    top, left = round(placement.y * height - h / 2), round(placement.x * width - w / 2)
    rows = slice(max(top, 0), max(min(top + h, height), 0))
    columns = slice(max(left, 0), max(min(left + w, width), 0))
    cut = stamp[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return (rows, columns), cut


def paint_background(rng: Rng, height: int, width: int) -> Array:
    """A random background, (H, W, 3), from 0 to 255: gradient, noise, stripes, blobs or checks."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x / max(width, 1), y / max(height, 1)
    first, second = (_colour(rng) for _ in range(2))
    style = int(rng.integers(6))
    if style == 0:
        mix = _gradient(rng, x, y)
    elif style == 1:
        mix = _noise(rng, height, width, int(rng.integers(2, 9)))
    elif style == 2:
        mix = 0.5 + 0.5 * np.sin(_gradient(rng, x, y) * rng.uniform(10, 50))
    elif style == 3:
        mix = _blobs(rng, x, y)
    elif style == 4:
        cells = int(rng.integers(2, 9))
        mix = (np.floor(x * cells) + np.floor(y * cells)) % 2
    else:
        mix = np.full_like(x, rng.uniform())
    # Patterns of low contrast are the common case, as behind the objects of a photograph.
    mix = mix * rng.uniform(0.3, 1.0)
    canvas = first + (second - first) * mix[..., None]
    grain = rng.standard_normal((height, width, 1), dtype=np.float32)
    grainy = canvas + grain * np.float32(rng.uniform(0, 8))
    painted: Array = np.clip(grainy, 0, 255).astype(np.float32)
    return painted


def _colour(rng: Rng) -> Array:
    """A random colour, rather pale than garish, (3,)."""
    grey = rng.uniform(30, 235)
    colour: Array = (grey + (rng.uniform(0, 255, 3) - grey) * rng.uniform(0.1, 0.7)).astype(
        np.float32
    )
    return colour


def _gradient(rng: Rng, x: Array, y: Array) -> Array:
    angle = rng.uniform(0, 2 * math.pi)
    ramp = np.float32(math.cos(angle)) * (x - 0.5) + np.float32(math.sin(angle)) * (y - 0.5)
    scaled: Array = ramp / np.float32(1.5) + np.float32(0.5)
    return scaled


def _noise(rng: Rng, height: int, width: int, cells: int) -> Array:
    """Smooth noise: a few random values, enlarged."""
    coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _blobs(rng: Rng, x: Array, y: Array) -> Array:
    mix = np.zeros_like(x)
    for _ in range(int(rng.integers(3, 7))):
        cx, cy, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.05, 0.3)
        mix = np.maximum(mix, np.exp(-(((x - cx) ** 2 + (y - cy) ** 2) / radius**2)))
    return mix
