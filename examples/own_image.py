"""Segment a picture of your own with the adapter that comes with the package, or with yours.

python examples/own_image.py picture.jpg "the dog on the left" --out seen.png
"""

from __future__ import annotations

import argparse

from PIL import Image

from bridger import BridgedModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("words", nargs="+", help="one or more sentences, each in quotes")
    parser.add_argument("--adapter", default="tiny", help="a folder, or an id on the Hub")
    parser.add_argument("--out", default="seen.png")
    args = parser.parse_args()

    model = BridgedModel.from_pretrained(args.adapter)
    result = model.predict(args.image, args.words)
    for words, score, box in zip(args.words, result.scores, result.boxes, strict=True):
        print(f"{words}: score {score:.2f}, box {[round(float(x)) for x in box]}")
    result.overlay(Image.open(args.image)).save(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
