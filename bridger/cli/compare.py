"""`bridger compare`."""

from __future__ import annotations

import argparse
from typing import Any

from bridger.cli.studies import add_study_options, conduct_studies

HELP = "measure Bridgers against other tuning methods, over seeds"
ABOUT = """\
Trains the same head for the same updates with nothing else, with Bridgers, with
LoRA, adapters, full fine-tuning and others. Learning rates are searched on val
first, over the same grid for all. A killed study goes on where it was.
"""
EXAMPLES = """\
  bridger compare
  bridger compare --data coco-like --seeds 5
  bridger compare --only "LoRA, rank 10" "full fine-tuning"
  bridger compare mine.json --import my_bridgers.py
  bridger compare --quick --out smoke          minutes: does all of it work?
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "study",
        nargs="?",
        metavar="FILE.json",
        help="a study of your own (default: Bridgers and their rivals; docs/evidence.md)",
    )
    add_study_options(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Conduct the study."""
    from bridger.studies.study import COMPARISON, Study

    return conduct_studies(args, [Study.load(args.study or COMPARISON)])
