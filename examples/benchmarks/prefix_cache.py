"""What keeping the towers' prefixes saves from the second epoch on, in training and evaluation.

    python examples/benchmarks/prefix_cache.py                       # CLIP ViT-B/16, 416 px
    python examples/benchmarks/prefix_cache.py --small               # towers of 4 blocks, seconds
    python examples/benchmarks/prefix_cache.py --device cuda --batch 16 --precision bf16

Random weights, nothing is downloaded. Bridgers after a third, two thirds and all of the blocks,
preset "paper", the referring head's defaults, AdamW. One batch is run again and again, so with a
cache all of its rows are hits. All ways run in turn in this process; "gain" is the median over
rounds of the time without a cache by the time with it, "MB a picture" what the cache holds of a
picture and its sentence.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from measuring import alternate, machine_line, random_clip, table, write_json

from bridger import BridgedModel, attach_bridgers
from bridger.heads import ReferringSegmentationHead
from bridger.prefix import PrefixCache

SMALL = {
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 128, "layers": 4},
    "text_cfg": {"context_length": 16, "vocab_size": 512, "width": 128, "heads": 2, "layers": 4},
}
COLUMNS = ["what", "way", "s", "gain", "MB a picture"]


def build(small: bool, device: str) -> BridgedModel:
    """Return a model on open_clip's CLIP with random weights, in train mode."""
    import open_clip

    torch.manual_seed(0)
    if small:
        clip: Any = open_clip.CLIP(128, SMALL["vision_cfg"], SMALL["text_cfg"], quick_gelu=True)
    else:
        clip = random_clip("ViT-B-16", force_quick_gelu=True)
    encoder = attach_bridgers(clip.visual, clip, 3)
    return encoder.with_head(ReferringSegmentationHead).to(device)


def batch(model: BridgedModel, count: int, size: int, device: str) -> dict[str, torch.Tensor]:
    """Return random pictures, texts of 12 tokens, and masks."""
    words = torch.randint(1, model.encoder.text.vocab_size - 2, (count, 12))
    words[:, -1] = model.encoder.text.vocab_size - 1
    tensors = {
        "pixel_values": torch.randn(count, 3, size, size),
        "input_ids": words,
        "labels": (torch.rand(count, size, size) > 0.5).float(),
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def caches(model: BridgedModel, folder: str) -> dict[str, PrefixCache | None]:
    """Return the ways that are compared: without a cache, and with each kind of one."""
    found: dict[str, PrefixCache | None] = {"none": None}
    for name, where in (("memory", "memory"), ("folder, bf16", folder)):
        model.encoder.cache_prefix(where)
        found[name] = model.encoder.prefix_cache
    return found


def calls(
    model: BridgedModel, given: dict[str, torch.Tensor], precision: str
) -> dict[str, Callable[[], Any]]:
    """Return a training step and an evaluation's forward."""
    device = given["pixel_values"].device.type
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=1e-4)
    cast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")

    def step() -> None:
        model.train()
        with cast:
            loss = model(**given).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def evaluate() -> None:
        model.eval()
        with torch.no_grad(), cast:
            model(given["pixel_values"], given["input_ids"])

    return {"training step": step, "evaluation": evaluate}


def with_cache(
    model: BridgedModel, cache: PrefixCache | None, call: Callable[[], Any]
) -> Callable[[], Any]:
    """Return a call that takes up what that cache has kept."""

    def run() -> None:
        model.encoder.prefix_cache = cache
        call()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="towers of 4 blocks, 64 px")
    parser.add_argument("--size", type=int, help="side of the pictures (default: 416, small 64)")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    args = parser.parse_args()
    size = args.size or (64 if args.small else 416)
    model = build(args.small, args.device)
    given = batch(model, args.batch, size, args.device)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ways = caches(model, folder)
        for what, call in calls(model, given, args.precision).items():
            cases = {name: with_cache(model, cache, call) for name, cache in ways.items()}
            timings = alternate(cases, args.rounds, warmups=2, device=args.device)
            for name, timing in timings.items():
                cache = ways[name]
                row: dict[str, Any] = {"what": what, "way": name, "s": timing.median}
                if cache is not None:
                    row["gain"] = 1 / timing.ratio(timings["none"])
                    row["MB a picture"] = cache.nbytes / args.batch / 1e6
                rows.append(row)
    print(machine_line())
    print(f"{args.batch} pictures of {size} px, {args.precision}, {args.device}")
    print(table(rows, COLUMNS))
    if args.json:
        write_json(args.json, {"batch": args.batch, "size": size, "rows": rows})


if __name__ == "__main__":
    main()
