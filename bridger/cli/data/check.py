"""`bridger data check`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger.cli.base import Counter, check_picture, command, refuse_options, say, whole, write_json
from bridger.cli.data.scenes import LABELLED, REFERRING

if TYPE_CHECKING:
    from bridger.data.check_report import DataReport, Finding, SplitCounts

HELP = "say what a folder of data holds, and what is wrong with it"
ABOUT = "Exit code 1 where something is wrong; what is merely worth knowing is a note."
EXAMPLES = """\
  bridger data check my-data
  bridger data check my-data --sheet sheet.png --json report.json
  bridger data check coco --dataset refcoco refcocog
  bridger data check coco --task detection --quick

a folder of referring expressions of your own has a file for every split,
DIR/train.jsonl and DIR/val.jsonl at least, with lines such as
  {"image": "a.jpg", "sentence": "the dog on the left", "mask": "masks/a.png"}
"sentences": ["...", "..."] says several things of one object; in place of "mask"
there can be "polygons": [[x0, y0, x1, y1, ...]], "box": [x0, y0, x1, y1], COCO's
"segmentation", or "none": true

other tasks: label maps in DIR/labels/train beside DIR/images/train, COCO's JSON
files in DIR/annotations, or a folder for each class in DIR/train; `--task NAME`
on an empty folder tells all layouts of a task
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "data",
        type=Path,
        metavar="DIR",
        help="folder of a published data set, or of your own",
    )
    parser.add_argument(
        "--task",
        choices=[*REFERRING, *LABELLED],
        help="what the data are for (default: referring, where such data are there, else the only "
        "task that there are data of)",
    )
    parser.add_argument(
        "--dataset",
        nargs="+",
        metavar="NAME",
        help="which, of referring expressions (default: all that are there)",
    )
    parser.add_argument(
        "--sheet", type=Path, metavar="PNG", help="draw some pictures with what is said of them"
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="S", help="another seed, others drawn"
    )
    parser.add_argument(
        "--max-length",
        type=whole(3),
        metavar="N",
        help="most tokens of a sentence, ends included (default: what ETRIS takes for the data "
        "set, else 77)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="read only the heads of pictures: truncated ones, and copies of train's pictures with "
        "labels, are not found",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Look everything through and say what was found.

    Raises:
        ValueError: something is wrong with the data.
    """
    if args.sheet is not None:
        check_picture(args.sheet)
    report = _check(args)
    say(*_describe(report))
    if args.sheet is not None:
        _draw(args, report)
    if report.problems:
        # The report is of more use with what is wrong in it than without.
        write_json(args, report.to_dict())
        kinds = len(report.problems)
        found = "one kind of problem" if kinds == 1 else f"{kinds} kinds of problems"
        raise ValueError(f"{found} in {args.data}: see above")
    if any(split.split == "train" for split in report.splits):
        head = ["--head", args.task] if args.task else []
        say("next: " + command("train", *head, "--data", args.data, "--out", "my-adapter"))
    return report.to_dict()


def _check(args: argparse.Namespace) -> DataReport:
    """Check the data of the task that was asked for, or is recognised."""
    from bridger.data.check import check_data
    from bridger.data.check_labelled import check_labelled
    from bridger.data.check_labels import labelled_task

    if args.task is None and args.dataset is None:
        args.task = labelled_task(args.data)
    done = Counter("pictures")
    if args.task in LABELLED:
        refuse_options(args, ["dataset", "max_length"])
        return check_labelled(args.data, args.task, decode=not args.quick, report=done)
    return check_data(
        args.data,
        args.dataset,
        max_length=args.max_length,
        decode=not args.quick,
        report=done,
    )


def _describe(report: DataReport) -> list[str]:
    lines = [*_table(report.splits)]
    for title, findings in (("wrong", report.problems), ("notes", report.notes)):
        if findings:
            lines += ["", f"{title}:", *(line for f in findings for line in _finding(f))]
    return lines if report.problems else [*lines, "", "nothing is wrong"]


def _table(splits: tuple[SplitCounts, ...]) -> list[str]:
    rows = [split.columns() for split in splits]
    shown = [title for title in (rows[0] if rows else ()) if any(row[title] for row in rows)]
    lines = [tuple(shown), *(tuple(row[title] for title in shown) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(_aligned(line, widths)).rstrip() for line in lines]


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    return [
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _finding(finding: Finding) -> list[str]:
    rest = finding.count - len(finding.examples)
    examples = [f"    {' '.join(example.split())}" for example in finding.examples]
    return [f"  {finding.what}: {finding.count}", *examples, *(["    ..."] if rest > 0 else [])]


def _draw(args: argparse.Namespace, report: DataReport) -> None:
    from bridger.data.sheet import contact_sheet

    args.sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(report.opened, seed=args.seed).save(args.sheet)
    say("", f"drew {args.sheet}")
