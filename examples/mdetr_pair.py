"""MDETR's two encoders, which share no space: torchvision's ResNet-101 and RoBERTa.

    python examples/mdetr_pair.py                              # random weights, a few scenes
    python examples/mdetr_pair.py --pretrained --steps 300     # downloads both

Both stay frozen. Bridgers sit behind three stages of the net and three layers of the text encoder,
and a head finds one box for each phrase. It learns a few scenes by heart, is asked about the same
ones, and draws what it finds: that shows that all parts work together on a pair that nothing ever
aligned, and nothing about other pictures.
"""

from __future__ import annotations

import argparse

import torch
import torchvision
from PIL import Image
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaModel

import bridger
from bridger.data.expressions import Expression
from bridger.data.scenes import Scene, make_scene
from bridger.heads import ComprehensionHead

STAGES = [("layer2", 3), ("layer3", 7), ("layer4", 11)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PHRASES = 3  # asked about every scene, each about another object


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pretrained", action="store_true", help="download both encoders")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--out", default="mdetr.png", help="where the picture goes")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.pretrained:
        vision = torchvision.models.resnet101(weights="IMAGENET1K_V2")
        text = AutoModel.from_pretrained("roberta-base")
        tokenizer = AutoTokenizer.from_pretrained("roberta-base")
    else:
        vision = torchvision.models.resnet101()
        text = RobertaModel(RobertaConfig(max_position_embeddings=514, type_vocab_size=1))
        tokenizer = bridger.load_tiny_clip()[2].words
    model = bridger.attach_bridgers(vision, text, STAGES).with_head(ComprehensionHead, width=128)
    model.processor = bridger.Processor(args.size, MEAN, STD, tokenizer, max_length=20)
    print(model.summary((args.size, args.size)))

    scenes = [make_scene("train", number, size=args.size) for number in range(10 * args.scenes)]
    scenes = [scene for scene in scenes if len(asked(scene)) == PHRASES][: args.scenes]
    learn(model, scenes, args.steps)

    found = [
        model.predict(scene.image, [said.sentence for said in asked(scene)]) for scene in scenes
    ]
    sheet = Image.new("RGB", (512 * len(scenes), 512))
    for number, (scene, boxes) in enumerate(zip(scenes, found, strict=True)):
        sheet.paste(boxes.overlay(scene.image), (512 * number, 0))
        for one, true in zip(boxes.found(), targets(scene)["boxes"], strict=True):
            overlap = torchvision.ops.box_iou(torch.tensor([one["box"]]), true[None]).item()
            print(f"{one['words']}: score {one['score']:.2f}, IoU with the object {overlap:.2f}")
    sheet.save(args.out)
    print(f"wrote {args.out}")


def learn(model: bridger.BridgedModel, scenes: list[Scene], steps: int) -> None:
    """Show all scenes and phrases in every step."""
    pixels, _ = model.processor.images([scene.image for scene in scenes])
    words = model.processor.text([said.sentence for scene in scenes for said in asked(scene)])
    given = {name: t.unflatten(0, (len(scenes), PHRASES)) for name, t in words.items()}
    labels = [targets(scene) for scene in scenes]
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps + 1)
    model.train()
    for step in range(steps):
        loss = model(pixels, **given, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.trainable_parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step + 1}: loss {loss.item():.4f}")
    model.eval()


def asked(scene: Scene) -> list[Expression]:
    """The first phrase of each of some objects."""
    first = {said.target: said for said in reversed(scene.expressions)}
    return [*first.values()][:PHRASES]


def targets(scene: Scene) -> dict[str, torch.Tensor]:
    """Boxes as x0 y0 x1 y1: the scenes are as large as the input."""
    boxes = [scene.objects[said.target].box for said in asked(scene)]
    corners = [[x, y, x + width, y + height] for x, y, width, height in boxes]
    return {"boxes": torch.tensor(corners).float(), "labels": torch.arange(PHRASES)}


if __name__ == "__main__":
    main()
