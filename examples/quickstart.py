"""Tune a frozen pair of towers for referring segmentation with a training loop of one's own.

    python examples/quickstart.py --steps 200

Needs no download: towers, data and words come with the package.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile

import torch

import bridger
from bridger.data import RefCOCO, RefCollator
from bridger.data.scenes import make_scene, write_scenes
from bridger.heads import ReferringSegmentationHead
from bridger.predictions.side_by_side import beside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--out", default="my-adapter")
    args = parser.parse_args()
    torch.manual_seed(0)

    vision, text, processor = bridger.load_tiny_clip()
    bridgers = bridger.BridgerConfig.preset("paper", pre_norm=True, dropout=0.0)
    bridged = bridger.attach_bridgers(vision, text, stages=3, config=bridgers)
    model = bridged.with_head(ReferringSegmentationHead, width=64, num_heads=4, dropout=0.0)
    model.print_trainable_parameters()

    folder = tempfile.TemporaryDirectory()
    write_scenes(folder.name, {"train": args.scenes}, size=128, seed=0)
    data, collate = RefCOCO(folder.name, "train"), RefCollator(processor)
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True, collate_fn=collate)
    optimizer = torch.optim.AdamW(model.trainable_parameters())
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=args.steps + 1)
    model.train()
    batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch
    for step, batch in enumerate(itertools.islice(batches, args.steps), 1):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.trainable_parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == args.steps:
            print(f"step {step}: loss {loss.item():.4f}")
    model.save_pretrained(args.out)

    model = bridger.BridgedModel.from_pretrained(args.out)  # as anybody would load it
    seen = []
    for scene in (make_scene("val", number) for number in range(4)):  # never trained on
        said = scene.expressions[0].sentence
        seen.append(model.predict(scene.image, said).overlay(scene.image, said))
    beside(seen).save("quickstart.png")
    print(f"saved {args.out}, wrote quickstart.png")


if __name__ == "__main__":
    main()
