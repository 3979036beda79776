"""`bridger evaluate`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger.cli.base import (
    Counter,
    add_data_options,
    add_towers_option,
    check_writable,
    datasets_of,
    load_model,
    say,
    share,
    whole,
)

if TYPE_CHECKING:
    from bridger.data import ReferringDataset
    from bridger.evaluation import Evaluation

HELP = "judge an adapter: mIoU, oIoU and Precision@0.5 ... 0.9 of each split, with intervals"
EXAMPLES = """\
  bridger evaluate my-adapter --data scenes
  bridger evaluate my-adapter --data scenes --split testA --json figures.json
  bridger evaluate my-adapter --data coco --dataset refcoco refcoco+ --report page
  torchrun --nproc-per-node 4 -m bridger evaluate my-adapter --data coco
"""
VALIDATION = "val"


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "adapter", type=Path, metavar="ADAPTER", help="its folder; tiny: the package's"
    )
    add_data_options(parser)
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="SPLIT",
        help="which splits (default: all that the data set has, but train)",
    )
    parser.add_argument(
        "--sentences",
        choices=["first", "every"],
        help="judge the first sentence of each ref, or every one (default: every one, and of val "
        "the first ones as well, since the reference's validation takes those)",
    )
    parser.add_argument("--threshold", type=share, default=0.35, metavar="P", help="default: 0.35")
    parser.add_argument(
        "--batch-size", type=whole(1), default=32, metavar="N", help="expressions at once"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write a page of the figures and of the best and worst cases: DIR/report.html",
    )
    parser.add_argument(
        "--rows", type=Path, metavar="FILE", help="write a line of JSON for every expression"
    )
    add_towers_option(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Judge, print the tables, and write what was asked for."""
    from bridger.evaluation.ranks import connect
    from bridger.evaluation.report import record, tables
    from bridger.training.distributed import is_main

    page = _check_places(args)
    splits = list(_splits(args))
    connect()
    model = load_model(args.adapter, args.towers)
    started = time.monotonic()
    judged = [pair for split in splits for pair in _judge(model, split, args)]
    evaluations = [evaluation for _, evaluation in judged]
    for table in tables(evaluations, str(args.adapter)):
        say(*table.lines(), "")
    sentences = sum(len(evaluation) for evaluation in evaluations if evaluation.loss is not None)
    say(f"{sentences} sentences in {time.monotonic() - started:.0f} s")
    if is_main():
        _write(args, page, model, judged)
    return {
        "adapter": str(args.adapter),
        "data": str(args.data),
        "threshold": args.threshold,
        "results": [record(evaluation) for evaluation in evaluations],
    }


def _check_places(args: argparse.Namespace) -> Path | None:
    """Refuse early what could not be written; return the page that was asked for."""
    if args.rows is not None:
        check_writable(args.rows)
    if args.report is None:
        return None
    page: Path = args.report / "report.html"
    check_writable(page)
    return page


def _splits(args: argparse.Namespace) -> Iterator[ReferringDataset]:
    """Open the splits of every data set; each is judged on its own."""
    from bridger.data.catalog import open_splits

    for name in datasets_of(args.adapter, args.data, args.dataset):
        found = open_splits(args.data, args.split, name)
        judged = [split for split in found if args.split or split != "train"]
        if not judged:
            raise ValueError(f"{args.data} has a train split alone: judge it with --split train")
        yield from (found[split] for split in judged)


def _judge(
    model: Any, split: ReferringDataset, args: argparse.Namespace
) -> Iterator[tuple[ReferringDataset, Evaluation]]:
    """Judge a split; of val return the part with the first sentences too."""
    from bridger.evaluation import evaluate
    from bridger.training.distributed import is_main

    whole = evaluate(
        model,
        split,
        args.threshold,
        args.batch_size,
        first_sentence=args.sentences == "first",
        report=Counter(split.split) if is_main() else None,
    )
    yield split, whole
    if args.sentences is None and split.split == VALIDATION:
        yield split, whole.first_sentences()


def _write(
    args: argparse.Namespace,
    page: Path | None,
    model: Any,
    judged: list[tuple[ReferringDataset, Evaluation]],
) -> None:
    """Write the expressions, each once, and the page, as far as they were asked for."""
    from bridger.evaluation.page import write_page
    from bridger.evaluation.report import rows

    if args.rows is not None:
        args.rows.parent.mkdir(parents=True, exist_ok=True)
        with args.rows.open("w", encoding="utf-8") as file:
            for _, evaluation in judged:
                if evaluation.loss is not None:
                    file.writelines(f"{json.dumps(row)}\n" for row in rows(evaluation))
    if page is not None:
        say(f"drawing the best and worst cases: {page}")
        write_page(args.report, model, judged, str(args.adapter))
