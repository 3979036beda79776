"""Where Bridgers look: each word's attention over the picture, drawn and counted.

    python examples/attention.py --out docs/attention.png
    python examples/attention.py --adapter my-adapter --scenes 200
    python examples/attention.py --ask street.jpg "the car on the left"

Draws the first scenes of a test split, which training never saw: the mask, and beside it the heat
of every token at every stage of Bridgers. Then counts over many scenes what the object's name looks
at, and what looks at it: the object that the sentence means, the other objects, or the ground.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bridger import BridgedModel
from bridger.data.scenes import Scene, make_scene
from bridger.pictures import ImageLike
from bridger.predictions.attention import Attention, Direction
from bridger.predictions.side_by_side import beside, stacked

SPLIT = "testA"
PLACES = ("the object", "other objects", "the ground")
DIRECTIONS: dict[Direction, str] = {
    "text_to_picture": "the name looks at",
    "picture_to_text": "looks at the name",
}
GROUND, GAP = (24, 26, 30), 12
SIDE = 80  # of a sheet's pictures, in pixels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--adapter", default="tiny", help="a folder, or an id on the Hub")
    parser.add_argument("--draw", type=int, default=3, help="scenes to draw")
    parser.add_argument("--scenes", type=int, default=100, help="scenes to count over")
    parser.add_argument("--first", type=int, default=10_000, help="number of the first scene")
    parser.add_argument(
        "--ask", nargs=2, action="append", metavar=("PICTURE", "WORDS"), help="no scenes, but this"
    )
    parser.add_argument("--out", type=Path, default=Path("attention.png"))
    args = parser.parse_args()

    model = BridgedModel.from_pretrained(args.adapter)
    if args.ask:
        asked: list[tuple[ImageLike, str]] = [(path, words) for path, words in args.ask]
    else:
        drawn = (make_scene(SPLIT, args.first + number) for number in range(args.draw))
        asked = [(scene.image, longest(scene)) for scene in drawn]
    rows = [draw(model, image, words) for image, words in asked]
    width = max(row.width for row in rows)
    sheet = stacked([ImageOps.expand(r, (0, 0, width - r.width, GAP), GROUND) for r in rows])
    sheet.save(args.out, optimize=True)
    print(f"wrote {args.out}")
    if not args.ask:
        count(model, (make_scene(SPLIT, args.first + number) for number in range(args.scenes)))


def longest(scene: Scene) -> str:
    """Return the expression of most words: it has most to draw."""
    return max((e.sentence for e in scene.expressions), key=lambda said: len(said.split()))


def draw(model: BridgedModel, image: ImageLike, words: str) -> Image.Image:
    """Put the mask beside the heat of all tokens at all stages."""
    answer = model.predict(image, words, return_attention=True)
    looks = answer.attention_sheet(image, least_side=SIDE)
    found = answer.overlay(image, words, least_side=4 * SIDE, scores=False)
    found.thumbnail((4 * SIDE, 4 * SIDE))
    return beside([ImageOps.expand(found, (0, 0, 0, looks.height - found.height), GROUND), looks])


def count(model: BridgedModel, scenes: Iterator[Scene]) -> None:
    """Print how much objects' names have to do with each kind of place, and the spread.

    Every expression counts once that says the name of the object that it means.
    """
    found: dict[tuple[Direction, int], list[list[float]]] = {}
    for scene in scenes:
        said = [e.sentence for e in scene.expressions]
        answer = model.predict(scene.image, said, return_attention=True)
        anything = np.any([one.mask for one in scene.objects], axis=0)
        for expression, attention in zip(scene.expressions, answer.attention, strict=True):
            meant = scene.objects[expression.target]
            places = (meant.mask, anything & ~meant.mask, ~anything)
            name = tokens_of(attention, meant.kind.name)
            if name is None or not all(place.any() for place in places):
                continue
            for direction in DIRECTIONS:
                for stage in attention.stages_with(direction):
                    heat = attention.heat(name, stage, direction)
                    means = [float(heat[place].mean()) for place in places]
                    found.setdefault((direction, stage), []).append(means)
    print(f"{'times even attention':<28}" + "".join(f"{place:>16}" for place in PLACES))
    for (direction, stage), rows in sorted(
        found.items(), key=lambda one: (list(DIRECTIONS).index(one[0][0]), one[0][1])
    ):
        means, spread = np.mean(rows, axis=0), np.std(rows, axis=0)
        cells = [f"{m:.2f} \u00b1 {s:.2f}" for m, s in zip(means, spread, strict=True)]
        print(f"{DIRECTIONS[direction]}, stage {stage:<3}" + "".join(f"{c:>16}" for c in cells))
    print(f"mean and spread of {max(map(len, found.values()), default=0)} expressions")


def tokens_of(attention: Attention, name: str) -> str | None:
    """Return the name, if tokens of the sentence write it."""
    try:
        attention.find(name)
    except ValueError:  # the sentence says it otherwise
        return None
    return name


if __name__ == "__main__":
    main()
