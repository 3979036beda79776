"""The letterbox against OpenCV's warpAffine, in grey levels of 255: mean and largest difference.

    pip install opencv-python-headless
    python examples/benchmarks/geometry.py --side 416

"picture": bytes, cubic, mean colour around it; "mask": linear, 0 around it; "back": a head's
probabilities (times 255), cubic, to the picture's size. OpenCV before 5.0 rounds coordinates to
1/32 pixel, so it reads up to 1/64 pixel beside the place, on either axis: up to 2 * 255 / 64 = 8
grey levels where black meets white. "at 1/32" are pictures and masks from our letterbox at the
coordinates rounded like that: what is left there is the rounding of bytes.
"""

from __future__ import annotations

import argparse
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from bridger.data.scenes import make_scene
from bridger.etris import MEAN
from bridger.warp import Placement, resample

SIZES = [(480, 640), (640, 427), (333, 500), (100, 100), (1000, 50), (3, 500), (1, 1)]
BORDER = [round(255 * m) for m in MEAN]
Array = npt.NDArray[Any]
COLUMNS = ("h x w", "content", "picture", "mask", "back", "picture at 1/32", "mask at 1/32")


def scene(height: int, width: int) -> Array:
    picture = Image.fromarray(make_scene("train", 1, size=320).image)
    return np.array(picture.resize((width, height), Image.Resampling.BICUBIC))


def noise(height: int, width: int) -> Array:
    return np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)


class Letterbox:
    """Both ways into an input of a given side and back, by OpenCV and by us."""

    def __init__(self, size: tuple[int, int], side: int) -> None:
        self.placement = Placement.fit(size, (side, side))
        p = self.placement
        self.matrix = np.array([[p.scale, 0, p.left], [0, p.scale, p.top]])
        self.side, self.size = side, size

    def opencv(self, image: Array, border: Any, cubic: bool) -> Array:
        flags = cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
        size = (self.side, self.side)
        return cv2.warpAffine(image, self.matrix, size, flags=flags, borderValue=border)

    def ours(self, image: Array, border: list[int], cubic: bool, rounded: bool) -> Array:
        p, into = self.placement, torch.arange(self.side, dtype=torch.float64)
        rows, columns = (into - p.top) / p.scale, (into - p.left) / p.scale
        if rounded:
            rows, columns = (torch.floor(32 * c + 0.5) / 32 for c in (rows, columns))
        planes = torch.from_numpy(image.reshape(*image.shape[:2], -1)).permute(2, 0, 1)
        warped = resample(planes, rows, columns, torch.tensor(border), cubic=cubic)
        return (
            warped.round().clamp(0, 255).permute(1, 2, 0).numpy().reshape(self.side, self.side, -1)
        )

    def back(self, field: Tensor) -> tuple[Array, Array]:
        """A field (1, side, side) back to the picture's size, by OpenCV and by us."""
        inverse = cv2.invertAffineTransform(self.matrix)
        size = self.size[::-1]
        return (
            cv2.warpAffine(field[0].numpy(), inverse, size, flags=cv2.INTER_CUBIC),
            self.placement.out_of_input(field)[0].numpy(),
        )


def differences(one: Array, other: Array) -> str:
    difference = np.abs(one.astype(float).ravel() - other.astype(float).ravel())
    return f"{difference.mean():.4f}, {difference.max():.3g}"


def compare(image: Array, side: int) -> list[str]:
    """The columns of one picture."""
    box = Letterbox((image.shape[0], image.shape[1]), side)
    mask = image[..., 0] // 128 * 255
    coarse = torch.rand(1, 1, side // 16, side // 16)
    field = nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)[0]
    picture_there = box.opencv(image, BORDER, True)
    mask_there = box.opencv(mask, 0, False)
    theirs, ours = box.back(255 * field)
    return [
        differences(box.ours(image, BORDER, True, False), picture_there),
        differences(box.ours(mask, [0], False, False), mask_there),
        differences(ours, theirs),
        differences(box.ours(image, BORDER, True, True), picture_there),
        differences(box.ours(mask, [0], False, True), mask_there),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=416, help="of the input, in pixels")
    side = parser.parse_args().side
    torch.manual_seed(0)
    print(f"OpenCV {cv2.__version__}, input {side} x {side}; each: mean, largest\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|")
    for height, width in SIZES:
        for draw in (scene, noise):
            row = [f"{height} x {width}", draw.__name__, *compare(draw(height, width), side)]
            print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
