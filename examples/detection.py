"""Boxes of objects, of classes given by name, and COCO's figures for them.

    python examples/detection.py --out detection

Trains Bridgers and a head on the embedded Tiny CLIP with scenes and their boxes in COCO's format,
judges them by pycocotools on scenes that also show eight other kinds of objects, writes what was
found as COCO's results file, and draws it beside the truth.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bridger.data import open_boxed
from bridger.data.scenes import write_scenes
from bridger.evaluation import evaluate_detection
from bridger.predictions.side_by_side import beside, stacked
from bridger.tasks import get_task
from bridger.training import Recipe, train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("detection"))
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--scenes", type=int, default=1500, help="pictures to train on")
    parser.add_argument("--test", type=int, default=50, help="pictures to judge on")
    args = parser.parse_args()

    scenes = args.out / "scenes"
    write_scenes(scenes, {"train": args.scenes, "test": args.test}, layout="boxed")
    training, test = (open_boxed(scenes, split) for split in ("train", "test"))
    print(f"{len(training.classes)} classes to train on, {len(test.classes)} to judge on")
    recipe = Recipe.preset("scenes-detection", steps=args.steps)
    model = train(recipe, training, args.out / "adapter")

    judged = evaluate_detection(model, test)
    for metric, value in judged.metrics().items():
        print(f"{metric}: {100 * value:.1f} %")
    results = []
    for index in range(3):
        # COCO's figures want every box with its score, each class for itself.
        found = model.predict(test[index].picture, test.classes, threshold=0.0, agnostic=False)
        results += found.to_coco(test.image_ids[index], test.category_ids)
    (args.out / "results.json").write_text(json.dumps(results))
    task = get_task("detection")
    rows = [beside(task.draw(model, test, "head", index)) for index in range(3)]
    stacked(rows).save(args.out / "detection.png")
    print(f"wrote {args.out / 'detection.png'}: answers left, truth right")


if __name__ == "__main__":
    main()
