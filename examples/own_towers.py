"""A vision tower of one's own, in three ways: found, described, or as a registered family.

    python examples/own_towers.py                    # blocks and maps are read off a forward
    python examples/own_towers.py --way described    # one says what should not be guessed
    python examples/own_towers.py --way registered --text bert

The tower is a plain CNN that no library knows. The text tower is the embedded one, or with
`--text bert` a small BERT of transformers. Their weights are random where they are not embedded, so
what is shown is that Bridgers and a head attach, learn a few scenes by heart, are saved, and come
back; towers with weights take the same lines.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import bridger
from bridger import BridgedModel, Processor, attach_bridgers, generic_vision
from bridger.data.scenes import make_scene
from bridger.heads import ReferringSegmentationHead
from bridger.predictions.side_by_side import beside
from bridger.towers import Block, MapVisionTower, VisionTower

WIDTHS = (48, 96, 192)


class Stage(nn.Module):
    """Half the size, more channels."""

    def __init__(self, given: int, width: int) -> None:
        super().__init__()
        self.smaller = nn.Conv2d(given, width, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(8, width)
        self.mix = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.smaller(x)))
        return x + self.mix(x)


class PlainCNN(nn.Module):
    """An image encoder: pictures (B, 3, H, W) to one feature each (B, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.stages = nn.Sequential(*map(Stage, (24, *WIDTHS[:-1]), WIDTHS))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.stages(self.stem(pictures)).mean(dim=(2, 3))


class PlainCNNTower(MapVisionTower):
    """What `--way registered` says of it: a family, which is asked before the library's own."""

    library, family = "mine", "PlainCNN"

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        return isinstance(module, PlainCNN)

    def __init__(self, given: PlainCNN) -> None:
        self.module = given
        self.image_size, self.joint_width, self.pooled_width = None, None, WIDTHS[-1]
        self.blocks = tuple(
            Block(f"stages.{i}", stage, width=WIDTHS[i], stride=4 * 2**i)
            for i, stage in enumerate(given.stages)
        )

    def position_names(self) -> tuple[str, ...]:
        return ()

    def map_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        return image_size[0] // 16, image_size[1] // 16

    def run(self, module: nn.Module, pixel_values: Tensor) -> Tensor:
        return module(pixel_values)

    def pooled(self, result: Tensor) -> Tensor:
        return result


def towers(way: str, text: str) -> tuple[nn.Module | VisionTower, nn.Module]:
    """Build the same two towers each time; yours would load their weights here."""
    torch.manual_seed(0)
    vision, words = PlainCNN(), bridger.load_tiny_clip()[1]
    if text == "bert":
        sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
        words = BertModel(BertConfig(vocab_size=896, num_hidden_layers=4, **sizes))
    if way == "described":
        return generic_vision(vision, blocks="stages", layout="b c h w"), words
    return vision, words


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--way", choices=("found", "described", "registered"), default="found")
    parser.add_argument("--text", choices=("embedded", "bert"), default="embedded")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--out", default="own-towers", help="folder for the adapter")
    args = parser.parse_args()
    if args.way == "registered":
        bridger.register_tower("vision")(PlainCNNTower)

    vision, text = towers(args.way, args.text)
    bridged = attach_bridgers(vision, text, stages=3)
    model = bridged.with_head(ReferringSegmentationHead, width=64, num_heads=4)
    tokenizer = bridger.load_tiny_clip()[2].words  # any tokenizer of transformers
    model.processor = Processor(128, (0.5,) * 3, (0.25,) * 3, tokenizer, max_length=24)
    print(model.summary((128, 128)))

    scenes = [make_scene("train", number) for number in range(6)]
    asked = [scene.expressions[0] for scene in scenes]
    pixels, _ = model.processor.images([scene.image for scene in scenes])
    words = model.processor.text([said.sentence for said in asked])
    truth = [s.objects[a.target].mask for s, a in zip(scenes, asked, strict=True)]
    masks = torch.stack([torch.from_numpy(mask) for mask in truth]).float()
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=1e-3)
    model.train()
    for step in range(1, args.steps + 1):
        loss = model(pixels, **words, labels=masks).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == args.steps:
            print(f"step {step}: loss {loss.item():.4f}")

    model.save_pretrained(args.out)
    model.detach()
    model = BridgedModel.from_pretrained(args.out, *towers("found", args.text))
    print(
        f"saved {args.out} and loaded it: the vision tower is {type(model.encoder.vision).__name__}"
    )
    seen = []
    for scene, said, mask in zip(scenes, asked, truth, strict=True):
        found = model.predict(scene.image, said.sentence)
        union = (found.masks[0] | mask).sum()
        print(f"IoU {(found.masks[0] & mask).sum() / union:.2f}: {said.sentence}")
        seen.append(found.overlay(scene.image, said.sentence, least_side=256))
    beside(seen).save("own_towers.png")
    print("wrote own_towers.png")


if __name__ == "__main__":
    main()
