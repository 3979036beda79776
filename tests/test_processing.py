"""Pictures of every kind into the letterbox and masks back out of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_words import word_tokenizer
from PIL import Image

from bridger.pictures import read_picture
from bridger.predictions import Prediction
from bridger.processing import Processor

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = [(48, 64), (70, 33), (20, 20), (9, 60), (1, 1), (1, 50), (200, 150)]


def processor(size: int | tuple[int, int] = 40, **changes: Any) -> Processor:
    options = dict(mean=MEAN, std=STD, tokenizer=word_tokenizer(), max_length=8)
    return Processor(size, **{**options, **changes})


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (height, width, channels), dtype=np.uint8)


def test_picture_of_the_input_size_passes_unchanged() -> None:
    image = noise(40, 40)
    pixels, placement = processor(40).image(image)
    expected = torch.from_numpy(image).permute(2, 0, 1) / 255 - torch.tensor(MEAN)[:, None, None]
    torch.testing.assert_close(pixels, expected / torch.tensor(STD)[:, None, None])
    assert (placement.scale, placement.top, placement.left) == (1, 0, 0)


def test_border_shows_the_mean_colour_which_is_nearly_zero_after_normalising() -> None:
    pixels, _ = processor(40).image(noise(10, 40))
    assert pixels[:, :10].abs().max() < 0.01  # bytes are rounded before normalising
    assert pixels[:, 15:25].abs().max() > 1


def test_input_may_be_wide() -> None:
    pixels, placement = processor((32, 64)).image(noise(10, 10))
    assert pixels.shape == (3, 32, 64)
    assert (placement.scale, placement.top, placement.left) == (3.2, 0, 16)


def test_pictures_come_as_a_batch() -> None:
    pixels, placements = processor(40).images([noise(10, 20), noise(30, 20)])
    assert pixels.shape == (2, 3, 40, 40)
    assert [p.size for p in placements] == [(10, 20), (30, 20)]
    with pytest.raises(ValueError, match="at least one picture"):
        processor().images([])


# Kinds of pictures.

RGB = noise(6, 5)
GREY = RGB[..., 0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_pil_modes_without_transparency(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(read_picture(image), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa"])
def test_transparent_pixels_show_white(mode: str) -> None:
    alpha = np.full((6, 5), 255, dtype=np.uint8)
    alpha[0] = 0
    image = Image.fromarray(np.concatenate([RGB, alpha[..., None]], axis=2))
    steps = ["LA", "La"] if mode == "La" else [mode]
    for step in steps:
        image = image.convert(step)
    seen = read_picture(image)
    assert (seen[:, 0] == 255).all()
    solid = Image.fromarray(RGB).convert("RGB" if mode.startswith("RGB") else "L").convert("RGB")
    assert torch.equal(seen[:, 1:], torch.from_numpy(np.array(solid)).permute(2, 0, 1)[:, 1:])


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "seen.png", transparency=0)
    seen = read_picture(tmp_path / "seen.png")
    assert seen[:, 0, 0].tolist() == [255, 255, 255] and seen[:, 1, 1].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["I;16", "I", "I with bytes", "F", "F with bytes", "file"])
def test_wide_grey_pictures_keep_their_brightness(kind: str, tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 30).astype(np.uint8).reshape(6, 5)
    made = {
        "I;16": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
        "I": lambda: Image.fromarray(grey.astype(np.int32) * 257),
        "I with bytes": lambda: Image.fromarray(grey.astype(np.int32)),
        "F": lambda: Image.fromarray(grey.astype(np.float32) / 255),
        "F with bytes": lambda: Image.fromarray(grey.astype(np.float32)),
    }
    if kind == "file":
        made["I;16"]().save(tmp_path / "deep.png")
        seen = read_picture(tmp_path / "deep.png")
    else:
        seen = read_picture(made[kind]())
    assert torch.equal(seen, torch.from_numpy(grey).expand(3, 6, 5))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(RGB)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    turned = torch.from_numpy(np.rot90(RGB, k=-1).copy()).permute(2, 0, 1)
    assert torch.equal(read_picture(str(tmp_path / "turned.png")), turned)
    _, placement = processor().image(tmp_path / "turned.png")
    assert placement.size == (5, 6)


@pytest.mark.parametrize(
    "image",
    [
        GREY,
        GREY[..., None],
        np.stack([GREY] * 3, axis=-1),
        np.stack([GREY, GREY, GREY, np.full_like(GREY, 255)], axis=-1),
        GREY / 255,
        (GREY / 255).astype(np.float32),
        GREY.astype(np.uint16) * 257,
        torch.from_numpy(GREY.copy()),
        torch.from_numpy(GREY.copy())[None] / 255,
        torch.from_numpy(GREY.copy()).expand(3, 6, 5),
        np.stack([GREY] * 3, axis=-1)[:, ::-1][:, ::-1],  # negative strides
    ],
)
def test_arrays_and_tensors_of_one_picture_agree(image: Any) -> None:
    assert torch.equal(read_picture(image), torch.from_numpy(GREY.copy()).expand(3, 6, 5))


def test_bool_array_is_black_and_white() -> None:
    assert read_picture(np.eye(2, dtype=bool))[0].tolist() == [[255, 0], [0, 255]]


def test_half_precision_tensor() -> None:
    exact = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 3)
    assert torch.equal(read_picture(exact.to(torch.bfloat16)), read_picture(exact))


def test_animation_shows_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_picture(tmp_path / "moving.gif")[:, 0, 0].tolist() == [255, 0, 0]


def broken_files(folder: Path) -> dict[str, tuple[Path, type[Exception], str]]:
    png = io.BytesIO()
    Image.fromarray(noise(50, 50)).save(png, "PNG")
    (folder / "empty.png").touch()
    (folder / "words.png").write_text("no picture")
    (folder / "cut.png").write_bytes(png.getvalue()[: len(png.getvalue()) // 2])
    return {
        "missing": (folder / "missing.png", FileNotFoundError, "no picture at .*missing.png"),
        "folder": (folder, ValueError, "is a folder"),
        "empty": (folder / "empty.png", ValueError, r"empty.png is empty \(0 bytes\)"),
        "foreign": (folder / "words.png", ValueError, "words.png cannot be read as a picture"),
        "cut": (folder / "cut.png", ValueError, "cut.png cannot be read .* is it whole"),
    }


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "foreign", "cut"])
def test_broken_files_are_named(kind: str, tmp_path: Path) -> None:
    path, error, words = broken_files(tmp_path)[kind]
    with pytest.raises(error, match=words):
        processor().image(path)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (np.zeros((0, 5, 3), np.uint8), ValueError, "the picture is empty"),
        (torch.zeros(3, 0, 5), ValueError, "the picture is empty"),
        (Image.new("RGB", (0, 5)), ValueError, "the picture is empty: 0 x 5"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, "channels first"),
        (np.zeros((8, 8, 2), np.uint8), ValueError, r"found an array of shape \(8, 8, 2\)"),
        (torch.zeros(1, 3, 8, 8), ValueError, "is a batch"),
        (torch.zeros(5, 8, 8), ValueError, r"found a tensor of shape \(5, 8, 8\)"),
        (np.full((8, 8), 200.0), ValueError, "holds 200 to 200; expected 0 to 1"),
        (np.full((8, 8), np.nan), ValueError, "holds nan"),
        (np.full((8, 8), -1.0), ValueError, "not normalised"),
        (np.zeros((8, 8), np.int64), TypeError, "found numbers of type int64"),
        (np.zeros((8, 8), object), TypeError, "found numbers of type object"),
        (Image.fromarray(np.full((4, 4), 10**6, np.int32)), ValueError, "mode I holds"),
        (3, TypeError, "found int"),
        (None, TypeError, "found NoneType"),
    ],
)
def test_what_is_no_picture(image: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        processor().image(image)


# Masks.


@pytest.mark.parametrize("size", SIZES)
def test_mask_goes_there_and_comes_back(size: tuple[int, int]) -> None:
    mask = np.zeros(size, dtype=np.uint8)
    mask[size[0] // 4 : max(1, size[0] * 3 // 4), size[1] // 4 : max(1, size[1] * 3 // 4)] = 1
    tool = processor(128)
    _, placement = tool.image(np.zeros(size, np.uint8))
    target = tool.target(mask, placement)
    assert target.shape == (128, 128) and 0 <= target.min() and target.max() <= 1
    again = tool.restore(target[None], placement)[0]
    assert again.shape == size
    union, common = ((again > 0.5) | (mask > 0)).sum(), ((again > 0.5) & (mask > 0)).sum()
    assert common / union > (0.95 if min(size) < 128 else 0.9)


def test_targets_are_soft_at_edges_and_zero_outside() -> None:
    tool = processor(40)
    _, placement = tool.image(np.zeros((10, 20), np.uint8))
    mask = np.zeros((10, 20), np.uint8)
    mask[:, :7] = 255
    target = tool.target(mask, placement)
    assert set(target.unique().tolist()) - {0.0, 1.0}
    assert (target[:8] == 0).all() and target[20, 2] == 1
    torch.testing.assert_close(target, tool.target(mask > 0, placement))
    torch.testing.assert_close(target, tool.target(torch.from_numpy(mask), placement))
    torch.testing.assert_close(target, tool.target(mask / 255, placement))


def test_mask_of_another_size_is_refused() -> None:
    _, placement = processor().image(noise(10, 20))
    with pytest.raises(ValueError, match=r"mask has shape \(20, 10\), its picture is \(10, 20\)"):
        processor().target(np.zeros((20, 10)), placement)


def test_restored_probabilities_stay_probabilities() -> None:
    tool = processor(64)
    _, placement = tool.image(noise(30, 50))
    restored = tool.restore(torch.bernoulli(torch.full((3, 16, 16), 0.5)), placement)
    assert restored.shape == (3, 30, 50) and restored.dtype == np.float32
    assert restored.min() >= 0 and restored.max() <= 1
    with pytest.raises(ValueError, match=r"expected probabilities \(N, h, w\)"):
        tool.restore(torch.rand(16, 16), placement)


def test_prediction_of_probabilities() -> None:
    probabilities = np.zeros((2, 6, 8))
    probabilities[0, 1:3, 2:7] = 0.5
    probabilities[0, 1, 2] = 0.7
    prediction = Prediction.from_probabilities(probabilities)
    assert prediction.masks.dtype == bool and prediction.masks[0].sum() == 10
    assert prediction.scores.tolist() == pytest.approx([0.52, 0])
    assert prediction.boxes.tolist() == [[2, 1, 7, 3], [0, 0, 0, 0]]
    assert Prediction.from_probabilities(probabilities, 0.6).masks.sum() == 1
    assert Prediction.from_probabilities(probabilities, 0.7).masks.sum() == 0  # above, not at


def test_overlay_changes_brightness_outside_and_colour_inside() -> None:
    image = np.full((60, 80, 3), 128, np.uint8)
    probabilities = np.zeros((2, 60, 80))
    probabilities[0, 10:30, 10:30] = 1
    probabilities[1, 10:30, 50:70] = 1
    prediction = Prediction.from_probabilities(probabilities)
    drawn = np.asarray(prediction.overlay(image, least_side=80)).astype(int)
    assert drawn.shape == (60, 80, 3)
    assert drawn[55, 5].max() < 90
    left, right = drawn[20, 20], drawn[20, 60]
    assert left[0] > left[2] + 30 and right[2] > right[0] + 30
    large = prediction.overlay(image, ["a thing", "another"])
    assert large.width == 512 and large.height > 384
    with pytest.raises(ValueError, match="2 masks need as many captions, found 1"):
        prediction.overlay(image, "a thing")
    with pytest.raises(ValueError, match="the masks are 80 x 60 pixels, the picture is 5 x 6"):
        prediction.overlay(RGB)


def test_overlay_of_one_pixel_and_of_no_object() -> None:
    prediction = Prediction.from_probabilities(np.zeros((1, 1, 1)))
    assert prediction.overlay(np.zeros((1, 1), np.uint8), "nothing").width == 512


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(image_size=0), "image_size must be"),
        (dict(image_size=(4, 4, 4)), "image_size must be"),
        (dict(image_size=True), "image_size must be"),
        (dict(image_size=(True, 4)), "image_size must be"),
        (dict(mean=(0.5, 0.5)), "mean must hold three numbers"),
        (dict(mean=(123.0, 117.0, 104.0)), "mean lies in 0 to 1"),
        (dict(std=(0.5, 0.0, 0.5)), "std above 0"),
        (dict(max_length=2), "no room for a word"),
    ],
)
def test_impossible_options(changes: dict[str, Any], words: str) -> None:
    options: dict[str, Any] = dict(image_size=40, mean=MEAN, std=STD, max_length=8)
    with pytest.raises(ValueError, match=words):
        Processor(tokenizer=word_tokenizer(), **{**options, **changes})


@pytest.mark.parametrize("length", [True, 8.0, "8"])
def test_a_length_is_a_whole_number(length: Any) -> None:
    with pytest.raises(TypeError, match="max_length must be a whole number"):
        processor(max_length=length)
