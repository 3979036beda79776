"""A head of one's own: it counts the things that words name, and is trained on scenes.

    python examples/own_head.py --steps 300

The head is one dataclass of options and one class. With it, `with_head`, training, saving, loading
and `predict` work as with the heads of the library. It sums up a density, a small number in every
cell of the picture's map, so that several things in different places add up.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

import bridger
from bridger.config import Config
from bridger.data.scenes import Scene, make_scene
from bridger.data.sprites import kinds
from bridger.features import BridgedFeatures, EncoderSpec
from bridger.heads import Head, HeadOutput, register_head
from bridger.processing import Placement, Processor
from bridger.texts import Texts


@dataclass(frozen=True)
class CountConfig(Config):
    """Options of `CountHead`: channels of the map that it counts on, pixels per cell of it."""

    width: int = 64
    stride: int = 8


@register_head("count")
class CountHead(Head):
    """Counts what each expression names; labels are numbers (B, N), float."""

    config_class = CountConfig
    config: CountConfig

    def __init__(self, spec: EncoderSpec, config: CountConfig) -> None:
        super().__init__(spec, config)
        width = config.width
        self.maps = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in spec.map_widths)
        self.words = nn.Linear(spec.sentence_width, width)
        self.density = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, 1, 1)
        )
        nn.init.constant_(self.density[-1].bias, -5.0)  # almost nothing in a cell, at first

    def forward(
        self,
        features: BridgedFeatures,
        labels: Tensor | None = None,
        expression_mask: Tensor | None = None,
    ) -> HeadOutput:
        """Count; logits are the counts (B, N)."""
        self.check_features(features)
        size = [side // self.config.stride for side in features.image_size]
        seen = [layer(m) for layer, m in zip(self.maps, features.maps, strict=True)]
        fused = sum(F.interpolate(m, size, mode="bilinear") for m in seen)
        asked = rearrange(self.words(features.sentence), "r c -> r c 1 1")
        density = F.softplus(self.density(F.gelu(fused * (1 + asked))).float())
        counts = density.sum(dim=(1, 2, 3)).reshape(-1, features.num_expressions)
        if labels is None:
            return HeadOutput(counts)
        losses = F.poisson_nll_loss(counts, labels, log_input=False, reduction="none")
        real = torch.ones_like(counts) if expression_mask is None else expression_mask
        return HeadOutput(counts, (losses * real).sum() / real.sum())

    def results(
        self,
        output: HeadOutput,
        processor: Processor,
        placements: Sequence[Placement],
        texts: Texts,
    ) -> list[dict[str, float]]:
        """Return for every picture the count of each expression."""
        return [dict(zip(texts.names, row, strict=True)) for row in output.logits.tolist()]


def questions(scene: Scene, dice: random.Random) -> dict[str, int]:
    """Return two kinds of things in a scene and one that is not in it, with their numbers."""
    names = [thing.kind.name for thing in scene.objects]
    shown = sorted(set(names), key=lambda name: (-names.count(name), dice.random()))[:2]
    absent = dice.choice([kind.name for kind in kinds() if kind.name not in names])
    return {name: names.count(name) for name in dice.sample([*shown, absent], len(shown) + 1)}


def batch_of(
    scenes: Sequence[Scene], processor: Processor, dice: random.Random
) -> dict[str, Tensor]:
    """Return what the model's forward takes; where a scene has one kind, it is asked twice."""
    asked = [list(questions(scene, dice).items()) for scene in scenes]
    asked = [[*pairs, *pairs][:3] for pairs in asked]
    words = processor.text([name for pairs in asked for name, _ in pairs])
    pixels = torch.stack([processor.image(scene.image)[0] for scene in scenes])
    counts = torch.tensor([[float(count) for _, count in pairs] for pairs in asked])
    rows = {key: rearrange(ids, "(b n) l -> b n l", n=3) for key, ids in words.items()}
    return {"pixel_values": pixels, **rows, "labels": counts}


def sheet(scenes: Sequence[Scene], answers: Sequence[dict[str, tuple[float, int]]]) -> Image.Image:
    """Draw the pictures side by side and, under each, words, what was counted, and the truth."""
    side, line = 256, 26
    whole = Image.new("RGB", (side * len(scenes), side + 3 * line + 8), (24, 26, 30))
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(17)
    for column, (scene, found) in enumerate(zip(scenes, answers, strict=True)):
        whole.paste(Image.fromarray(scene.image).resize((side, side)), (column * side, 0))
        for row, (name, (counted, true)) in enumerate(found.items()):
            colour = (139, 195, 74) if round(counted) == true else (255, 92, 57)
            text = f"{name}: {counted:.1f} (true: {true})"
            pen.text((column * side + 10, side + 6 + row * line), text, colour, font)
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", default="my-counter", help="folder for the adapter")
    args = parser.parse_args()
    torch.manual_seed(0)
    dice = random.Random(0)

    vision, text, processor = bridger.load_tiny_clip()
    model = bridger.attach_bridgers(vision, text, stages=2).with_head(CountHead)
    model.print_trainable_parameters()
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=1e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    model.train()
    for step in range(1, args.steps + 1):
        # In every other batch several things of one kind are the rule.
        split = "testA" if step % 2 else "train"
        scenes = [make_scene(split, 16 * step + number) for number in range(16)]
        loss = model(**batch_of(scenes, processor, dice)).loss
        loss.backward()
        optimizer.step()
        falling.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == args.steps:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)

    model.save_pretrained(args.out)
    model = bridger.BridgedModel.from_pretrained(args.out)
    scenes = [make_scene("testA", number) for number in range(5)]  # never trained on
    answers = []
    for scene in scenes:
        true = questions(scene, dice)
        counted = model.predict(scene.image, list(true))
        answers.append({name: (counted[name], true[name]) for name in true})
        print(", ".join(f"{n}: {c:.1f} (true: {t})" for n, (c, t) in answers[-1].items()))
    sheet(scenes, answers).save("own_head.png")
    print(f"saved {args.out}, wrote own_head.png")


if __name__ == "__main__":
    main()
