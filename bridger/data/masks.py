"""What masks are made of on disk: COCO's polygons and run lengths, mask files, boxes.

Shapes: h w the picture's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

_LEAST_POLYGON = 6  # numbers: three corners
_MOST_DIGITS = 7  # characters of a compressed run length: 35 bits, where COCO's runs have 32

Mask = npt.NDArray[np.uint8]


class Outline(Protocol):
    """Whatever can say which pixels of a picture belong to an object."""

    def mask(self, size: tuple[int, int]) -> Mask:
        """Return (h, w) uint8, 1 on the object and 0 elsewhere, for a picture of size (h, w).

        Raises:
            ValueError: it was made for a picture of another size.
        """


@dataclass(frozen=True)
class Segments:
    """The union of COCO segmentations; without any, an empty mask.

    Attributes:
        parts: each a list of polygons (x0, y0, x1, y1, ... in pixels), or a run-length encoding
            of either kind, {"size": [h, w], "counts": ...}.
    """

    parts: tuple[Any, ...]

    def mask(self, size: tuple[int, int]) -> Mask:
        """Decode every part, and unite them."""
        whole = np.zeros(size, dtype=np.uint8)
        for part in self.parts:
            np.maximum(whole, decode_mask(part, *size), out=whole)
        return whole


@dataclass(frozen=True)
class MaskFile:
    """A picture of the mask.

    Attributes:
        path: the file; what is not black is the object, or what is not transparent in a file in
            which something is.
        value: the object is what has this value instead, in a file that numbers objects.
    """

    path: Path
    value: int | None = None

    def mask(self, size: tuple[int, int]) -> Mask:
        """Read the file."""
        from PIL import Image, ImageOps

        if not self.path.is_file():
            raise FileNotFoundError(f"there is no mask file {self.path}")
        with Image.open(self.path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode == "P" and self.value is None:
                # The number of a palette's black is not always 0.
                image = image.convert("RGB")
            if image.has_transparency_data and self.value is None:
                alpha = image.convert("RGBA").getchannel("A")
                image = alpha if alpha.getextrema()[0] == 0 else image.convert("RGB")
            values = np.asarray(image)
        if values.ndim == 3:
            values = values[..., :3].max(axis=2) if values.shape[2] > 2 else values[..., 0]
        if values.shape != size:
            raise ValueError(
                f"the mask {self.path} is {values.shape} but its picture is {size} (height, width)"
            )
        found = values != 0 if self.value is None else values == self.value
        return np.asarray(found, dtype=np.uint8)


@dataclass(frozen=True)
class Box:
    """A filled rectangle: the best that can be had where only boxes were drawn.

    Attributes:
        corners: x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
    """

    corners: tuple[float, float, float, float]

    def mask(self, size: tuple[int, int]) -> Mask:
        """Fill the rectangle; pixels whose centre lies inside belong to it."""
        x0, y0, x1, y1 = self.corners
        ys, xs = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
        inside = ((ys >= y0) & (ys < y1))[:, None] & ((xs >= x0) & (xs < x1))[None, :]
        return inside.astype(np.uint8)


def decode_mask(
    segmentation: list[list[float]] | Mapping[str, Any], height: int, width: int
) -> Mask:
    """Decode COCO's polygons, or either kind of run-length encoding, to (height, width) of 0, 1.

    Raises:
        ValueError: a run-length encoding of another size, or one whose runs do not cover the
            picture exactly, or a broken segmentation.
    """
    try:
        return _decode(segmentation, height, width)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"a segmentation is neither polygons nor run lengths ({error!r})"
        ) from error


def _decode(segmentation: list[list[float]] | Mapping[str, Any], height: int, width: int) -> Mask:
    if isinstance(segmentation, Mapping):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(
                f"a mask is {list(segmentation['size'])} but its picture is {[height, width]} "
                f"(height, width)"
            )
        counts = segmentation["counts"]
        runs = _read_runs(counts) if isinstance(counts, str | bytes) else list(counts)
        return _fill_runs(runs, height, width)
    # Fewer corners cover nothing, and pycocotools would take four numbers for a box.
    polygons = [p for p in segmentation if len(p) >= _LEAST_POLYGON]
    if not polygons:
        return np.zeros((height, width), dtype=np.uint8)
    from pycocotools import mask as rle

    encoded = rle.merge(rle.frPyObjects(polygons, height, width))
    return np.ascontiguousarray(rle.decode(encoded), dtype=np.uint8)


def _fill_runs(runs: list[int], height: int, width: int) -> Mask:
    """Lay runs of 0 and 1 in turns down the columns; (height, width)."""
    # Where the runs end too early, pycocotools leaves what happens to be in memory.
    covered, least = sum(runs), min(runs, default=0)
    if covered != height * width or least < 0:
        raise ValueError(f"run lengths from {least} cover {covered} pixels of {height * width}")
    values = np.arange(len(runs), dtype=np.uint8) & 1
    return np.ascontiguousarray(np.repeat(values, np.asarray(runs)).reshape(width, height).T)


def _read_runs(counts: str | bytes) -> list[int]:
    """Read COCO's compressed run lengths.

    A number is one or more characters from "0" on: five bits in each, the lowest first, and a
    sixth that says that another follows; negative numbers in two's complement. From the fourth
    on, a number is the difference to the run two before.
    """
    raw = counts.encode() if isinstance(counts, str) else counts
    digits = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - ord("0")
    if not digits.size:
        return []
    last = digits < 32
    if digits.min() < 0 or digits.max() > 63 or not last[-1]:
        raise ValueError("compressed run lengths are cut off, or hold foreign characters")
    ends = np.flatnonzero(last) + 1
    lengths = np.diff(ends, prepend=0)
    if lengths.max() > _MOST_DIGITS:
        raise ValueError("compressed run lengths hold a number longer than any picture")
    starts = ends - lengths
    places = 5 * (np.arange(digits.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((digits & 31) << places, starts)
    numbers -= (digits[ends - 1] >> 4) << (5 * lengths)  # the sign
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    runs: list[int] = numbers.tolist()
    return runs


def picture_size(path: Path) -> tuple[int, int]:
    """Return (h, w) of a picture's file as `read_picture` would turn it; only its head is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture.
    """
    from PIL import ExifTags, Image

    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            width, height = image.size
            return (width, height) if turned else (height, width)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error})") from error
