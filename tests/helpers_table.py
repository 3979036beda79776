"""Writes what the conformance suite found into docs/towers.md, between two marks."""

from __future__ import annotations

import re
from pathlib import Path

BEGIN, END = "<!-- conformance: begin -->", "<!-- conformance: end -->"
_NODE = re.compile(r"test_conformance\.py::test_(\w+)\[(.+)\]$")
_SIGNS = {"passed": "yes", "skipped": "-", "failed": "**no**", "xfailed": "no"}


class TowersTable:
    """Collects outcomes by row and by invariant."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, dict[str, str]] = {}
        self.notes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: object) -> None:
        """Keep one outcome, of the test itself or of a skip at its start."""
        node = _NODE.search(str(getattr(report, "nodeid", "")))
        outcome = str(getattr(report, "outcome", ""))
        if node is None or (getattr(report, "when", "") != "call" and outcome == "passed"):
            return
        name, row = node.groups()
        if hasattr(report, "wasxfail") and outcome == "skipped":
            outcome = "xfailed"
            self.notes[f"{row}, {name}"] = str(report.wasxfail).removeprefix("reason: ")
        self.cells.setdefault(row, {})[name] = _SIGNS[outcome]

    def pytest_sessionfinish(self) -> None:
        """Replace what stands between the marks."""
        from test_conformance import INVARIANTS

        titles = list(INVARIANTS.values())
        lines = [f"| class | {' | '.join(titles)} |", "| --- " * (len(titles) + 1) + "|"]
        for row, cells in self.cells.items():
            signs = (cells.get(name, "not run") for name in INVARIANTS)
            lines.append(f"| {row} | {' | '.join(signs)} |")
        lines += ["", *(f"- {where}: {why}" for where, why in sorted(self.notes.items()))]
        text = self.path.read_text()
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        body = "\n".join(lines).rstrip()
        self.path.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}")
