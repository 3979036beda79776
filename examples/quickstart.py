"""Tune a frozen pair of towers for referring segmentation with a training loop of one's own.

    python examples/quickstart.py --steps 200

Needs no download: towers, data and words come with the package.
"""

from __future__ import annotations

import argparse
import tempfile

import torch

import bridger
from bridger.data import RefCOCO, RefCollator
from bridger.data.scenes import write_scenes
from bridger.heads import ReferringSegmentationHead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--out", default="my-adapter")
    args = parser.parse_args()
    torch.manual_seed(0)

    vision, text, processor = bridger.load_tiny_clip()
    bridged = bridger.attach_bridgers(vision, text, stages=3)
    model = bridged.with_head(ReferringSegmentationHead)
    model.print_trainable_parameters()

    folder = tempfile.TemporaryDirectory()
    write_scenes(folder.name, {"train": args.scenes}, size=128, seed=0)
    data, collate = RefCOCO(folder.name, "train"), RefCollator(processor)
    loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True, collate_fn=collate)
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=1e-3)
    model.train()
    step = 0
    while step < args.steps:
        for batch in loader:
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % 20 == 0 or step == args.steps:
                print(f"step {step}: loss {loss.item():.4f}")
            if step == args.steps:
                break
    model.save_pretrained(args.out)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
