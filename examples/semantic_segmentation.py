"""A class for every pixel, of classes given by name, some of which no label map in training had.

    python examples/semantic_segmentation.py --out semantic

Trains Bridgers and a head on the embedded Tiny CLIP with scenes and their label maps, judges them
on scenes that also show eight other kinds of objects, and draws answers beside the truth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bridger.data import open_segmented
from bridger.data.scenes import write_scenes
from bridger.evaluation import evaluate_semantic
from bridger.predictions.side_by_side import beside, stacked
from bridger.tasks import get_task
from bridger.training import Recipe, train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("semantic"))
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--scenes", type=int, default=1500, help="pictures to train on")
    parser.add_argument("--test", type=int, default=50, help="pictures to judge on")
    args = parser.parse_args()

    scenes = args.out / "scenes"
    write_scenes(scenes, {"train": args.scenes, "test": args.test}, layout="segmented")
    training, test = (open_segmented(scenes, split) for split in ("train", "test"))
    print(f"{len(training.classes)} classes to train on, {len(test.classes)} to judge on")
    recipe = Recipe.preset("scenes-semantic", steps=args.steps)
    model = train(recipe, training, args.out / "adapter")

    judged = evaluate_semantic(model, test)
    for metric, value in judged.metrics().items():
        print(f"{metric}: {100 * value:.1f} %")
    # Any names may be asked, synonyms among them: what is said is the first one.
    asked = [("rabbit", "bunny"), "banana", "umbrella"]
    print(model.predict(test[0].picture, asked).found())
    task = get_task("semantic_segmentation")
    rows = [beside(task.draw(model, test, "head", index)) for index in range(3)]
    stacked(rows).save(args.out / "semantic.png")
    print(f"wrote {args.out / 'semantic.png'}: answers left, truth right")


if __name__ == "__main__":
    main()
