"""`bridger data convert`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bridger.cli.base import Counter, command, say

HELP = "write referring expressions as JSON Lines"
ABOUT = """\
A file for every split, which opens fast and can be edited by hand: the format
of data of your own (`bridger data check --help`). Pictures stay where they are.
"""
EXAMPLES = """\
  bridger data convert refcoco lines
  bridger data convert coco lines --dataset refcocog/google
  bridger data convert refcoco lines --drop-broken
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("data", type=Path, metavar="DIR", help="folder of the data set")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="becomes a folder with a file for every split"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="which one (default: the only one that is there)"
    )
    parser.add_argument(
        "--drop-broken",
        action="store_true",
        help="leave out the refs in which `bridger data check` finds something wrong",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Convert, and say what was written."""
    from bridger.data.convert import convert

    counts = convert(
        args.data, args.out, args.dataset, Counter("refs"), drop_broken=args.drop_broken
    )
    say(
        *(
            f"wrote {args.out / split}.jsonl with {written} refs"
            + (f", {left_out} were left out" if left_out else "")
            for split, (written, left_out) in counts.items()
        ),
        "pictures stay where they are",
        "next: " + command("data", "check", args.out),
    )
    refs = {split: written for split, (written, _) in counts.items()}
    left_out = {split: count for split, (_, count) in counts.items()}
    return {"folder": str(args.out), "refs": refs, "left_out": left_out}
