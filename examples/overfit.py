"""Fit four pictures by heart with the ETRIS recipe for ViT-B/16, on random towers of 224 pixels.

    python examples/overfit.py
    python examples/overfit.py --recipe etris-vit-b16-refcoco-paper    # Bridgers at 1e-3

A model that cannot do this has a fault somewhere between the picture and the loss. The recipe is
changed in its towers, its batch and its length: 100 steps, of which the last 30 are at a tenth of
the rate, as the last 15 of 50 epochs are. Every ten steps each picture's IoU is printed, in
evaluation mode and at the picture's own size; the end is when all are above 0.9, and exit code 1
says that they never were.

Logits have a quarter of the input's resolution, and the reference brings them back to it with the
corners aligned, which moves them by up to three pixels. An answer that equals its target therefore
does not get an IoU of 1, and for most objects of scenes at 224 pixels not even 0.9. So the pictures
are windows into scenes, seen twice as large, around objects whose target gets more than 0.95 (the
line "targets"); thin ones do not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pycocotools import mask as rle
from torch import nn

from bridger import load_towers
from bridger.data import RefCollator, Sample
from bridger.data.masks import Segments
from bridger.data.scenes import make_scene
from bridger.evaluation import SegmentationMetrics
from bridger.model import BridgedModel
from bridger.processing import Processor
from bridger.training import Recipe

GOAL = 0.9
LEAST = 0.95  # of the targets
THRESHOLD = 0.35  # the reference implementation's
TOWERS = "open_clip:ViT-B-16-quickgelu"  # without weights, at its own 224 pixels
NAMING = ("name", "synonym", "hypernym")  # kinds of expressions that stay true in a window

Pixels = npt.NDArray[Any]


def choose(folder: Path, processor: Processor, count: int) -> list[Sample]:
    """Write windows into the first `count` scenes that name an object which can be fitted."""
    side = processor.image_size[0]
    samples: list[Sample] = []
    number = 0
    while len(samples) < count:
        scene = make_scene("train", number, size=2 * side)
        named = [e for e in scene.expressions if e.kind in NAMING]
        if named:
            thing = scene.objects[named[0].target]
            window = around(thing.box, side)
            path = folder / f"{number}.png"
            Image.fromarray(scene.image[window]).save(path)
            sample = make_sample(path, thing.mask[window], named[0].sentence)
            if of_target(sample, processor) > LEAST:
                samples.append(sample)
        number += 1
    return samples


def around(box: tuple[int, int, int, int], side: int) -> tuple[slice, slice]:
    """The window into a picture of twice the side that has a box (x, y, w, h) in its middle."""
    x, y, width, height = box
    left, top = (min(max(c - side // 2, 0), side) for c in (x + width // 2, y + height // 2))
    return slice(top, top + side), slice(left, left + side)


def make_sample(path: Path, mask: Pixels, sentence: str) -> Sample:
    outline = Segments((rle.encode(np.asfortranarray(mask, dtype=np.uint8)),))
    return Sample(
        image_path=path,
        sentences=(sentence,),
        outline=outline,
        ref_id=int(path.stem),
        ann_ids=(0,),
        sent_ids=(0,),
        kinds=("name",),
        size=(mask.shape[0], mask.shape[1]),
        source="scenes",
    )


def of_target(sample: Sample, processor: Processor) -> float:
    """Return the IoU that an answer equal to its target gets."""
    _, placement = processor.image(sample.image_path)
    target = processor.target(sample.mask, placement)[None, None]
    height, width = processor.image_size
    seen = nn.functional.interpolate(target, (height // 4, width // 4), mode="nearest")[0]
    answer = processor.restore(seen, placement)[0] > THRESHOLD
    return SegmentationMetrics().update(answer, sample.mask > 0)


def fit(
    model: BridgedModel, recipe: Recipe, samples: Sequence[Sample], every: int = 10
) -> Iterator[tuple[int, float, list[float]]]:
    """Train on all samples at once; yield (step, loss, each one's IoU) after each `every` steps."""
    rates = recipe.learning_rates(model)
    groups = [
        {"params": part["params"], "lr": rates.get(part["name"], recipe.learning_rate)}
        for part in model.parameter_groups()
    ]
    optimizer = torch.optim.Adam(groups, betas=recipe.betas, eps=recipe.eps)
    steps, schedule = recipe.steps_for(), recipe.scheduler()
    assert schedule is not None, "the ETRIS recipes have one"
    falling = schedule(optimizer, steps)
    batch = RefCollator(model.processor, draw_sentences=False)(samples)
    model.train()
    for step in range(1, steps + 1):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        falling.step()
        optimizer.zero_grad()
        if step % every == 0:
            yield step, loss.item(), judge(model, samples)


def judge(model: BridgedModel, samples: Sequence[Sample]) -> list[float]:
    """Return each sample's IoU in evaluation mode; the model goes back to training."""
    metrics = SegmentationMetrics()
    model.eval()
    for sample in samples:
        answer = model.predict(sample.image_path, sample.sentences[0], threshold=THRESHOLD)
        metrics.update(answer.masks[0], sample.mask > 0)
    model.train()
    return metrics.ious.tolist()


def percent(values: Sequence[float]) -> str:
    return "  ".join(f"{100 * value:4.1f}" for value in values)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="etris-vit-b16")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    recipe = Recipe.preset(
        args.recipe,
        towers=TOWERS,
        batch_size=4,
        steps=args.steps,
        precision="float32",
        seed=args.seed,
    )
    torch.manual_seed(recipe.seed)
    model = recipe.build(*load_towers(recipe.towers))
    with tempfile.TemporaryDirectory() as folder:
        samples = choose(Path(folder), model.processor, recipe.batch_size)
        print("IoU in percent of " + ", ".join(f"{sample.sentences[0]!r}" for sample in samples))
        print(f"targets                {percent([of_target(s, model.processor) for s in samples])}")
        started = time.monotonic()
        for step, loss, scores in fit(model, recipe, samples):
            each = (time.monotonic() - started) / step
            print(
                f"step {step:3}: loss {loss:.4f} {percent(scores)} ({each:.1f} s a step)",
                flush=True,
            )
            if min(scores) > GOAL:
                print(f"every IoU is above {GOAL} after {step} steps")
                return 0
    print(f"some IoU is not above {GOAL} after {args.steps} steps", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
