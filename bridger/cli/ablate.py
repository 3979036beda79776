"""`bridger ablate`."""

from __future__ import annotations

import argparse
from typing import Any

from bridger.cli.studies import add_study_options, conduct_studies

HELP = "measure what parts of Bridgers are worth, over seeds"
ABOUT = """\
Trains every setting of a study with several seeds, and writes a report with
mean, spread and intervals. Without --data on the embedded scenes. A killed
study goes on where it was; nothing is run twice.
"""
EXAMPLES = """\
  bridger ablate positions
  bridger ablate width zoom --data coco-like --seeds 5
  bridger ablate all --out studies
  bridger ablate mine.json --only "my setting"
  bridger ablate all --quick --out smoke       minutes: does all of it work?
"""
ALL = "all"


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "studies",
        nargs="+",
        metavar="WHAT",
        help="positions, zoom, interactor, carry, width, alignment, padding, tower-positions, "
        "start, all of them, or a JSON file of your own (docs/evidence.md)",
    )
    add_study_options(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Conduct the studies that the arguments name."""
    from bridger.studies.study import COMPARISON, Study, study_names

    names = list(args.studies)
    if ALL in names:
        names = [name for name in study_names() if name != COMPARISON]
    return conduct_studies(args, [Study.load(name) for name in names])
