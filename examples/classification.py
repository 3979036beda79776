"""Classes of pictures: CLIP's own answers to begin with, then better ones from a few pictures.

    python examples/classification.py --out classification --shots 4

A fresh head on fresh Bridgers gives exactly the zero-shot scores of the embedded Tiny CLIP. It is
then trained on a few pictures of each class, and asked again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import bridger
from bridger.data import open_classified
from bridger.data.scenes import write_scenes
from bridger.evaluation import evaluate_classification
from bridger.heads import ClassificationHead
from bridger.predictions.side_by_side import beside, stacked
from bridger.training import Recipe, train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("classification"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--shots", type=int, default=4, help="pictures of each class to train on")
    parser.add_argument("--test", type=int, default=120, help="pictures to judge on")
    args = parser.parse_args()

    scenes = args.out / "scenes"
    write_scenes(scenes, {"train": 60 * args.shots, "test": args.test}, layout="classified")
    training, test = (open_classified(scenes, split) for split in ("train", "test"))
    vision, text, _ = bridger.load_tiny_clip()
    fresh = bridger.attach_bridgers(vision, text, stages=3).with_head(ClassificationHead)
    print(f"zero-shot: {100 * evaluate_classification(fresh, test).metrics()['top1']:.1f} %")

    recipe = Recipe.preset("scenes-classification", steps=args.steps, shots=args.shots)
    model = train(recipe, training, args.out / "adapter")
    for metric, value in evaluate_classification(model, test).metrics().items():
        print(f"{metric}: {100 * value:.1f} %")
    columns = []
    for picture in (test[index].picture for index in range(4)):
        answers = (each.predict(picture, test.classes) for each in (fresh, model))
        columns.append(stacked([answer.overlay(picture) for answer in answers]))
    beside(columns).save(args.out / "classification.png")
    print(f"wrote {args.out / 'classification.png'}: zero-shot above, trained below")


if __name__ == "__main__":
    main()
