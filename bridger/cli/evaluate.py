"""`bridger evaluate`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from bridger.cli.base import (
    Counter,
    add_data_options,
    add_towers_option,
    figures,
    load_model,
    open_data,
    say,
    share,
    table,
    whole,
)

HELP = "judge an adapter: mIoU, oIoU and Precision@0.5 ... 0.9 over every sentence of a split"
EXAMPLES = """\
  bridger evaluate my-adapter --data scenes
  bridger evaluate my-adapter --data scenes --split testA --json figures.json
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "adapter", type=Path, metavar="ADAPTER", help="its folder; tiny: the package's"
    )
    add_data_options(parser)
    parser.add_argument(
        "--split",
        nargs="+",
        default=["val", "testA", "testB"],
        metavar="SPLIT",
        help="which splits (default: val testA testB)",
    )
    parser.add_argument("--threshold", type=share, default=0.35, metavar="P", help="default: 0.35")
    parser.add_argument(
        "--batch-size", type=whole(1), default=32, metavar="N", help="expressions at once"
    )
    add_towers_option(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Judge, and print a table in percent."""
    from bridger.evaluation.evaluate import evaluate

    splits = {name: open_data(args, name) for name in args.split}
    model = load_model(args.adapter, args.towers)
    started = time.monotonic()
    results = {
        name: evaluate(
            model, split, args.threshold, args.batch_size, report=Counter(name)
        ).figures()
        for name, split in splits.items()
    }
    say(*table({name: figures(metrics) for name, metrics in results.items()}))
    sentences = sum(len(split.expressions()) for split in splits.values())
    say(f"{sentences} sentences in {time.monotonic() - started:.0f} s, in percent")
    return {"adapter": str(args.adapter), "threshold": args.threshold, "splits": results}
