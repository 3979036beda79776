"""Augmentations: what words allow, what happens to pixels and masks, and that draws repeat."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_evaluation import Few
from helpers_words import word_tokenizer
from PIL import Image
from torch import Tensor

from bridger import Processor
from bridger.data import RaggedRefCollator, RefCollator, Sample
from bridger.data.augment import Colour, Crop, Transform, draw_transform
from bridger.data.augment_words import holds_under_colour, holds_under_crop, mirror_words
from bridger.data.masks import Box
from bridger.training.schedule import Schedule

SIZE = 48
NO, SAME = None, "same"

# Sentence, its mirrored form (NO: refused), whether colours may change, whether it may be cropped.
SENTENCES: list[tuple[str, str | None, bool, bool]] = [
    ("dog", SAME, True, True),
    ("guy 2nd from left", "guy 2nd from right", True, False),
    ("woman in white shirt", SAME, False, True),
    ("right zebra", "left zebra", True, False),
    ("person right behind the girl", NO, True, False),
    ("3rd from the right", "3rd from the left", True, False),
    ("pizza at 6 o'clock", NO, True, False),
    ("slice at 3 oclock", NO, True, False),
    ("man on left in red", "man on right in red", False, False),
    ("far left", "far right", True, False),
    ("Leftmost elephant", "Rightmost elephant", True, False),
    ("RIGHT SIDE", "LEFT SIDE", True, False),
    ("right most bottle", "left most bottle", True, False),
    ("left-hand sandwich", "right-hand sandwich", True, False),
    ("lefthand lamp", "righthand lamp", True, False),
    ("lefty", "righty", True, False),
    ("the one to the right of the left vase", "the one to the left of the right vase", True, False),
    ("second bear from left to right", "second bear from right to left", True, False),
    ("cat with its left paw up", "cat with its right paw up", True, False),
    ("topleft donut", "topright donut", True, False),
    ("bottom right corner", "bottom left corner", True, False),
    ("guy on the right in the back", "guy on the left in the back", True, False),
    ("guy facing right", "guy facing left", True, False),
    ("chair right next to the table", NO, True, False),
    ("right in front of the tv", NO, True, False),
    ("the right behind", NO, True, False),
    ("on right now", NO, True, False),
    ("the man is all right", NO, True, False),
    ("pizza left over", NO, True, False),
    ("the leftover pizza", SAME, True, False),
    ("what is left of the cake", NO, True, False),
    ("the only slice left", NO, True, False),
    ("boy who left", NO, True, False),
    ("food left on the plate", NO, True, False),
    ("bag left behind", NO, True, False),
    ("horse just left of the pole", "horse just right of the pole", True, False),
    ("woman standing upright", SAME, True, True),
    ("guy on the rigth", NO, True, False),
    ("letf guy", NO, True, False),
    ("girl on l", NO, True, False),
    ("guy rt", NO, True, False),
    ("traffic light", SAME, False, True),
    ("light blue car", SAME, False, True),
    ("darkest bear", SAME, False, True),
    ("redhead", SAME, False, True),
    ("reddish shirt", SAME, False, True),
    ("a red. truck", SAME, False, True),
    ("tan horse", SAME, False, True),
    ("the tank", SAME, True, True),
    ("credit card", SAME, True, True),
    ("grey elephant", SAME, False, True),
    ("gray elephant", SAME, False, True),
    ("the coloured umbrella", SAME, False, True),
    ("colorful kite", SAME, False, True),
    ("blonde girl", SAME, False, True),
    ("golden retriever", SAME, False, True),
    ("bluish bowl", SAME, False, True),
    ("guy in the shade", SAME, False, True),
    ("player number 23", NO, True, False),
    ("batter 14", NO, True, False),
    ("sign that says stop", NO, True, True),
    ('the "open" one', NO, True, True),
    ("truck with 'fedex' on it", NO, True, True),
    ("bus with letters", NO, True, True),
    ("the girls' and the boys' bags", SAME, True, True),
    ("turn it clockwise", NO, True, False),
    ("northeast corner", NO, True, False),
    ("driver's side door", NO, True, False),
    ("man in t-shirt", SAME, True, True),
    ("woman holding an umbrella", SAME, True, True),
    ("kid wearing shorts", SAME, True, True),
    ("short kid", SAME, True, False),
    ("tallest giraffe", SAME, True, False),
    ("big bowl", SAME, True, False),
    ("the small dog", SAME, True, False),
    ("first bus", NO, True, False),
    ("last in line", NO, True, False),
    ("1st cow", NO, True, False),
    ("third elephant", NO, True, False),
    ("2nd guy", NO, True, False),
    ("boy in front row, third in", NO, True, False),
    ("Last one", NO, True, False),
    ("the fourth bike, upright", NO, True, False),
    ("third elephant, left side", "third elephant, right side", True, False),
    ("last guy on the right", "last guy on the left", True, False),
    ("kid on rite", NO, True, False),
    ("wright guy", NO, True, False),
    ("the playwright", SAME, True, True),
    ("guy in bg", SAME, True, False),
    ("fg cow", SAME, True, False),
    ("bkgd car", SAME, True, False),
    ("cow in forground", SAME, True, False),
    ("foregroud cow", SAME, True, False),
    ("inner lane", SAME, True, False),
    ("outermost chair", SAME, True, False),
    ("innermost chair", SAME, True, False),
    ("inside lane", SAME, True, False),
    ("guy standing up", SAME, True, False),
    ("one lying down", SAME, True, False),
    ("medium dog", SAME, True, False),
    ("crnr seat", SAME, True, False),
    ("seat in cornr", SAME, True, False),
    ("person behnd", SAME, True, False),
    ("a cup of coffee", SAME, True, True),
    ("yello bus", SAME, False, True),
    ("wite shirt", SAME, False, True),
    ("balck cat", SAME, False, True),
    ("brwn horse", SAME, False, True),
    ("gry cat", SAME, False, True),
    ("orng shirt", SAME, False, True),
    ("bule car", SAME, False, True),
    ("b&w photo", SAME, False, True),
    ("b & w cow", SAME, False, True),
    ("redshirt", SAME, False, True),
    ("guy holding a tray while the fellow drinks pink", SAME, False, True),
    ("guy holding a tray while the fellow drinks", SAME, True, True),
    ("two people", SAME, True, False),
    ("both dogs", SAME, True, False),
    ("one in a hat", SAME, True, True),
    ("middle sheep", SAME, True, False),
    ("center plate", SAME, True, False),
    ("centre plate", SAME, True, False),
    ("closest cow", SAME, True, False),
    ("cow nearest to us", SAME, True, False),
    ("person next to the tree", SAME, True, False),
    ("dog on the bench", SAME, True, True),
    ("front train", SAME, True, False),
    ("guy in the background", SAME, True, False),
    ("partially visible bike", SAME, True, False),
    ("the bike that is cut off", SAME, True, False),
    ("bright smile", SAME, False, True),
    ("café table", SAME, True, True),
    ("左边的人", NO, False, False),
]


@pytest.mark.parametrize(("said", "mirrored", "colour", "crop"), SENTENCES)
def test_what_words_allow(said: str, mirrored: str | None, colour: bool, crop: bool) -> None:
    found = mirror_words(said)
    assert found == (said if mirrored == SAME else mirrored)
    assert holds_under_colour(said) == colour
    assert holds_under_crop(said) == crop
    if found is not None:
        assert mirror_words(found) == said
        assert holds_under_colour(found) == colour and holds_under_crop(found) == crop


def test_mirroring_twice_gives_the_sentence_back_whatever_it_is() -> None:
    words = (
        "left right Left leftmost righty the on is all of behind in now only that what dog 2nd "
        "over bright leftover side at from far topleft hand next to"
    ).split()
    rng, kept = random.Random(0), 0
    for _ in range(20_000):
        said = " ".join(rng.choices(words, k=rng.randint(1, 6)))
        found = mirror_words(said)
        if found is not None:
            assert mirror_words(found) == said
            kept += found != said
    assert kept > 1000


# Pixels and masks.


def bytes_of(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_a_flip_turns_picture_and_masks_and_leaves_what_was_given() -> None:
    pixels, masks = bytes_of(3, 6, 8), bytes_of(2, 6, 8)
    before = pixels.clone(), masks.clone()
    found, turned = Transform(flip=True)(pixels, masks)
    for i in range(8):
        assert torch.equal(found[..., i], pixels[..., 7 - i])
        assert torch.equal(turned[..., i], masks[..., 7 - i])
    again = Transform(flip=True)(found, turned)
    assert torch.equal(again[0], pixels) and torch.equal(again[1], masks)
    every = Transform(True, Colour(1.2, 0.8, 1.1, 0.01), Crop(0.7, 0.3, 0.6))
    every(pixels, masks)
    assert torch.equal(pixels, before[0]) and torch.equal(masks, before[1])


@pytest.mark.parametrize("size", [(SIZE, SIZE), (SIZE, 30), (60, 90), (20, 30)])
def test_a_flipped_input_is_the_input_of_the_mirrored_picture(size: tuple[int, int]) -> None:
    # The published letterbox has no half-pixel shift: where a picture is scaled by s, the two
    # are 1 - s pixels of the input apart, and equal where it is not.
    y, x = np.mgrid[: size[0], : size[1]]
    picture = np.stack([x * 2, y * 2, x + y], -1).astype(np.uint8)
    mask = (np.hypot(x - size[1] / 3, y - size[0] / 2) < 8).astype(np.uint8)
    processor = Processor((SIZE, SIZE), (0.5,) * 3, (0.5,) * 3, word_tokenizer(), 8)

    def fitted(picture: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
        pixels, placement = processor.fit(picture)
        target = processor.target(mask, placement).mul(255).round().to(torch.uint8)
        return pixels, target[None]

    found = Transform(flip=True)(*fitted(picture, mask))
    expected = fitted(picture[:, ::-1].copy(), mask[:, ::-1].copy())
    if size in ((SIZE, SIZE), (SIZE, 30)):
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    else:
        apart = (found[1].float() - expected[1].float()).abs().mean() / 255
        wrong = (found[1].float() - fitted(picture, mask)[1].float()).abs().mean() / 255
        assert apart < 0.02 < wrong


def test_factors_of_one_change_nothing() -> None:
    pixels = bytes_of(3, 9, 7)
    assert torch.equal(Colour()(pixels), pixels)


def test_colours_change_as_said() -> None:
    pixels = bytes_of(3, 20, 20) // 2 + 40
    luma = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * pixels).sum(0)

    def close(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=0.51)

    close(Colour(brightness=1.3)(pixels), pixels * 1.3)
    close(Colour(contrast=0.7)(pixels), luma.mean() + 0.7 * (pixels - luma.mean()))
    close(Colour(saturation=0.8)(pixels), luma + 0.8 * (pixels - luma))
    close(Colour(saturation=0)(pixels), luma.expand(3, -1, -1))
    close(Colour(hue=1 / 3)(pixels), pixels.roll(1, 0))  # red becomes green
    grey = bytes_of(1, 20, 20).expand(3, -1, -1)
    close(Colour(saturation=1.3, hue=0.02)(grey), grey)
    both = Colour(brightness=0.9, contrast=1.1)(pixels)
    close(both, 0.9 * (luma.mean() + 1.1 * (pixels - luma.mean())))
    assert Colour(brightness=4)(pixels).max() == 255  # no wrapping round


def test_a_crop_keeps_every_object_whole() -> None:
    rng = random.Random(1)
    for _ in range(300):
        masks = torch.zeros(2, 40, 50, dtype=torch.uint8)
        for mask in masks:
            top, left = rng.randrange(40), rng.randrange(50)
            mask[top : top + rng.randint(1, 25), left : left + rng.randint(1, 25)] = 255
        crop = Crop(rng.uniform(0.5, 1), rng.random(), rng.random())
        rows, columns = crop.box((masks > 0).any(dim=0))
        assert masks[:, rows, columns].sum() == masks.sum()
        height, width = rows.stop - rows.start, columns.stop - columns.start
        assert 0 <= rows.start < rows.stop <= 40 and 0 <= columns.start < columns.stop <= 50
        assert height / 40 >= crop.scale and width / 50 >= crop.scale
        assert abs(height / 40 - width / 50) < 1 / 20  # nothing is stretched


def test_a_crop_reaches_all_places_and_what_means_nothing_may_be_cut_anywhere() -> None:
    nothing = torch.zeros(40, 50, dtype=torch.bool)
    assert Crop(0.5, 0, 0).box(nothing) == (slice(0, 20), slice(0, 25))
    assert Crop(0.5, 1, 1).box(nothing) == (slice(20, 40), slice(25, 50))
    pixel = nothing.clone()
    pixel[30, 5] = True
    assert Crop(0.5, 0, 0).box(pixel) == (slice(11, 31), slice(0, 25))
    assert Crop(0.5, 1, 1).box(pixel) == (slice(20, 40), slice(5, 30))
    found, masks = Transform(crop=Crop(0.5, 0, 0))(bytes_of(3, 40, 50), bytes_of(1, 40, 50) * 0)
    assert found.shape == (3, 40, 50) and masks.sum() == 0


def test_a_crop_enlarges_picture_and_masks_alike() -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = (torch.hypot(x - 24.0, y - 30.0) < 9) * 255
    pixels = disc.expand(3, -1, -1).to(torch.uint8)
    crop = Crop(0.5, 0.25, 0.5)
    found, masks = Transform(crop=crop)(pixels, pixels[:1])
    assert masks.dtype == torch.uint8 and found.dtype == torch.uint8
    rows, columns = crop.box(disc > 0)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (32, 32)
    expected = torch.hypot((x + 0.5) / 2 + columns.start - 24.5, (y + 0.5) / 2 + rows.start - 30.5)
    inside = masks[0] > 127
    assert (inside != (expected < 9)).float().mean() < 0.02
    assert 0 < ((masks > 0) & (masks < 255)).sum()  # soft edges
    assert ((found[0] > 127) != inside).float().mean() < 0.01
    # With flip, the part is chosen first and mirrored then.
    both = Transform(flip=True, crop=crop)(pixels, pixels[:1])
    assert torch.equal(both[0], found.flip(-1)) and torch.equal(both[1], masks.flip(-1))


# Draws.


def draws(names: tuple[str, ...], *sentences: str) -> list[tuple[Transform | None, list[str]]]:
    return [draw_transform(names, sentences, random.Random(f"{i}")) for i in range(200)]


def test_words_of_all_sentences_decide() -> None:
    names = ("flip", "colour", "crop")
    free = [t for t, _ in draws(names, "a dog", "the dog on a bench") if t is not None]
    for share in (
        sum(t.flip for t in free) / 200,
        sum(t.colour is not None for t in free) / 200,
        sum(t.crop is not None for t in free) / 200,
    ):
        assert 0.35 < share < 0.65
    bound = draws(names, "a dog", "the dog right behind the big black cat")
    assert all(t is None and said[0] == "a dog" for t, said in bound)
    for transform, said in draws(names, "left dog", "a dog in red"):
        assert transform is None or (transform.flip and transform.colour is None)
        assert said == (
            ["right dog", "a dog in red"] if transform else ["left dog", "a dog in red"]
        )


def test_one_name_does_not_change_what_another_draws() -> None:
    for (one, _), (all_of_them, _) in zip(
        draws(("crop",), "dog"), draws(("flip", "colour", "crop"), "dog"), strict=True
    ):
        crop = None if all_of_them is None else all_of_them.crop
        assert (None if one is None else one.crop) == crop
    assert all(t is None for t, _ in draws((), "dog"))


def test_colours_stay_within_their_bounds() -> None:
    for transform, _ in draws(("colour",), "dog"):
        if transform is not None:
            colour = transform.colour
            assert colour is not None and abs(colour.hue) <= 0.02
            for factor in (colour.brightness, colour.contrast, colour.saturation):
                assert 0.7 <= factor <= 1.3


# Data.


class Pictures(Few):
    """Two pictures with three refs each."""

    def __init__(self, folder: Path) -> None:
        super().__init__([], name="pictures", split="train")
        for index in range(6):
            path = folder / f"{index // 3}.png"
            if not path.exists():
                Image.fromarray(bytes_of(40, 60, 3, seed=index).numpy()).save(path)
            left = 5.0 + 15 * (index % 3)
            box = Box((left, 10.0, left + 10, 22.0))
            said = (f"left {'dog cat owl'.split()[index % 3]}", "the dog on left", "owl")
            sample = Sample(path, said, box, index, (index,), (), ("",) * 3, None, "pictures")
            self.samples.append(sample)


@pytest.fixture
def data(tmp_path: Path) -> Pictures:
    return Pictures(tmp_path)


@pytest.fixture
def processor() -> Processor:
    return Processor((SIZE, SIZE), (0.5,) * 3, (0.5,) * 3, word_tokenizer(), 8)


ALL = ("flip", "colour", "crop")


@pytest.mark.parametrize("expressions", [1, 4])
def test_a_schedule_repeats_its_draws(data: Pictures, expressions: int) -> None:
    schedule = Schedule(data, 60, expressions, 3, ALL)
    plain = Schedule(data, 60, expressions, 3)
    whole = [schedule[i] for i in range(60)]
    backwards = [Schedule(data, 60, expressions, 3, ALL)[i] for i in reversed(range(60))]
    assert whole == backwards[::-1]
    assert whole != [Schedule(data, 60, expressions, 4, ALL)[i] for i in range(60)]
    flipped = 0
    for item, without in zip(whole, (plain[i] for i in range(60)), strict=True):
        assert len({sample.transform for sample in item}) == 1
        assert [sample.ref_id for sample in item] == [sample.ref_id for sample in without]
        assert all(sample.transform is None for sample in without)
        transform = item[0].transform
        flips = transform is not None and transform.flip
        flipped += flips
        for sample, bare in zip(item, without, strict=True):
            (found,), (said,) = sample.sentences, bare.sentences
            assert found == (said.replace("left", "right") if flips else said)
    assert 15 < flipped < 45


def test_an_unknown_augmentation_is_named(data: Pictures) -> None:
    with pytest.raises(ValueError, match="'color': did you mean 'colour'"):
        Schedule(data, 6, 1, 0, ["color"])


def test_collators_apply_transforms_after_the_cache(data: Pictures, processor: Processor) -> None:
    transform = Transform(True, Colour(1.1, 0.9, 1.2, 0.01), Crop(0.8, 0.2, 0.7))
    bare = [replace(sample, sentences=("dog",)) for sample in data.samples[:3]]
    changed = [replace(sample, transform=transform) for sample in bare]
    collate = RefCollator(processor)
    plain = collate(bare)
    found = collate(changed)
    assert not torch.equal(found["pixel_values"], plain["pixel_values"])
    assert found["labels"].max() <= 1 and found["labels"].min() >= 0
    for row, sample in enumerate(bare):
        pixels, placement = processor.fit(sample.image_path)
        mask = processor.target(sample.mask, placement).mul(255).round().to(torch.uint8)
        pixels, masks = transform(pixels, mask[None])
        torch.testing.assert_close(found["pixel_values"][row], processor.normalize(pixels))
        torch.testing.assert_close(found["labels"][row], masks[0] / 255)
    again = collate(bare)
    assert all(torch.equal(again[name], plain[name]) for name in plain)  # the cache is as before


def test_refs_of_an_item_are_cropped_together(data: Pictures, processor: Processor) -> None:
    transform = Transform(crop=Crop(0.6, 0.5, 0.5))
    item = [replace(s, sentences=("dog",), transform=transform) for s in data.samples[:3]]
    single = [replace(data.samples[3], sentences=("dog",))]
    batch = RaggedRefCollator(processor)([item, single])
    assert batch["labels"].shape == (2, 3, SIZE, SIZE)
    pixels, placement = processor.fit(item[0].image_path)
    masks = torch.stack([processor.target(s.mask, placement) for s in item]).mul(255).round()
    pixels, masks = transform(pixels, masks.to(torch.uint8))
    torch.testing.assert_close(batch["pixel_values"][0], processor.normalize(pixels))
    torch.testing.assert_close(batch["labels"][0], masks / 255)
    assert (batch["labels"][0].flatten(1).max(dim=1).values > 0.9).all()
    assert batch["labels"][1, 1:].sum() == 0
    other = [item[0], replace(item[1], transform=None)]
    with pytest.raises(ValueError, match="its transform too"):
        RaggedRefCollator(processor)([other])
