"""A contact sheet: some pictures of every split on one, to see that labels and words fit them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from bridger.data.sheet_tiles import PALE, SIDE, Split, Tile, Word, draw_tile, in_words

COLUMNS = 6
MARGIN, LINE = 10, 18  # pixels
LETTERS = 14
MOST_LINES = 3
GROUND, FAULT = (24, 26, 30), (255, 120, 100)


def contact_sheet(splits: Sequence[Split], *, count: int = 24, seed: int = 0) -> Image.Image:
    """Draw entries by chance, about as many of every split, each with what is said of it.

    That is the mask and one sentence of a ref; the regions of a label map and, in their colours,
    the names of the classes; boxes with names; or the classes of a picture. What cannot be read is
    drawn as a message in its place.

    Args:
        splits: what to draw from.
        count: how many entries at most.
        seed: another seed, other entries.
    """
    chosen = list(_choose(splits, count, random.Random(f"sheet/{seed}")))
    several = len({split.name for split in splits}) > 1
    cell = (SIDE + MARGIN, SIDE + (1 + MOST_LINES) * LINE + 2 * MARGIN)
    columns = max(1, min(COLUMNS, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), GROUND)
    for number, (split, index, rng) in enumerate(chosen):
        name = f"{split.name} {split.split}" if several else split.split
        corner = (
            MARGIN + number % columns * cell[0],
            MARGIN + number // columns * cell[1],
        )
        _paste(sheet, corner, name, _tile(split, index, rng))
    return sheet


def _choose(
    splits: Sequence[Split], count: int, rng: random.Random
) -> Iterator[tuple[Split, int, random.Random]]:
    """Draw entries; what a split is too small for, larger ones get."""
    shares = [0] * len(splits)
    smallest_first = sorted(range(len(splits)), key=lambda i: len(splits[i]))
    for place, i in enumerate(smallest_first):
        shares[i] = min(len(splits[i]), (count - sum(shares)) // (len(splits) - place))
    for split, share in zip(splits, shares, strict=True):
        for index in sorted(rng.sample(range(len(split)), share)):
            yield split, index, rng


def _tile(split: Split, index: int, rng: random.Random) -> Tile:
    try:
        return draw_tile(split, index, rng)
    # Broken data is what a sheet is drawn to see.
    except Exception as error:
        nothing = Image.new("RGB", (SIDE, SIDE), GROUND)
        return Tile(nothing, in_words(str(error), FAULT), f"number {index}")


def _paste(sheet: Image.Image, corner: tuple[int, int], name: str, tile: Tile) -> None:
    x, y = corner
    middle = (x + (SIDE - tile.picture.width) // 2, y + (SIDE - tile.picture.height) // 2)
    sheet.paste(tile.picture, middle)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(LETTERS)
    label = _label(name, tile.label, font)
    for row, line in enumerate([[(label, PALE)], *_wrap(tile.words, font)]):
        left = float(x)
        for word, colour in line:
            pen.text((left, y + SIDE + MARGIN // 2 + row * LINE), word, colour, font)
            left += font.getlength(f"{word} ")


def _label(split: str, entry: str, font: Any) -> str:
    """Write what is drawn in a tile's width; file names are cut in front, as their ends differ."""
    label = f"{split} {entry}"
    for cut in range(len(entry)):
        if font.getlength(label) <= SIDE:
            break
        label = f"{split} ...{entry[cut:]}"
    return label


def _wrap(words: Sequence[Word], font: Any) -> list[list[Word]]:
    """Break words into lines of a tile's width; the last one ends in dots if more follows."""
    lines: list[list[Word]] = [[]]
    for word in words:
        if lines[-1] and font.getlength(" ".join(w for w, _ in [*lines[-1], word])) > SIDE:
            lines.append([])
        lines[-1].append(word)
    kept = lines[:MOST_LINES]
    if len(lines) > MOST_LINES:
        kept[-1].append(("...", PALE))
    return kept
