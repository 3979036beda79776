"""The results table of finished rows, in Markdown, published figures below ours and labelled so.

    python examples/refcoco/table.py rows
    python examples/refcoco/table.py rows --metric oIoU

The protocol is the reference's: the first sentence of each ref on val, every sentence on the
tests. Rows that differ in their seed alone are one line: mean and standard deviation.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVALUATION = "evaluation.json"
Line = dict[str, list[float]]  # a split's figures, one of each seed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path, metavar="DIR", help="as row.py wrote it")
    parser.add_argument(
        "--metric",
        default="mIoU",
        help="mIoU (default), oIoU, P@0.5 ... or, for gRefCOCO, gIoU ...",
    )
    args = parser.parse_args()
    files = sorted(args.rows.glob(f"*/{EVALUATION}"))
    if not files:
        print(f"there is no finished row in {args.rows}: row.py makes them", file=sys.stderr)
        return 1
    try:
        found = collect(files, args.metric)
    except KeyError as error:
        print(f"the rows in {args.rows} do not all have the metric {error}", file=sys.stderr)
        return 1
    for number, (dataset, (ours, published)) in enumerate(found.items()):
        print("\n" * bool(number) + "\n".join(table(dataset, args.metric, ours, published)))
    return 0


def collect(files: list[Path], metric: str) -> dict[str, tuple[dict[str, Line], dict[str, Line]]]:
    """Return our lines and the published ones of every data set."""
    found: dict[str, tuple[dict[str, Line], dict[str, Line]]] = {}
    names: dict[str, str] = {}  # of every recipe, the seed aside
    for file in files:
        name = re.sub(r"-seed-\d+$", "", file.parent.name)
        recipe = file.with_name("recipe.json")
        options = json.loads(recipe.read_text()) if recipe.exists() else {}
        same = json.dumps([name, {**options, "seed": None}], sort_keys=True)
        # A folder that differs in more than its seed is a row of its own, by its whole name.
        name = names.setdefault(same, file.parent.name if name in names.values() else name)
        for record in reference_protocol(json.loads(file.read_text())["results"]):
            ours, published = found.setdefault(record["dataset"], ({}, {}))
            line = ours.setdefault(name, {}).setdefault(record["split"], [])
            line.append(100 * record["metrics"][metric])
            for figure in record["published_by_others"]:
                if figure["metric"] == metric:
                    label = f"published: {figure['method']} ({figure['source']})"
                    published.setdefault(label, {})[record["split"]] = [figure["percent"]]
    return found


def reference_protocol(records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Leave out what the reference does not compute: every sentence of val."""
    for record in records:
        if record["sentences"] == ("first" if record["split"] == "val" else "every"):
            yield record


def table(
    dataset: str, metric: str, ours: dict[str, Line], published: dict[str, Line]
) -> Iterator[str]:
    """Lay out one data set's lines."""
    splits = list(dict.fromkeys(split for line in ours.values() for split in line))
    yield f"| {dataset}, {metric} in percent | {' | '.join(splits)} |"
    yield "| --- |" + " --- |" * len(splits)
    for name, line in {**{f"**{n}**": line for n, line in ours.items()}, **published}.items():
        yield f"| {name} | {' | '.join(cell(line.get(split, [])) for split in splits)} |"


def cell(figures: list[float]) -> str:
    """Write the mean, with its spread where there are several seeds."""
    if not figures:
        return ""
    if len(figures) == 1:
        return f"{figures[0]:.2f}"
    spread = statistics.stdev(figures)
    return f"{statistics.mean(figures):.2f} +- {spread:.2f} ({len(figures)} seeds)"


if __name__ == "__main__":
    sys.exit(main())
