"""Write docs/evidence-tables.md: all that the studies of docs/evidence.md found, table by table.

    python examples/evidence.py

It reads the runs that are kept in docs/evidence, and makes none: `bridger compare` and `bridger
ablate` with `--out docs/evidence` do. These write reports with plots, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bridger._json import read_json
from bridger.evaluation.table import Table
from bridger.studies.conduct import Conduct
from bridger.studies.results import METRICS, StudyResults
from bridger.studies.scheduling import Machine
from bridger.studies.store import RESULT_FILE, Plan, Run, Store
from bridger.studies.study import Study
from bridger.studies.tables import (
    DIFFERENCES,
    cost_table,
    difference_table,
    environment_table,
    main_table,
    markdown,
    missing_table,
    plain,
    rates_table,
)

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "evidence-tables.md"
STUDIES = (
    "compare",
    "positions",
    "interactor",
    "width",
    "zoom",
    "carry",
    "alignment",
    "padding",
    "tower-positions",
    "start",
)
STORES = {"positions": "h100/runs"}
"""Where a study's runs lie in docs/evidence, if not with the others: those of one study are of one
machine."""


class Kept(Conduct):
    """A study whose runs were made, on data that need not be there any more."""

    def __init__(self, name: str) -> None:
        root = DOCS / "evidence" / STORES.get(name, "runs")
        super().__init__(Study.load(name), Path(), Store(root), Machine(1, 1))
        first = read_json(min(root.glob(f"*/seed-0/{RESULT_FILE}")))
        self.judged = tuple(first["splits"])
        self.fingerprints = first["samples"]["data"]
        self.planned: list[Plan] = []
        self.made = 0

    def __call__(self) -> StudyResults:
        """Return the rows; those without any run say that it is still to be made."""
        results = super().__call__()
        lacking = {plan.setting for plan in self.planned} - {run.setting for run in results.runs}
        rows = (replace(r, reason="not made yet") if r.name in lacking else r for r in results.rows)
        return replace(results, rows=tuple(rows))

    def _ask(self) -> None:
        """Nothing is drawn."""

    def make(self, plans: Sequence[Plan]) -> list[Run | None]:
        """Return the runs that are there."""
        found = [self.store.find(plan) for plan in plans]
        self.planned += plans
        self.made += sum(run is not None for run in found)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write it")
    args = parser.parse_args()
    args.page.write_text("\n".join(page()) + "\n", encoding="utf-8")
    print(f"wrote {args.page}")


def page() -> Iterator[str]:
    """Yield the lines of the page."""
    yield "# Evidence: all tables"
    yield ""
    yield "Written by `python examples/evidence.py` from the runs that are kept in `docs/evidence`."
    yield "What they say, and how they were measured: [Evidence](evidence.md)."
    yield ""
    yield plain(DIFFERENCES)
    yield ""
    for name in STUDIES:
        kept = Kept(name)
        results = kept()
        yield f"## {name}"
        yield ""
        yield plain(results.note)
        yield ""
        if kept.made < len(kept.planned):
            yield f"**Not finished: {kept.made} of {len(kept.planned)} runs.**"
            yield ""
        yield from (f"{plain(warning)}\n" for warning in results.warnings)
        if results.measured:
            for table in tables(results):
                yield from markdown(table)


def tables(results: StudyResults) -> Iterator[Table]:
    """Yield the tables of a study."""
    yield main_table(results)
    missing = missing_table(results)
    if missing is not None:
        yield missing
    if results.differences:
        yield from (difference_table(results, metric) for metric in METRICS)
    yield cost_table(results)
    rates = rates_table(results)
    if rates is not None:
        yield rates
    yield folders_table(results)
    yield environment_table(results)


def folders_table(results: StudyResults) -> Table:
    """Return where the runs of each row lie."""
    rows = [
        [row.name, " ".join(sorted({run.folder.parent.name for run in row.runs}))]
        for row in results.measured
    ]
    return Table("folders of the runs, each with one for every seed", ["", "folder"], rows)


if __name__ == "__main__":
    main()
