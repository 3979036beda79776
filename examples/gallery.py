"""Draw what an adapter answers on scenes that training never saw, hits and misses alike.

    python examples/gallery.py --out docs/seen.png

The scenes are the first of each test split, not a selection; under each stands the IoU.
"""

from __future__ import annotations

import argparse

from PIL import Image, ImageDraw

import bridger
from bridger.data.scenes import make_scene
from bridger.tiny_clip import TINY_ADAPTER

CELL, LINE = 256, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", default=TINY_ADAPTER)
    parser.add_argument("--out", default="seen.png")
    parser.add_argument("--columns", type=int, default=5)
    parser.add_argument("--first", type=int, default=10_000, help="number of the first scene")
    args = parser.parse_args()

    vision, text, _ = bridger.load_tiny_clip()
    model = bridger.BridgedModel.from_pretrained(args.adapter, vision, text)
    splits = ("val", "testA", "testB")
    sheet = Image.new("RGB", (args.columns * CELL, len(splits) * (CELL + LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, split in enumerate(splits):
        for column in range(args.columns):
            scene = make_scene(split, args.first + column)
            asked = scene.expressions[column % len(scene.expressions)]
            result = model.predict(scene.image, asked.sentence)
            truth = scene.objects[asked.target].mask
            iou = (result.masks[0] & truth).sum() / (result.masks[0] | truth).sum()
            seen = result.overlay(scene.image, asked.sentence).resize((CELL, CELL))
            corner = (column * CELL, row * (CELL + LINE))
            sheet.paste(seen, corner)
            draw.text((corner[0] + 4, corner[1] + CELL + 2), f"{split}: IoU {iou:.2f}", "black")
    sheet.save(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
