"""Pictures that visitors bring: read once, within limits, and kept as the bytes that they were."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bridger.demo.limits import Limits
from bridger.pictures import read_picture
from bridger.predictions.overlay import opened

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO")
"""Formats that are read; of others, some make Pillow start programs."""

SHOWN_SIDE = 768
"""Longer side of what the page draws on; drawing on the pixels of a photo takes seconds."""

GONE = "The picture is no longer here: upload it again."


@dataclass(frozen=True)
class Picture:
    """A picture as a visitor brought it.

    Attributes:
        path: where the page keeps its file; it tells pictures apart.
        data: the file.
        size: (h, w) of the picture, upright.
        shown: the picture, made smaller where it is larger than `SHOWN_SIDE`.
    """

    path: str
    data: bytes
    size: tuple[int, int]
    shown: Image.Image

    @classmethod
    def read(cls, path: str | os.PathLike[str], limits: Limits) -> Picture:
        """Read a file.

        Raises:
            ValueError: it is gone, too large, or no picture; in one sentence for a visitor.
        """
        from PIL import Image

        file = Path(path)
        if not file.is_file():
            raise ValueError(GONE)
        most = limits.megabytes * 10**6
        with file.open("rb") as opened_file:
            data = opened_file.read(most + 1)
        if len(data) > most:
            raise ValueError(
                f"The file has more than the {limits.megabytes} MB that this page takes: make the "
                f"picture smaller."
            )
        pixels = _decode(data, limits)
        size = (pixels.shape[1], pixels.shape[2])
        shown = opened(pixels)
        shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
        return cls(str(path), data, size, shown)

    def pixels(self, limits: Limits) -> Tensor:
        """Return the picture itself, (3, h, w) bytes."""
        if self.is_whole:
            return read_picture(self.shown)
        return _decode(self.data, limits)

    @property
    def is_whole(self) -> bool:
        """Whether what is shown is the picture at its own size."""
        return self.shown_size == self.size

    @property
    def shown_size(self) -> tuple[int, int]:
        """(h, w) of what is shown."""
        return self.shown.height, self.shown.width


def _decode(data: bytes, limits: Limits) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        Image.init()
        formats = [name for name in FORMATS if name in Image.OPEN]
        with Image.open(io.BytesIO(data), formats=formats) as image:
            _check_pixels(image.width, image.height, limits)  # before anything is unpacked
            return read_picture(image)
    except Image.DecompressionBombError as error:
        raise ValueError(_too_many("far more", limits)) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            "This file is no picture that can be read: take PNG, JPEG, WebP, GIF, BMP or TIFF."
        ) from error
    except _Refused:
        raise
    # Pillow's readers raise nearly anything on broken files.
    except Exception as error:
        raise ValueError("This picture is broken and cannot be read: is the file whole?") from error


class _Refused(ValueError):
    """A picture that could be read and is not."""


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > 1e6 * limits.megapixels:
        found = f"{width} x {height} pixels, {width * height / 1e6:.0f} million and"
        raise _Refused(_too_many(found, limits))


def _too_many(found: str, limits: Limits) -> str:
    return (
        f"The picture has {found} more than the {limits.megapixels} million pixels that this page "
        f"takes: make it smaller."
    )
