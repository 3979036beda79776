"""A contact sheet: some refs of every split on one picture, to see that masks and words fit."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from bridger.data.base import ReferringDataset, Sample
from bridger.pictures import read_picture
from bridger.predictions import Prediction

COLUMNS = 6
TILE, MARGIN, LINE = 256, 10, 18  # pixels
LETTERS = 14
MOST_LINES = 3
GROUND, INK, LABEL, FAULT = (24, 26, 30), (240, 240, 240), (150, 156, 166), (255, 120, 100)


def contact_sheet(
    splits: Sequence[ReferringDataset], *, count: int = 24, seed: int = 0
) -> Image.Image:
    """Draw refs by chance, about as many of every split, each with its mask and one sentence.

    What cannot be read is drawn as a message in its place.

    Args:
        splits: what to draw from.
        count: how many refs at most.
        seed: another seed, other refs.
    """
    chosen = list(_choose(splits, count, random.Random(f"sheet/{seed}")))
    several = len({split.name for split in splits}) > 1
    cell = (TILE + MARGIN, TILE + (1 + MOST_LINES) * LINE + 2 * MARGIN)
    columns = max(1, min(COLUMNS, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), GROUND)
    for number, (split, index, rng) in enumerate(chosen):
        name = f"{split.name} {split.split}" if several else split.split
        corner = (
            MARGIN + number % columns * cell[0],
            MARGIN + number // columns * cell[1],
        )
        _tile(sheet, corner, name, split, index, rng)
    return sheet


def _choose(
    splits: Sequence[ReferringDataset], count: int, rng: random.Random
) -> Iterator[tuple[ReferringDataset, int, random.Random]]:
    """Draw refs; what a split is too small for, larger ones get."""
    shares = [0] * len(splits)
    smallest_first = sorted(range(len(splits)), key=lambda i: len(splits[i]))
    for place, i in enumerate(smallest_first):
        shares[i] = min(len(splits[i]), (count - sum(shares)) // (len(splits) - place))
    for split, share in zip(splits, shares, strict=True):
        for index in sorted(rng.sample(range(len(split)), share)):
            yield split, index, rng


def _tile(
    sheet: Image.Image,
    corner: tuple[int, int],
    name: str,
    split: ReferringDataset,
    index: int,
    rng: random.Random,
) -> None:
    label, ink = f"{name} number {index}", INK
    try:
        sample = split[index]
        label, text = f"{name} ref {sample.ref_id}", rng.choice(sample.sentences)
        picture: Any = _overlay(sample)
    # Broken data is what a sheet is drawn to see.
    except Exception as error:
        picture, text, ink = Image.new("RGB", (TILE, TILE), GROUND), str(error), FAULT
    x, y = corner
    sheet.paste(picture, (x + (TILE - picture.width) // 2, y + (TILE - picture.height) // 2))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(LETTERS)
    for row, (line, colour) in enumerate(
        [(label, LABEL), *((line, ink) for line in _wrap(text, font))]
    ):
        pen.text((x, y + TILE + MARGIN // 2 + row * LINE), line, colour, font)


def _overlay(sample: Sample) -> Image.Image:
    """Draw a mask on its picture, both brought to the size of a tile first: that is quick."""
    picture = Image.fromarray(read_picture(sample.image_path).permute(1, 2, 0).numpy())
    mask = Image.fromarray(sample.mask * 255)
    if mask.size != picture.size:
        raise ValueError(f"the mask is {mask.size}, the picture {picture.size} (width, height)")
    picture = ImageOps.contain(picture, (TILE, TILE), Image.Resampling.BICUBIC)
    mask = mask.resize(picture.size, Image.Resampling.BOX)
    found = Prediction.from_probabilities(np.asarray(mask, dtype=np.float32)[None] / 255, 0.5)
    return found.overlay(picture, least_side=TILE)


def _wrap(text: str, font: Any) -> list[str]:
    """Break a sentence into lines of a tile's width; the last one ends in dots if more follows."""
    lines, rest = [""], text.split()
    while rest:
        longer = f"{lines[-1]} {rest[0]}".strip()
        if font.getlength(longer) <= TILE or not lines[-1]:
            lines[-1] = longer
            rest.pop(0)
        else:
            lines.append("")
    kept = lines[:MOST_LINES]
    if len(lines) > MOST_LINES:
        kept[-1] += " ..."
    return kept
