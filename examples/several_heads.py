"""Four heads on one bridged encoder, trained together: masks, label maps, boxes and classes.

    python examples/several_heads.py --steps 300    # a quarter of an hour on two cores

Each step runs the encoder twice: with expressions, for the masks, and with class names, which three
heads share. The losses are added up; a head whose loss gets the weight 0 rests.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

import bridger
from bridger.data.class_questions import ClassQuestions
from bridger.data.scenes import Scene, make_scene
from bridger.data.sprites import kinds
from bridger.heads import get_head
from bridger.labels import BACKGROUND
from bridger.predictions.side_by_side import beside
from bridger.processing import Processor

NAMES = [kind.name for kind in kinds()]
DENSE = {"width": 96, "grid_stride": 8}  # small pictures show small objects
HEADS = {
    "masks": (get_head("referring_segmentation"), DENSE),
    "semantic": (get_head("semantic_segmentation"), {**DENSE, "classes": NAMES}),
    "boxes": (get_head("detection"), {"width": 96, "classes": NAMES}),
    "classes": (get_head("classification"), {"multi_label": True, "classes": NAMES}),
}


def batch_of(
    scenes: Sequence[Scene], numbers: Sequence[int], processor: Processor, ask: ClassQuestions
) -> dict[str, Any]:
    """Return what the model's forward takes: pictures, two texts, and labels for four heads."""
    dice = random.Random(numbers[0])
    expressions = [dice.choice(scene.expressions) for scene in scenes]
    masks = [s.objects[e.target].mask for s, e in zip(scenes, expressions, strict=True)]
    shown = [{thing.kind.index for thing in scene.objects} for scene in scenes]
    asked, class_names = ask.ask(numbers, shown)
    maps = torch.full((len(scenes), *processor.image_size), BACKGROUND)
    boxes = []
    for scene, row, names in zip(scenes, maps, asked, strict=True):
        places = [names.index(thing.kind.index) for thing in scene.objects]
        corners = torch.tensor([thing.box for thing in scene.objects]).float()
        corners[:, 2:] += corners[:, :2]
        boxes.append({"boxes": corners, "labels": torch.tensor(places)})
        for thing, place in zip(scene.objects, places, strict=True):
            row[torch.from_numpy(thing.mask)] = place
    return {
        "pixel_values": torch.stack([processor.image(scene.image)[0] for scene in scenes]),
        "texts": {
            "expressions": processor.text([e.sentence for e in expressions]),
            "classes": class_names,
        },
        "labels": {
            "masks": torch.stack([torch.from_numpy(mask) for mask in masks]),
            "semantic": maps,
            "boxes": boxes,
            "classes": torch.tensor(
                [[k in own for k in names] for own, names in zip(shown, asked, strict=True)]
            ).float(),
        },
    }


def titled(panel: Image.Image, title: str) -> Image.Image:
    """Put a title above a picture."""
    whole = ImageOps.expand(panel, (0, 40, 0, 0))
    ImageDraw.Draw(whole).text((12, 6), title, "white", ImageFont.load_default(22))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", default="my-heads", help="folder for the adapter")
    args = parser.parse_args()
    torch.manual_seed(0)

    vision, text, processor = bridger.load_tiny_clip()
    bridged = bridger.attach_bridgers(vision, text, stages=3)
    model = bridged.with_heads(**HEADS, loss_weights={"classes": 0.5})
    model.print_trainable_parameters()
    ask = ClassQuestions(processor, NAMES, "separate", ("{}",), most=5, seed=0)
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=1e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    model.train()
    for step in range(1, args.steps + 1):
        numbers = range(6 * step, 6 * step + 6)
        scenes = [make_scene("train", number) for number in numbers]
        out = model(**batch_of(scenes, numbers, processor, ask))
        out.loss.backward()
        optimizer.step()
        falling.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == args.steps:
            losses = ", ".join(f"{name} {head.loss.item():.3f}" for name, head in out.heads.items())
            print(f"step {step}: loss {out.loss.item():.3f} ({losses})", flush=True)

    model.save_pretrained(args.out)
    model = bridger.BridgedModel.from_pretrained(args.out)
    scene = make_scene("val", 6)  # never trained on
    sentences = list({e.target: e.sentence for e in scene.expressions}.values())  # one an object
    shown = sorted({thing.kind.name for thing in scene.objects})
    names = [*shown, *[name for name in NAMES if name not in shown][:3]]
    panels = {
        "masks": model.predict(scene.image, sentences, head="masks").overlay(scene.image, sentences)
    }
    for head in ("semantic", "boxes", "classes"):
        panels[head] = model.predict(scene.image, names, head=head).overlay(scene.image)
    beside([titled(panel, name) for name, panel in panels.items()]).save("several_heads.png")
    print(f"saved {args.out}, wrote several_heads.png; the scene shows {', '.join(shown)}")


if __name__ == "__main__":
    main()
