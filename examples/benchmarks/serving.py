"""What answering costs: many pictures, threads, what is kept of a picture, an exported program.

    python examples/benchmarks/serving.py
    python examples/benchmarks/serving.py --full --pictures 8 --rounds 3

The shipped adapter on Tiny CLIP at 128 pixels, or with --full a fresh one on CLIP's ViT-B/16 at 416
pixels (open_clip, random weights). Cases of a table take turns; milliseconds are medians for one
picture and sentence, reading included but for the program, which gets tensors. "times" is how many
times as fast as the first case.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import alternate, machine_line, table, write_json

from bridger import BridgedModel, Processor, attach_bridgers, export
from bridger.heads import ReferringSegmentationHead

SAID = ["the owl", "the taxi on the left", "a large red car", "the umbrella"]
IN_FORWARD = (1, 2, 4, 8, 16)
THREADS = (1, 2, 4)
Cases = dict[str, Callable[[], Any]]


def load(full: bool) -> BridgedModel:
    torch.manual_seed(0)
    if not full:
        return BridgedModel.from_pretrained("tiny").eval()
    import open_clip

    clip = open_clip.create_model("ViT-B-16", pretrained=None, force_image_size=416)
    model = attach_bridgers(clip.visual, clip, 3).with_head(ReferringSegmentationHead).eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    model.processor = Processor(416, (0.5,) * 3, (0.5,) * 3, tokenizer, 22)
    return model


def in_a_forward(model: BridgedModel, images: Sequence[Any]) -> Cases:
    """Ask about all pictures, at most so many in a forward."""
    words = [SAID[i % len(SAID)] for i in range(len(images))]

    def case(rows: int) -> Callable[[], Any]:
        return lambda: model.predict(images, words, rows_at_once=rows)

    return {f"{rows} in a forward": case(rows) for rows in IN_FORWARD if rows <= len(images)}


def in_threads(model: BridgedModel, images: Sequence[Any]) -> Cases:
    """Ask about each picture by itself, in so many threads of Python."""

    def case(threads: int) -> Callable[[], Any]:
        def run() -> None:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda image: model.predict(image, SAID[0]), images))

        return run

    return {f"{threads} threads": case(threads) for threads in THREADS}


def further_sentences(model: BridgedModel, image: Any) -> Cases:
    """Ask about one picture, sentence by sentence, which it has been asked about before."""

    def case(where: str | None) -> Callable[[], Any]:
        def run() -> None:
            model.encoder.prefix_cache = kept if where else None
            for said in SAID:
                model.predict(image, said)

        return run

    model.encoder.cache_prefix("memory")
    kept = model.encoder.prefix_cache
    return {"as new": case(None), "prefixes kept": case("memory")}


def exported(model: BridgedModel, image: Any) -> Cases:
    """Run the model, and the program that it is exported to, on tensors."""
    assert model.processor is not None
    pixels = model.processor.image(image)[0][None]
    given = {"pixel_values": pixels, **model.processor.text(SAID[0])}
    program = export(model, **given).module()

    def run(call: Callable[..., Any]) -> Callable[[], Any]:
        return torch.no_grad()(lambda: call(**given))

    return {"model": run(model), "program": run(program)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="CLIP ViT-B/16 at 416 pixels")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7, help="timings of each case (default: 7)")
    parser.add_argument("--threads", type=int, help="of torch (default: torch's own)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)

    model, rng = load(args.full), np.random.default_rng(0)
    images = [rng.integers(0, 256, (240, 320, 3), dtype=np.uint8) for _ in range(args.pictures)]
    print(machine_line())
    results: dict[str, Any] = {}
    for name, cases, answers in (
        ("many pictures", in_a_forward(model, images), len(images)),
        ("threads", in_threads(model, images), len(images)),
        ("further sentences", further_sentences(model, images[0]), len(SAID)),
    ):
        results[name] = measured(name, cases, answers, args.rounds)
        model.encoder.cache_prefix(None)
    results["export"] = measured("export", exported(model, images[0]), 1, args.rounds)
    if args.json is not None:
        write_json(args.json, results)


def measured(name: str, cases: Cases, answers: int, rounds: int) -> list[dict[str, Any]]:
    """Time cases that give so many answers each, and print them."""
    timings = alternate(cases, rounds)
    first = next(iter(timings.values()))
    rows = [
        {name: case, "ms": 1000 * timing.median / answers, "times": 1 / timing.ratio(first)}
        for case, timing in timings.items()
    ]
    print("", table(rows, [name, "ms", "times"]), sep="\n", flush=True)
    return rows


if __name__ == "__main__":
    main()
