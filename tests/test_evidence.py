"""The tables of the evidence are what the kept runs say."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers_examples import EXAMPLES

DOCS = EXAMPLES.parent / "docs"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / "evidence.py"))


def test_the_page_of_tables_says_what_the_runs_found(script: dict[str, Any]) -> None:
    page: Callable[[], Iterator[str]] = script["page"]
    assert (DOCS / "evidence-tables.md").read_text() == "\n".join(page()) + "\n"
