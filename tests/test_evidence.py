"""The tables of the evidence are what the kept runs say."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator

from helpers_examples import EXAMPLES

DOCS = EXAMPLES.parent / "docs"


def test_the_page_of_tables_says_what_the_runs_found() -> None:
    page: Callable[[], Iterator[str]] = runpy.run_path(str(EXAMPLES / "evidence.py"))["page"]
    assert (DOCS / "evidence-tables.md").read_text() == "\n".join(page()) + "\n"
