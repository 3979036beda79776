"""`bridger data scenes`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from bridger.cli.base import say, whole

HELP = "make a data set of scenes in RefCOCO's format"
EXAMPLES = """\
  bridger data scenes scenes
  bridger data scenes scenes --train 8000 --val 200 --testA 200 --testB 200 --seed 1
"""
DEFAULTS = {"train": 2000, "val": 100, "testA": 100, "testB": 100}


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write them")
    for split, count in DEFAULTS.items():
        parser.add_argument(
            f"--{split}",
            type=whole(0),
            default=count,
            metavar="N",
            help=f"pictures of this split (default: {count})",
        )
    add_scene_options(parser)


def add_scene_options(parser: argparse.ArgumentParser) -> None:
    """Add what changes a scene."""
    parser.add_argument(
        "--size", type=whole(32), default=128, metavar="PIXELS", help="side (default: 128)"
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="S", help="another seed, other scenes"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write scenes, and say what was written."""
    from bridger.data.scenes import ANNOTATIONS, write_scenes

    if (args.folder / ANNOTATIONS).exists():
        raise FileExistsError(f"{args.folder} already holds a data set: choose another folder")
    counts = {split: getattr(args, split) for split in DEFAULTS}
    if not any(counts.values()):
        raise ValueError("every split is empty: ask for some pictures")
    started = time.monotonic()
    write_scenes(args.folder, counts, size=args.size, seed=args.seed)
    say(*describe_data(args.folder, counts), f"took {time.monotonic() - started:.0f} s")
    return {"folder": str(args.folder), "pictures": counts, "seed": args.seed, "size": args.size}


def describe_data(folder: Path, counts: dict[str, int]) -> list[str]:
    """Return a line per split with its pictures, objects and sentences."""
    from bridger.data import open_splits

    lines = [f"scenes in {folder}:"]
    wanted = [split for split, count in counts.items() if count]
    for split, refs in open_splits(folder, wanted).items():
        lines.append(
            f"  {split}: {counts[split]} pictures, {len(refs)} objects, "
            f"{sum(refs.sentence_counts())} sentences"
        )
    return lines
