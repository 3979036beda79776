"""LoRA in both towers and Bridgers between them: trained, saved and loaded as one adapter, merged.

    python examples/lora.py --steps 300

peft puts its layers into the towers, attach_bridgers takes the towers as they are, and what is
saved is one folder with both. Merged into the towers, LoRA costs nothing any more.
"""

from __future__ import annotations

import argparse
import statistics
import time

import peft
import torch

import bridger
from bridger import BridgedModel, BridgerConfig, attach_bridgers
from bridger.data.expressions import Expression
from bridger.data.scenes import Scene, make_scene
from bridger.heads import ReferringSegmentationHead
from bridger.predictions import Prediction
from bridger.predictions.side_by_side import beside

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--out", default="with-lora", help="folder for the adapter")
    args = parser.parse_args()
    torch.manual_seed(0)

    # Real towers: bridger.load_towers("open_clip:ViT-B-16-quickgelu:openai@416") and their layers.
    vision, clip, processor = bridger.load_towers("tiny")  # clip holds the vision tower, too
    layers = r"visual\.layer\d.*\.conv2|transformer\..*\.(c_fc|c_proj)"
    peft.get_peft_model(clip, peft.LoraConfig(r=args.rank, target_modules=layers))
    bridgers = BridgerConfig.preset("paper", pre_norm=True, dropout=0.0)
    head = {"width": 64, "num_layers": 2, "num_heads": 4, "dropout": 0.0}
    bridged = attach_bridgers(vision, clip, stages=3, config=bridgers)
    model = bridged.with_head(ReferringSegmentationHead, **head)
    model.print_trainable_parameters()

    groups = model.parameter_groups()  # "bridgers", "peft" and "head": each may have its own rate
    rates = {"bridgers": 5e-4, "peft": 1e-3, "head": 2e-3}
    optimizer = torch.optim.AdamW(groups)
    most = [rates[group["name"]] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, most, total_steps=args.steps + 1)
    model.train()
    for step in range(args.steps):
        scenes = [make_scene("train", step * BATCH + number) for number in range(BATCH)]
        asked = [(scene, said) for scene in scenes for said in two_of(scene)]
        pixels, _ = processor.images([scene.image for scene in scenes])
        words = processor.text([said.sentence for _, said in asked])
        words = {name: ids.unflatten(0, (BATCH, 2)) for name, ids in words.items()}
        masks = [torch.from_numpy(scene.objects[said.target].mask) for scene, said in asked]
        labels = torch.stack(masks).float().unflatten(0, (BATCH, 2))
        loss = model(pixels, **words, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.trainable_parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    model.save_pretrained(args.out)
    model.detach()

    model = BridgedModel.from_pretrained(args.out)  # on plain towers: it brings its LoRA along
    scenes = [make_scene("val", number) for number in range(6)]
    answers(model, scenes)  # the first calls are slower
    before, seconds = answers(model, scenes)
    model.merge_peft()
    merged, faster = answers(model, scenes)
    difference = max(
        abs(b.probabilities - m.probabilities).max() for b, m in zip(before, merged, strict=True)
    )
    print(f"a picture takes {1000 * seconds:.0f} ms with LoRA beside, {1000 * faster:.0f} merged")
    print(f"largest difference of a pixel's probability: {difference:.1e}")
    shown = [
        answer.overlay(scene.image, [*answer.names], least_side=256)
        for answer, scene in zip(merged, scenes, strict=True)
    ]
    beside(shown).save("lora.png")
    print(f"saved {args.out}, wrote lora.png")


def two_of(scene: Scene) -> tuple[Expression, Expression]:
    """Return two expressions, of different objects where words mean several."""
    first, *others = scene.expressions
    return first, next((said for said in others if said.target != first.target), first)


def answers(model: BridgedModel, scenes: list[Scene]) -> tuple[list[Prediction], float]:
    """Ask about each scene; return the answers, and the seconds of one in the middle."""
    found, seconds = [], []
    for scene in scenes:
        started = time.perf_counter()
        found.append(model.predict(scene.image, [scene.expressions[0].sentence]))
        seconds.append(time.perf_counter() - started)
    return found, statistics.median(seconds)


if __name__ == "__main__":
    main()
