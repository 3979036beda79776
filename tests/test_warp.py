"""The letterbox and its inverse, against their definition and against OpenCV."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_words import word_tokenizer
from torch import Tensor

from bridger.etris import MEAN, STD
from bridger.processing import Processor
from bridger.warp import Placement

GEOMETRY = Path(__file__).parent.parent / "examples" / "benchmarks" / "geometry.py"
SIDE = 224
SIZES = [(1, 1), (3, 500), (1000, 50), (480, 640), (640, 427), (100, 100), (224, 224), (30, 2000)]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)


def as_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def direct_warp(image: np.ndarray, size: int, border: list[float]) -> np.ndarray:
    """The letterbox written out pixel by pixel, from the definition: cubic with A = -0.75."""

    def weight(x: float, a: float = -0.75) -> float:
        x = abs(x)
        if x < 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    h, w, channels = image.shape
    s = min(size / h, size / w)
    out = np.zeros((size, size, channels))
    for row in range(size):
        for column in range(size):
            y, x = (row - (size - s * h) / 2) / s, (column - (size - s * w) / 2) / s
            for i in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
                for j in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                    inside = 0 <= i < h and 0 <= j < w
                    value = image[i, j] if inside else np.array(border)
                    out[row, column] += weight(y - i) * weight(x - j) * value
    return out


@pytest.mark.parametrize("size", [(12, 7), (5, 16), (3, 3), (1, 1), (90, 4), (50, 60)])
def test_letterbox_equals_its_definition(size: tuple[int, int]) -> None:
    image, border = noise(*size), [255 * m for m in MEAN]
    placement = Placement.fit(size, (10, 10))
    warped = placement.into_input(as_tensor(image), torch.tensor(border))
    expected = direct_warp(image, 10, border)
    np.testing.assert_allclose(warped.permute(1, 2, 0), expected, atol=1e-3)


def test_autocast_does_not_touch_the_letterbox() -> None:
    image, border = as_tensor(noise(60, 80)), torch.tensor(MEAN)
    placement = Placement.fit((60, 80), (40, 40))
    expected = placement.into_input(image, border)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(placement.into_input(image, border), expected)


def test_memory_order_does_not_matter() -> None:
    image = as_tensor(noise(60, 80))
    placement = Placement.fit((60, 80), (40, 40))
    warped = [placement.into_input(x, torch.zeros(3)) for x in (image, image.contiguous())]
    assert torch.equal(*warped)


# OpenCV: examples/benchmarks/geometry.py says in words what is asserted here. Differences are in
# grey levels of 255.


class OpenCV:
    """The benchmark's names, and whether this release rounds coordinates."""

    def __init__(self, size: tuple[int, int]) -> None:
        cv2 = pytest.importorskip("cv2")
        names = runpy.run_path(str(GEOMETRY))
        self.rounds = int(cv2.__version__.split(".")[0]) < 5
        self.draw = {"scene": names["scene"], "noise": names["noise"]}
        self.border, self.box = names["BORDER"], names["Letterbox"](size, SIDE)


def differs(one: Any, other: Any) -> tuple[float, float]:
    """Mean and largest absolute difference."""
    difference = np.abs(np.asarray(one, dtype=float).ravel() - np.asarray(other).ravel())
    return float(difference.mean()), float(difference.max())


def letterbox() -> Processor:
    return Processor(SIDE, MEAN, STD, word_tokenizer(), 8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["scene", "noise"])
def test_picture_against_opencv(size: tuple[int, int], kind: str) -> None:
    opencv = OpenCV(size)
    image = opencv.draw[kind](*size)
    expected = opencv.box.opencv(image, opencv.border, True)
    same = opencv.box.ours(image, opencv.border, True, rounded=opencv.rounds)
    mean, most = differs(same, expected)
    assert mean <= 0.01 and most <= 1  # a tie that is rounded the other way
    fitted, _ = letterbox().fit(image)
    mean, most = differs(fitted.permute(1, 2, 0), expected)
    assert (mean <= 0.1 and most <= 4) if kind == "scene" else (mean <= 1.1 and most <= 8)


@pytest.mark.parametrize("size", SIZES)
def test_mask_against_opencv(size: tuple[int, int]) -> None:
    opencv, mask = OpenCV(size), noise(*size)[..., 0] // 128 * 255
    expected = opencv.box.opencv(mask, 0, False)
    same = opencv.box.ours(mask, [0], False, rounded=opencv.rounds)
    mean, most = differs(same, expected)
    assert mean <= 0.01 and most <= 1
    target = letterbox().target(mask, opencv.box.placement)
    mean, most = differs(255 * target, expected)
    assert mean <= 1.5 and most <= 8


@pytest.mark.parametrize("size", SIZES)
def test_probabilities_against_opencv(size: tuple[int, int]) -> None:
    """A field as a head makes it: smooth, as it comes from a coarser grid."""
    opencv, field = OpenCV(size), torch.rand(1, 1, SIDE // 16, SIDE // 16)
    field = torch.nn.functional.interpolate(field, (SIDE, SIDE), mode="bicubic", align_corners=True)
    theirs, ours = opencv.box.back(field[0])
    mean, most = differs(ours, theirs)
    assert (mean <= 5e-4 and most <= 0.02) if opencv.rounds else most <= 1e-4
