"""Reports of studies: tables, Markdown and a page."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from helpers_page import HOSTILE, Page
from helpers_study import COMPARED, FEW, SPLITS, Made, drawing, row_of, write_study

from bridger.evaluation.table import Links, Table
from bridger.studies import sections
from bridger.studies.drawing import NO_PLOTS
from bridger.studies.report import PLOTS, write_report
from bridger.studies.results import METRICS, Row, StudyResults
from bridger.studies.tables import (
    cost_table,
    difference_table,
    main_table,
    markdown,
    missing_table,
    rates_table,
    runs_table,
)

# Tables.


def test_tables_have_every_row_that_was_measured(results: StudyResults, tmp_path: Path) -> None:
    names = [row.name for row in results.measured]
    assert len(names) == 3
    shown = main_table(results, tmp_path)
    assert [row[0].removesuffix(" (reference)") for row in shown.rows] == names
    assert [row[0] for row in cost_table(results).rows] == names
    for metric in METRICS:
        compared = [row[0] for row in difference_table(results, metric).rows]
        assert compared == [name for name in names if name != results.reference]
    each = runs_table(results, tmp_path)
    assert [row[:2] for row in each.rows] == [[n, str(s)] for n in names for s in range(3)]
    missing = missing_table(results)
    assert missing and missing.rows == [[COMPARED[-1].name, COMPARED[-1].reason]]
    for table in (shown, each, cost_table(results), missing):
        assert {len(row) for row in table.rows} == {len(table.header)}


def test_cells_say_what_was_found(results: StudyResults) -> None:
    row = row_of(results, "Bridgers, 64 wide")
    cells = dict(zip(main_table(results).header, main_table(results).rows[2], strict=True))
    mean, deviation = row.spread("testB", "mIoU")
    assert cells["mIoU testB"] == f"{100 * mean:.2f} ± {100 * deviation:.2f}"
    assert (cells["trained, in towers"], cells["seeds"]) == ("121,000", "0 1 2")
    found = results.differences["the head alone", "val", "mIoU"]
    cell = difference_table(results, "mIoU").rows[0][1]
    assert found.high < 0 and cell.startswith(f"{100 * found.spread.mean:.2f} ± ")
    assert cell.endswith(f"[{100 * found.low:.2f}, {100 * found.high:.2f}] ▼")
    rates = rates_table(results)
    assert rates and rates.rows[0][2:] == ["30.00", "33.00", "31.00", "0.001", "7 min"]


def test_costs_of_several_machines_say_where_each_was_measured(results: StudyResults) -> None:
    assert "on" not in cost_table(results).header
    row = results.rows[0]
    environment = {"machine": "another"}
    moved = [replace(r, result={**r.result, "environment": environment}) for r in row.runs[1:]]
    mixed = replace(row, runs=(row.runs[0], *moved))
    table = cost_table(replace(results, rows=(mixed, *results.rows[1:])))
    assert [row[table.header.index("on")] for row in table.rows] == [
        "a machine x 2; another",
        *["a machine x 2"] * 2,
    ]


def test_a_single_seed_has_no_spread(tmp_path: Path) -> None:
    results = write_study(tmp_path, FEW[:2], seeds=1)
    table = main_table(results)
    assert "±" not in "".join(cell for row in table.rows for cell in row)
    assert "±" not in difference_table(results, "mIoU").rows[0][1]


def test_markdown_keeps_a_table_a_table() -> None:
    hostile = Table("a|b", ["x", "y"], [["a | b\nc", Links({"0": "runs/a"})], ["*_`<b>", "[a](b)"]])
    lines = [line for line in markdown(hostile) if line.startswith("|")]
    assert lines[2:] == [
        "| a \\| b c | [0](runs/a) |",
        "| \\*\\_\\`\\<b\\> | [a\\](b) |",
    ]


# Reports.


def links_in(text: str) -> list[str]:
    return re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", text)


@drawing
@pytest.mark.slow
def test_the_page_holds_everything_and_leads_to_every_run(
    results: StudyResults, tmp_path: Path
) -> None:
    folder = results.runs[0].folder.parent.parent.parent / "reports" / "some study"
    write_report(folder, results)
    page = Page((folder / "report.html").read_text())
    assert "script" not in page.tags and "link" not in page.tags and "b" not in page.tags
    sources = page.values("img", "src")
    assert sources and all(source.startswith("data:image/") for source in sources)
    pictures = [s for s in sources if s.startswith("data:image/jpeg")]
    assert len(pictures) == 2 * len(results.measured)
    assert "the left <b>cup</b> & saucer" in page.words
    linked = {(folder / unquote(a)).resolve() for a in page.values("a", "href")}
    assert linked == {run.folder.resolve() for run in results.runs}
    text = (folder / "report.md").read_text()
    assert {(folder / unquote(a)).resolve() for a in links_in(text)} == linked
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    there = {f"{PLOTS}/{path.name}" for path in (folder / PLOTS).iterdir()}
    assert set(shown) == there and len(shown) == len(sources) - len(pictures)
    for words in ("Compacter", "the library adapters asks", "At each seed, all runs saw"):
        assert any(words in said for said in page.words) and words in text
    # The same results make the same files; what was there before goes.
    before = (folder / "report.html").read_bytes()
    (folder / PLOTS / "old.svg").touch()
    write_report(folder, results)
    assert (folder / "report.html").read_bytes() == before
    assert not (folder / PLOTS / "old.svg").exists()


def test_without_matplotlib_there_are_tables_and_pictures(
    results: StudyResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "can_plot", lambda: False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_report(tmp_path, results)
    page, text = Page((tmp_path / "report.html").read_text()), (tmp_path / "report.md").read_text()
    assert NO_PLOTS in page.words and "pip install 'bridger-peft[studies]'" in text
    assert not any("svg" in source for source in page.values("img", "src"))
    assert "![" not in text and list((tmp_path / PLOTS).iterdir()) == []
    assert len(page.values("img", "src")) == 2 * len(results.measured)


def test_names_and_warnings_are_shown_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "can_plot", lambda: False)
    made = [Made(HOSTILE), Made("b", reason=HOSTILE)]
    results = write_study(tmp_path / "runs", made, seeds=1)
    odd = replace(results, name=HOSTILE, note=HOSTILE, quick=True)
    write_report(tmp_path / "out", odd)
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "script" not in page.tags and "b" not in page.tags
    assert page.words.count(HOSTILE) >= 4
    assert ("p", "class", "warning") in page.attributes
    text = (tmp_path / "out" / "report.md").read_text()
    assert "A quick run" in text and "<script>" not in text


def test_a_study_without_a_finished_run_says_why(tmp_path: Path) -> None:
    rows = (Row("a", reason="its runs ended with an error"), Row("b"))
    write_report(tmp_path, StudyResults("s", "", "a", SPLITS, rows))
    text = (tmp_path / "report.md").read_text()
    assert "| a | its runs ended with an error |" in text and "| b | not finished |" in text


@pytest.mark.slow
def test_matplotlib_is_imported_when_something_is_drawn() -> None:
    code = "import bridger.studies.report, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
