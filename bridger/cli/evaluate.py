"""`bridger evaluate`."""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import get_terminal_size
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bridger.cli.adapters import (
    ADAPTER,
    add_device_option,
    add_head_option,
    add_import_option,
    add_prefix_cache_option,
    add_towers_option,
    datasets_of,
    device_of,
    find,
    head_in,
    load_model,
)
from bridger.cli.base import Counter, add_data_options, check_writable, say, share, whole

if TYPE_CHECKING:
    from bridger.tasks import Task

HELP = "judge an adapter on the splits of a data set"
ABOUT = """\
Prints the usual figures of its head's task with 95 % intervals: mIoU, oIoU and
Precision@X of masks, average precision of boxes, accuracy of classes and so on.
Splits to train on are left out unless they are named.
"""
EXAMPLES = """\
  bridger evaluate my-adapter --data scenes
  bridger evaluate my-adapter --data scenes --split testA --json figures.json
  bridger evaluate my-adapter --data coco --dataset refcoco refcoco+ --report page
  bridger evaluate my-adapter --data boxes --head detection --rows found.jsonl
  bridger evaluate somebody/their-adapter --data coco --device cuda
  torchrun --nproc-per-node 4 -m bridger evaluate my-adapter --data coco
"""
VALIDATION = "val"


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("adapter", metavar="ADAPTER", help=ADAPTER)
    add_data_options(parser)
    add_head_option(parser)
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="SPLIT",
        help="which splits (default: all that the data set has, but those to train on, such as "
        "train, trainval or train2017)",
    )
    parser.add_argument(
        "--sentences",
        choices=["first", "every"],
        help="judge the first sentence of each ref, or every one (default: every one, and of val "
        "masks for the first ones as well, since the reference's validation takes those)",
    )
    parser.add_argument(
        "--threshold",
        type=share,
        metavar="P",
        help="above which a pixel belongs to a mask (default: 0.35)",
    )
    parser.add_argument(
        "--batch-size",
        type=whole(1),
        metavar="N",
        help="pictures at once, or expressions (default: as the task has it)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write a page of the figures and of the best and worst cases: DIR/report.html",
    )
    parser.add_argument(
        "--rows",
        type=Path,
        metavar="FILE",
        help="write a line of JSON for every picture or expression",
    )
    add_prefix_cache_option(parser, "nothing is kept")
    add_towers_option(parser)
    add_device_option(parser)
    add_import_option(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Judge, print the tables, and write what was asked for."""
    from bridger.evaluation.labelled import LabelledEvaluation
    from bridger.evaluation.ranks import connect
    from bridger.tasks import get_task
    from bridger.training.distributed import is_main

    page = _check_places(args)
    device_of(args.device)  # before data are read
    adapter = find(args.adapter, args)
    head, registered = head_in(adapter, args.head)
    task = get_task(registered)
    options = _options(task, args)
    splits = list(_splits(task, adapter, args))
    connect()
    model = load_model(adapter, args)
    model.encoder.cache_prefix(args.prefix_cache)
    started = time.monotonic()
    judged = [pair for split in splits for pair in _judge(task, model, split, head, options, args)]
    results = [result for _, result in judged]
    shown = _shown_by(task)
    for table in shown.tables(results, args.adapter):
        say(*table.lines(get_terminal_size().columns), "")
    wholes = [result for result in results if not _is_part(result)]
    unit = "pictures" if isinstance(wholes[0], LabelledEvaluation) else "sentences"
    say(f"{sum(map(len, wholes))} {unit} in {time.monotonic() - started:.0f} s")
    if is_main():
        _write_rows(args.rows, wholes)
        _write_page(page, task, model, judged, head, args.adapter)
    return {
        "adapter": args.adapter,
        "data": str(args.data),
        "head": head,
        "task": task.name,
        "results": [shown.record(result) for result in results],
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


def _options(task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the task's `evaluate` that were given.

    Raises:
        ValueError: one that the task does not have.
    """
    first = None if args.sentences is None else args.sentences == "first"
    given = {
        "batch_size": ("--batch-size", args.batch_size),
        "threshold": ("--threshold", args.threshold),
        "first_sentence": ("--sentences", first),
    }
    options = {name: value for name, (_, value) in given.items() if value is not None}
    for name in options:
        if name not in inspect.signature(task.evaluate).parameters:
            raise ValueError(f"{given[name][0]} means nothing for {task.name}: leave it out")
    return options


def _splits(task: Task, adapter: Path, args: argparse.Namespace) -> Iterator[Any]:
    """Open the splits of every data set; each is judged on its own."""
    from bridger.data.label_layouts import is_training

    for name in datasets_of(task, adapter, args.data, args.dataset):
        there = task.splits(args.data, name)
        judged = args.split or [split for split in there if not is_training(split)]
        if not judged:
            found = ", ".join(there)
            raise ValueError(f"{args.data} has splits to train on alone ({found}): name --split")
        yield from task.open_several(args.data, judged, name)


def _judge(
    task: Task,
    model: Any,
    split: Any,
    head: str,
    options: Mapping[str, Any],
    args: argparse.Namespace,
) -> Iterator[tuple[Any, Any]]:
    """Judge a split; of masks in val return the part with the first sentences too."""
    from bridger.evaluation import Evaluation
    from bridger.training.distributed import is_main

    report = Counter(split.split, task.metrics[0]) if is_main() else None
    found = task.evaluate(model, split, head, report=report, **options)
    yield split, found
    usual = args.sentences is None and split.split == VALIDATION
    if usual and isinstance(found, Evaluation):
        yield split, found.first_sentences()


def _is_part(result: Any) -> bool:
    """Whether an evaluation is a part of another one, which has the loss."""
    from bridger.evaluation import Evaluation

    return isinstance(result, Evaluation) and result.loss is None


def _gives_masks(task: Task) -> bool:
    """Whether it is about masks of expressions, which have a report of their own."""
    from bridger.tasks.referring_segmentation import ReferringSegmentation

    return isinstance(task, ReferringSegmentation)


def _shown_by(task: Task) -> ModuleType:
    """Return the module that makes a task's tables and records."""
    from bridger.evaluation import report, summary

    return report if _gives_masks(task) else summary


def _write_rows(path: Path | None, results: list[Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for result in results:
                file.writelines(f"{json.dumps(row)}\n" for row in result.rows())


def _write_page(
    page: Path | None,
    task: Task,
    model: Any,
    judged: list[tuple[Any, Any]],
    head: str,
    adapter: str,
) -> None:
    from bridger.evaluation.head_page import write_head_page
    from bridger.evaluation.page import write_page

    if page is None:
        return
    say(f"drawing the best and worst cases: {page}")
    if _gives_masks(task):
        write_page(page.parent, model, judged, adapter, head=head)
    else:
        write_head_page(page.parent, task, model, judged, adapter, head=head)
