"""`bridger predict`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from bridger.cli.base import add_towers_option, check_picture, load_model, say, share

HELP = "segment what words mean in a picture"
EXAMPLES = """\
  bridger predict picture.jpg "the owl on the left"
  bridger predict picture.jpg "the red car" "the drum" --out masks.png --overlay seen.png
  bridger predict picture.jpg "the dog" --adapter my-adapter --threshold 0.5
"""
FACTOR = 255  # of a mask's pixels, so that the file can be looked at


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument("words", nargs="+", metavar="WORDS", help="one or more sentences, quoted")
    parser.add_argument(
        "--adapter", type=Path, metavar="DIR", help="default: the one in the package"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("mask.png"),
        metavar="PNG",
        help="the mask, 0 and 255 (default: mask.png); numbered where there are several sentences",
    )
    parser.add_argument("--overlay", type=Path, metavar="PNG", help="the picture with the masks")
    parser.add_argument("--threshold", type=share, default=0.35, metavar="P", help="default: 0.35")
    add_towers_option(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Predict, write the files, and say what was found and how long it took."""
    from bridger.tiny_clip import TINY_ADAPTER

    if not args.image.is_file():
        raise FileNotFoundError(f"there is no picture {args.image}")
    outs = _outs(args)
    for path in outs:
        check_picture(path)
    places = [path.resolve() for path in (args.image, *outs)]
    if len(set(places)) < len(places):
        raise ValueError(
            f"IMAGE, --out and --overlay must be different files, found {args.image} and "
            + ", ".join(map(str, outs))
        )
    times = {"loading": time.monotonic()}
    model = load_model(args.adapter or TINY_ADAPTER, args.towers)
    times["running"] = time.monotonic()
    result = model.predict(args.image, args.words, args.threshold)
    times["writing"] = time.monotonic()
    written = _write(args, result)
    ends = [*list(times.values())[1:], time.monotonic()]
    seconds = {name: end - times[name] for name, end in zip(times, ends, strict=True)}
    found = []
    for words, mask, score, box in zip(
        args.words, result.masks, result.scores, result.boxes, strict=True
    ):
        part = {
            "words": words,
            "score": float(score),
            "box": [int(edge) for edge in box],
            "share": float(mask.mean()),
        }
        found.append(part)
        say(f"{words}: {_describe(part)}")
    say("wrote " + ", ".join(map(str, written)))
    say(", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()))
    return {"found": found, "files": list(map(str, written)), "seconds": seconds}


def _describe(part: dict[str, Any]) -> str:
    if not part["share"]:
        return "nothing found"
    return (
        f"score {part['score']:.2f}, box {part['box']}, {100 * part['share']:.1f} % of the picture"
    )


def _outs(args: argparse.Namespace) -> list[Path]:
    """Return the files to write: a mask for each sentence, then the overlay."""
    masks = [args.out]
    if len(args.words) > 1:
        numbers = range(1, len(args.words) + 1)
        masks = [args.out.with_stem(f"{args.out.stem}-{number}") for number in numbers]
    return masks if args.overlay is None else [*masks, args.overlay]


def _write(args: argparse.Namespace, result: Any) -> list[Path]:
    import numpy as np
    from PIL import Image

    outs = _outs(args)
    for path in outs:
        path.parent.mkdir(parents=True, exist_ok=True)
    for path, mask in zip(outs, result.masks, strict=False):  # the overlay comes last
        Image.fromarray(FACTOR * mask.astype(np.uint8)).save(path)
    if args.overlay is not None:
        result.overlay(args.image, args.words).save(args.overlay)
    return outs
