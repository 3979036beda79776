"""`bridger data scenes`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger.cli.base import refuse_options, say, whole

if TYPE_CHECKING:
    from bridger.data.labelled import LabelledDataset

HELP = "make a data set of scenes, for any of the tasks"
EXAMPLES = """\
  bridger data scenes scenes
  bridger data scenes scenes --train 8000 --val 200 --testA 200 --testB 200 --seed 1
  bridger data scenes scenes --layout grefcoco           words for several objects, or none
  bridger data scenes scenes --task semantic_segmentation           a class for every pixel
  bridger data scenes scenes --task detection --classes 20          boxes, as COCO has them
  bridger data scenes scenes --task classification --test 500       a folder for each class
"""
DEFAULTS = {"train": 2000, "val": 100, "testA": 100, "testB": 100}
LABELLED_DEFAULTS = {"train": 2000, "val": 100, "test": 100}
CLASSES = 48
REFERRING = ("referring_segmentation", "referring_comprehension")
LABELLED = {
    "semantic_segmentation": "segmented",
    "detection": "boxed",
    "classification": "classified",
}


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write them")
    parser.add_argument(
        "--task",
        choices=[*REFERRING, *LABELLED],
        default=REFERRING[0],
        help=f"what they are for (default: {REFERRING[0]}, whose files serve {REFERRING[1]} too)",
    )
    for split, count in {**DEFAULTS, **LABELLED_DEFAULTS}.items():
        only = {"testA": ", with sentences", "testB": ", with sentences", "test": ", with classes"}
        parser.add_argument(
            f"--{split}",
            type=whole(0),
            metavar="N",
            help=f"pictures of this split{only.get(split, '')} (default: {count})",
        )
    parser.add_argument(
        "--layout",
        choices=["refcoco", "grefcoco"],
        help="of scenes with sentences; refcoco: every sentence means one object; grefcoco: one, "
        "several or none; both may lie in one folder (default: refcoco)",
    )
    parser.add_argument(
        "--classes",
        type=whole(1),
        metavar="K",
        help="of scenes with classes: how many there are, a sixth of which training does not show "
        f"(default: {CLASSES})",
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
    from bridger.data.scenes import write_scenes

    labelled = args.task in LABELLED
    refuse_options(args, ["testA", "testB", "layout"] if labelled else ["test", "classes"])
    defaults = LABELLED_DEFAULTS if labelled else DEFAULTS
    counts = {split: _or(getattr(args, split), count) for split, count in defaults.items()}
    if not any(counts.values()):
        raise ValueError("every split is empty: ask for some pictures")
    layout = LABELLED[args.task] if labelled else _or(args.layout, "refcoco")
    classes = _or(args.classes, CLASSES)
    if not labelled:
        _refuse_again(args.folder, layout)
    say(f"making {sum(counts.values())} scenes")
    started = time.monotonic()
    write_scenes(args.folder, counts, args.size, args.seed, layout, classes)
    seconds = time.monotonic() - started
    describe = describe_labelled if labelled else describe_data
    say(*describe(args.folder, counts, layout), f"took {seconds:.0f} s")
    options = {"seed": args.seed, "size": args.size, "task": args.task, "layout": layout}
    options |= {"classes": classes} if labelled else {}
    return {"folder": str(args.folder), "pictures": counts, **options}


def _or(given: Any, default: Any) -> Any:
    return default if given is None else given


def _refuse_again(folder: Path, layout: str) -> None:
    from bridger.data.scene_files import LAYOUTS

    if (folder / LAYOUTS[layout]).exists():
        raise FileExistsError(f"{folder} already holds a data set: choose another folder")


def make_missing_scenes(folder: Path, counts: Mapping[str, int]) -> None:
    """Write scenes with expressions where there are none yet.

    Args:
        folder: where to.
        counts: pictures by split.
    """
    from bridger.data.scenes import ANNOTATIONS, write_scenes

    if not (folder / ANNOTATIONS).exists():
        say(f"making {sum(counts.values())} scenes")
        write_scenes(folder, counts)


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


def describe_labelled(folder: Path, counts: dict[str, int], layout: str) -> list[str]:
    """Return a line per split with its pictures and classes."""
    from bridger.data import open_boxed, open_classified, open_segmented

    openers: dict[str, Callable[[Path, str], LabelledDataset[Any]]] = {
        "segmented": open_segmented,
        "boxed": open_boxed,
        "classified": open_classified,
    }
    splits = [openers[layout](folder, split) for split, count in counts.items() if count]
    lines = [
        f"  {data.split}: {len(data)} pictures, {len(data.classes)} classes" for data in splits
    ]
    return [f"scenes in {folder}:", *lines]
