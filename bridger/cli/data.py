"""`bridger data`."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import Any

from bridger.cli.base import check_picture, say, whole

HELP = "make data sets, or a picture to try"
EXAMPLES = """\
  bridger data picture picture.png
  bridger data scenes scenes
  bridger data scenes scenes --train 8000 --val 200 --testA 200 --testB 200 --seed 1
"""
DEFAULTS = {"train": 2000, "val": 100, "testA": 100, "testB": 100}


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "kind",
        choices=["scenes", "picture"],
        help="a folder of scenes in RefCOCO's format, or one picture of the same sort and what "
        "can be asked of it",
    )
    parser.add_argument("place", type=Path, metavar="DIR|PNG", help="where to write it")
    for split, count in DEFAULTS.items():
        parser.add_argument(
            f"--{split}",
            type=whole(0),
            default=count,
            metavar="N",
            help=f"scenes: pictures of this split (default: {count})",
        )
    parser.add_argument(
        "--size", type=whole(32), default=128, metavar="PIXELS", help="side (default: 128)"
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="S", help="another seed, other scenes"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write scenes or a picture, and say what was written."""
    return _picture(args) if args.kind == "picture" else _scenes(args)


def _scenes(args: argparse.Namespace) -> dict[str, Any]:
    from bridger.data.scenes import ANNOTATIONS, write_scenes

    folder = args.place
    if (folder / ANNOTATIONS).exists():
        raise FileExistsError(f"{folder} already holds a data set: choose another folder")
    counts = {split: getattr(args, split) for split in DEFAULTS}
    if not any(counts.values()):
        raise ValueError("every split is empty: ask for some pictures")
    started = time.monotonic()
    write_scenes(folder, counts, size=args.size, seed=args.seed)
    say(*describe_data(folder, counts), f"took {time.monotonic() - started:.0f} s")
    return {"folder": str(folder), "pictures": counts, "seed": args.seed, "size": args.size}


def _picture(args: argparse.Namespace) -> dict[str, Any]:
    from PIL import Image

    from bridger.data.scenes import make_scene

    check_picture(args.place)
    if args.place.exists():
        raise FileExistsError(f"{args.place} exists: choose another name")
    scene = make_scene("val", args.seed, size=args.size)
    args.place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image).save(args.place)
    said: dict[int, list[str]] = {}
    for expression in scene.expressions:
        said.setdefault(expression.target, []).append(expression.sentence)
    say(f"wrote {args.place}. Each line means one object:")
    say(*(f"  {scene.objects[i].kind.name}: {', '.join(s)}" for i, s in sorted(said.items())))
    longest = max((e.sentence for e in scene.expressions), key=len)
    say(f"try: bridger predict {shlex.join([str(args.place), longest])} --overlay seen.png")
    objects = [{"name": scene.objects[i].kind.name, "sentences": s} for i, s in said.items()]
    return {"picture": str(args.place), "objects": objects, "seed": args.seed, "size": args.size}


def describe_data(folder: Path, counts: dict[str, int]) -> list[str]:
    """Return a line per split with its pictures, objects and sentences."""
    from bridger.data import RefCOCO

    lines = [f"scenes in {folder}:"]
    for split, count in counts.items():
        if count:
            refs = RefCOCO(folder, split)
            sentences = len(refs.expressions())
            lines.append(f"  {split}: {count} pictures, {len(refs)} objects, {sentences} sentences")
    return lines
