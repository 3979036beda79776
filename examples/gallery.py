"""Draw what an adapter answers on pictures that training never saw, hits and misses alike.

    python examples/gallery.py --out docs/seen.png
    python examples/gallery.py --kinds hypernym relation ordinal --out docs/hard.png
    python examples/gallery.py --ask cat.jpg "the cat" --ask desk.jpg "the cup" --out photos.png

Scenes are the first of each test split that have such an expression, not a selection; under each
stands the IoU.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

from PIL import Image, ImageDraw

from bridger import BridgedModel
from bridger.data.scenes import make_scene

CELL, LINE = 256, 16
SPLITS = ("val", "testA", "testB")
KINDS = ("name", "synonym", "hypernym", "colour", "size", "place", "ordinal", "relation")

Cell = tuple[Image.Image, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", default="tiny")
    parser.add_argument("--out", default="seen.png")
    parser.add_argument("--columns", type=int, default=5)
    parser.add_argument("--first", type=int, default=10_000, help="number of the first scene")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="of expressions (default: any)")
    parser.add_argument(
        "--ask", nargs=2, action="append", metavar=("PICTURE", "WORDS"), help="no scenes, but this"
    )
    args = parser.parse_args()

    model = BridgedModel.from_pretrained(args.adapter)
    if args.ask:
        cells = [answer(model, path, words) for path, words in args.ask]
    else:
        cells = [cell for split in SPLITS for cell in scenes(model, split, args)]
    rows = -(-len(cells) // args.columns)
    sheet = Image.new("RGB", (args.columns * CELL, rows * (CELL + LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (seen, said) in enumerate(cells):
        row, column = divmod(index, args.columns)
        corner = (column * CELL, row * (CELL + LINE))
        sheet.paste(seen, corner)
        draw.text((corner[0] + 4, corner[1] + CELL + 2), said, "black")
    sheet.save(args.out)
    print(f"wrote {args.out}")


def answer(model: BridgedModel, path: str, words: str) -> Cell:
    """Ask about a picture of any size; the cell shows it whole."""
    seen = model.predict(path, words).overlay(path, words)
    seen.thumbnail((CELL, CELL))
    cell = Image.new("RGB", (CELL, CELL), "white")
    cell.paste(seen)
    return cell, path.rpartition("/")[2]


def scenes(model: BridgedModel, split: str, args: argparse.Namespace) -> Iterator[Cell]:
    """Ask about a row of scenes."""
    found = 0
    for number in itertools.count(args.first):
        scene = make_scene(split, number)
        asked = [e for e in scene.expressions if not args.kinds or e.kind in args.kinds]
        if not asked:
            continue
        expression = asked[found % len(asked)]
        result = model.predict(scene.image, expression.sentence)
        truth = scene.objects[expression.target].mask
        union = (result.masks[0] | truth).sum()  # 0 where the object is hidden, and none found
        iou = (result.masks[0] & truth).sum() / max(union, 1)
        seen = result.overlay(scene.image, expression.sentence).resize((CELL, CELL))
        yield seen, f"{split}: IoU {iou:.2f}"
        found += 1
        if found == args.columns:
            return


if __name__ == "__main__":
    main()
