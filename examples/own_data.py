"""From a folder of one's own pictures, sentences and masks to an adapter that answers.

    python examples/own_data.py --out own-data                     # makes a folder to try
    python examples/own_data.py --data my-folder --towers open_clip:ViT-B-16-quickgelu:openai@416

Writes pictures and the two files train.jsonl and val.jsonl as one would for data of one's own,
looks them through, trains Bridgers and a head on them, judges the result, and draws what it
answers beside the truth. With --data it does the same with a folder that is there; --towers names
real ones, which are downloaded.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from bridger.data import open_split
from bridger.data.check import check_data
from bridger.data.scenes import make_scene
from bridger.data.sheet import contact_sheet
from bridger.evaluation import evaluate
from bridger.predictions.side_by_side import beside, stacked
from bridger.tasks import get_task
from bridger.training import Recipe, train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder of your own, in place of scenes")
    parser.add_argument("--towers", default="tiny", help="see bridger.load_towers")
    parser.add_argument("--out", type=Path, default=Path("own-data"))
    parser.add_argument("--pictures", type=int, default=400, help="that are made to train on")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    folder = args.data or args.out / "data"
    if args.data is None:
        write_folder(folder, "train", args.pictures)
        write_folder(folder, "val", max(4, args.pictures // 10))
    report = check_data(folder)
    for finding in report.problems:
        print(f"wrong: {finding.what}: {finding.count}, such as {finding.examples[0]}")
    for counts in report.splits:
        print(f"{counts.split}: {counts.refs} objects in {counts.pictures} pictures")
    contact_sheet(report.opened, count=8).save(args.out / "sheet.png")

    recipe = Recipe.preset("quickstart", towers=args.towers, steps=args.steps)
    training, validation = (open_split(folder, split) for split in ("train", "val"))
    model = train(recipe, training, args.out / "adapter", validation=validation)
    for metric, value in evaluate(model, validation).metrics().items():
        print(f"{metric}: {100 * value:.1f} %")

    task = get_task("referring_segmentation")
    rows = [beside(task.draw(model, validation, "head", index)) for index in range(4)]
    stacked(rows).save(args.out / "seen.png")
    print(f"wrote {args.out}: data, sheet.png, adapter, and seen.png (answers left, truth right)")


def write_folder(folder: Path, split: str, count: int) -> None:
    """Write pictures, masks, and a line for every object that is meant."""
    for name in ("pictures", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        scene, picture = make_scene(split, number), f"pictures/{split}-{number:04d}.jpg"
        Image.fromarray(scene.image).save(folder / picture, quality=95)
        for target in sorted({said.target for said in scene.expressions}):
            mask = f"masks/{split}-{number:04d}-{target}.png"
            Image.fromarray(np.uint8(255) * scene.objects[target].mask).save(folder / mask)
            said = [said.sentence for said in scene.expressions if said.target == target]
            lines.append(json.dumps({"image": picture, "sentences": said, "mask": mask}))
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
