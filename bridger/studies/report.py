"""The report of a study: Markdown, and a page that is one file, of the same sections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bridger import __version__
from bridger._files import staging
from bridger.evaluation.page_parts import PAGE
from bridger.studies.page import page
from bridger.studies.results import StudyResults
from bridger.studies.sections import Section, sections_of
from bridger.studies.tables import markdown, plain

REPORT, PLOTS = "report.md", "report_plots"


def write_report(folder: Path, results: StudyResults) -> None:
    """Write report.md with its plots beside it, and report.html, which holds all that it shows.

    Links lead to the folders of the runs. Without matplotlib there are no plots, and the report
    says so.

    Args:
        folder: where to; made where it is not there. A report that was there before goes.
        results: of the study.

    Raises:
        ValueError: runs did not judge the same expressions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = list(sections_of(results, folder))
    with staging(folder) as fresh:
        (fresh / PLOTS).mkdir()
        for plot in (plot for section in sections for plot in section.plots):
            (fresh / PLOTS / plot.file).write_text(plot.svg, encoding="utf-8")
        text = "\n".join(_markdown(results, sections))
        (fresh / REPORT).write_text(text, encoding="utf-8")
        (fresh / PAGE).write_text(page(results, sections), encoding="utf-8")


def _markdown(results: StudyResults, sections: Sequence[Section]) -> Iterator[str]:
    yield f"# {plain(results.name)}\n"
    yield f"{plain(results.note)}\n"
    for warning in results.warnings:
        yield f"**{plain(warning)}**\n"
    for section in sections:
        yield f"## {plain(section.title)}\n"
        yield from (f"{plain(words)}\n" for words in section.words)
        for plot in section.plots:
            yield f"![{plain(plot.caption)}]({PLOTS}/{plot.file})\n"
        for table in (*section.tables, *section.long):
            yield from markdown(table)
    yield f"bridger {__version__}"
    yield ""
