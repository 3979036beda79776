"""`bridger data scenes`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from bridger.cli.base import say, whole

HELP = "make a data set of scenes in the format of RefCOCO or gRefCOCO"
EXAMPLES = """\
  bridger data scenes scenes
  bridger data scenes scenes --train 8000 --val 200 --testA 200 --testB 200 --seed 1
  bridger data scenes scenes --layout grefcoco           words for several objects, or none
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
    parser.add_argument(
        "--layout",
        choices=["refcoco", "grefcoco"],
        default="refcoco",
        help="refcoco: every sentence means one object; grefcoco: one, several or none; both may "
        "lie in one folder (default: refcoco)",
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
    from bridger.data.scene_files import LAYOUTS
    from bridger.data.scenes import write_scenes

    if (args.folder / LAYOUTS[args.layout]).exists():
        raise FileExistsError(f"{args.folder} already holds a data set: choose another folder")
    counts = {split: getattr(args, split) for split in DEFAULTS}
    if not any(counts.values()):
        raise ValueError("every split is empty: ask for some pictures")
    started = time.monotonic()
    write_scenes(args.folder, counts, args.size, args.seed, args.layout)
    seconds = time.monotonic() - started
    say(*describe_data(args.folder, counts, args.layout), f"took {seconds:.0f} s")
    options = {name: getattr(args, name) for name in ("seed", "size", "layout")}
    return {"folder": str(args.folder), "pictures": counts, **options}


def describe_data(folder: Path, counts: dict[str, int], layout: str = "refcoco") -> list[str]:
    """Return a line per split with its pictures, refs and sentences."""
    from bridger.data import open_splits

    lines = [f"scenes in {folder}:"]
    wanted = [split for split, count in counts.items() if count]
    for split, refs in open_splits(folder, wanted, layout).items():
        lines.append(
            f"  {split}: {counts[split]} pictures, {len(refs)} refs, "
            f"{sum(refs.sentence_counts())} sentences"
        )
    return lines
