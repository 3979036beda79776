"""Pictures as users have them (files, PIL images, arrays, tensors) to bytes in RGB."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

ImageLike: TypeAlias = Union["Image.Image", np.ndarray[Any, Any], Tensor, str, os.PathLike[str]]
"""A picture as users have it; see `read_picture`."""

WHITE = 255
EXPECTED = (
    "a PIL image, a path, an array (h, w), (h, w, 3) or (h, w, 4), or a tensor (3, h, w); "
    "numbers are bytes, or floats from 0 to 1"
)


def read_picture(image: ImageLike) -> Tensor:
    """Turn a picture of any kind into bytes (3, h, w) in RGB.

    EXIF orientation is applied. Transparent parts show white, as in a browser. 16-bit pictures
    are brought to 8 bits. Of an animation the current frame counts.

    Args:
        image: a PIL image of any mode, a path, an array (h, w), (h, w, 1 | 3 | 4), or a tensor
            (h, w), (1 | 3 | 4, h, w); arrays and tensors hold bytes, bool, 16-bit integers or
            floats from 0 to 1.

    Returns:
        (3, h, w), uint8.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file is no picture or a broken one, the picture is empty, its shape or
            its numbers are none of the above.
        TypeError: an object of another kind.
    """
    if isinstance(image, (str, os.PathLike)):
        return _from_file(Path(image))
    if isinstance(image, Tensor):
        return _from_tensor(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    from PIL import Image

    if isinstance(image, Image.Image):
        return _from_pil(image)
    raise TypeError(f"expected {EXPECTED}; found {type(image).__name__}")


def _from_file(path: Path) -> Tensor:
    from PIL import Image

    if not path.exists():
        raise FileNotFoundError(f"there is no picture at {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a picture's file")
    if path.stat().st_size == 0:
        raise ValueError(f"the picture {path} is empty (0 bytes)")
    try:
        with Image.open(path) as image:
            return _from_pil(image)
    # Pillow's readers raise nearly anything on broken files: OSError, SyntaxError, struct.error.
    except (Exception, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read as a picture ({error}); is it whole, and of a format that "
            f"Pillow knows (PNG, JPEG, WebP, ...)?"
        ) from error


def _from_pil(image: Image.Image) -> Tensor:
    from PIL import Image, ImageOps

    if 0 in image.size:
        raise ValueError(f"the picture is empty: {image.width} x {image.height} pixels")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return _from_array(_wide_numbers(np.asarray(image), image.mode))
    if image.has_transparency_data:
        # Premultiplied grey has no way to RGBA of its own.
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        ground = Image.new("RGBA", image.size, (WHITE, WHITE, WHITE, WHITE))
        image = Image.alpha_composite(ground, image)
    return _bytes_to_tensor(np.asarray(image.convert("RGB")))


def _wide_numbers(array: np.ndarray[Any, Any], mode: str) -> np.ndarray[Any, Any]:
    """Bring Pillow's wide grey modes to 16-bit integers, bytes or floats from 0 to 1."""
    if mode.startswith("I;16"):
        return array.astype(np.uint16)
    if mode == "I":  # 32 bits that hold an 8- or a 16-bit picture
        if array.min() < 0 or array.max() > 65535:
            raise ValueError(
                f"a picture of mode I holds {array.min()} to {array.max()}; expected 0 to 255, "
                f"or 0 to 65535: rescale it first"
            )
        return array.astype(np.uint16 if array.max() > WHITE else np.uint8)
    if array.max() > 1 and 0 <= array.min() and array.max() <= WHITE:
        return array / WHITE
    return array


def _from_array(array: np.ndarray[Any, Any]) -> Tensor:
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        raise ValueError(
            f"an array of shape {array.shape} has its channels first; arrays are (h, w, channels), "
            f"tensors (channels, h, w): pass torch.from_numpy(array) or move the axis"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise ValueError(f"expected {EXPECTED}; found an array of shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"the picture is empty: an array of shape {array.shape}")
    pixels = _to_bytes(array)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[-1] == 4:
        alpha = pixels[..., 3:].astype(np.float32) / WHITE
        pixels = np.rint(alpha * pixels[..., :3] + (1 - alpha) * WHITE).astype(np.uint8)
    return _bytes_to_tensor(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _from_tensor(tensor: Tensor) -> Tensor:
    if tensor.ndim == 4:
        raise ValueError(
            f"a tensor of shape {tuple(tensor.shape)} is a batch; pass one picture (3, h, w), or "
            f"a list of pictures"
        )
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        raise ValueError(f"expected {EXPECTED}; found a tensor of shape {tuple(tensor.shape)}")
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    array = tensor.numpy()
    return _from_array(array if array.ndim == 2 else np.moveaxis(array, 0, -1))


def _to_bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return np.asarray(array.astype(np.uint8) * np.uint8(WHITE))
    if array.dtype == np.uint16:
        return np.asarray(np.rint(array / 257), dtype=np.uint8)  # 65535 / 257 = 255
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"expected {EXPECTED}; found numbers of type {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not (0 <= low and high <= 1):  # also true for NaN
        raise ValueError(
            f"a picture of floats holds {low:g} to {high:g}; expected 0 to 1: not normalised, "
            f"not 0 to 255"
        )
    return np.asarray(np.rint(array * WHITE), dtype=np.uint8)


def _bytes_to_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """(h, w, 3) bytes to (3, h, w); a copy, as PIL's own memory is read-only.

    The channels of a pixel stay together in memory: a plain copy, and what the letterbox reads.
    """
    return torch.from_numpy(array.copy()).permute(2, 0, 1)
