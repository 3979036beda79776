"""Heads that were trained one by one, put together in one adapter.

    bridger data scenes boxed --task detection
    bridger train --head detection --data boxed --out boxes --set bridgers=null
    bridger data scenes kinds --task classification
    bridger train --head classification --data kinds --out classes --set bridgers=null
    python examples/combine_heads.py boxes classes --out all --half

The heads must have been trained on the same features: without Bridgers, as here, or with the very
same ones. Each gets its kind as its name, and answers as it did alone, which is checked. So was the
adapter made that comes with the package as "tiny-heads".
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from bridger import BridgedModel
from bridger.data.scene_labels import make_labelled_scene, scene_classes

SCENES = [make_labelled_scene("val", number, scene_classes()) for number in range(3)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", nargs="+", help="adapters with one head each")
    parser.add_argument("--out", type=Path, required=True, help="folder for all of them")
    parser.add_argument("--half", action="store_true", help="write 16-bit numbers: half the size")
    args = parser.parse_args()

    model = BridgedModel.from_pretrained(args.folders[0], heads=[])  # towers and Bridgers alone
    before = {}
    for folder in args.folders:
        alone = BridgedModel.from_pretrained(folder)
        kind = alone.heads[alone.head_name()].name  # as registered: "detection", ...
        before[kind] = answers(alone, alone.head_name())
        model.load_head(folder, kind)
    for kind, answered in before.items():
        if answers(model, kind) != answered:
            raise SystemExit(f"{kind} answers otherwise than alone: its Bridgers are others")
    model.save_pretrained(args.out, dtype=torch.float16 if args.half else None)

    saved = BridgedModel.from_pretrained(args.out)
    size = (args.out / "bridger.safetensors").stat().st_size
    print(f"wrote {args.out}: {len(saved.heads)} heads, {size / 1e6:.1f} MB")
    for kind, answered in before.items():
        found, alone = (sum(map(len, each)) for each in (answers(saved, kind), answered))
        print(f"{kind}: {found} things found in {len(SCENES)} scenes, {alone} when it was alone")


def answers(model: BridgedModel, head: str) -> list[list[dict[str, Any]]]:
    """Return what a head finds in a few scenes, of the classes that it was trained on."""
    return [model.predict(scene.image, head=head).found() for scene in SCENES]


if __name__ == "__main__":
    main()
