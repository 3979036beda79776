"""The page of a study: one HTML file that holds its plots and pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from bridger import __version__
from bridger.evaluation.page_parts import document, table
from bridger.studies.results import StudyResults
from bridger.studies.sections import Plot, Section
from bridger.studies.store import Store, picture_file

MEANT = "what is meant"

_STYLE = """
.warning { border-left: 4px solid #c25100; background: #fdf1e7; padding: 0.5rem 0.8rem; }
.plots { display: grid; gap: 1rem 1.2rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.plots figure:only-child { grid-column: 1 / -1; max-width: 46rem; }
.answers { display: grid; gap: 0.7rem;
  grid-template-columns: repeat(auto-fill, minmax(min(45%, 10rem), 1fr)); }
summary { cursor: pointer; margin-top: 1rem; }
"""


def page(results: StudyResults, sections: Sequence[Section]) -> str:
    """Return the page.

    Args:
        results: of the study.
        sections: of its report.
    """
    body = [f"<h1>{escape(results.name)}</h1>", f"<p>{escape(results.note)}</p>"]
    body += [f'<p class="warning">{escape(warning)}</p>' for warning in results.warnings]
    for place, section in enumerate(sections):
        if place == len(sections) - 1:  # before where figures come from
            body += _pictures(results)
        body += _section(section)
    body.append(f'<p class="note">bridger {escape(__version__)}</p>')
    return document(f"bridger: {results.name}", body, _STYLE)


def _section(section: Section) -> Iterator[str]:
    yield f"<h2>{escape(section.title)}</h2>"
    yield from (f"<p>{escape(words)}</p>" for words in section.words)
    if section.plots:
        yield '<div class="plots">'
        yield from map(_plot, section.plots)
        yield "</div>"
    yield from map(table, section.tables)
    for long in section.long:
        yield f"<details><summary>{escape(long.title)}</summary>\n{table(long)}\n</details>"


def _plot(plot: Plot) -> str:
    data = _embedded("svg+xml", plot.svg.encode("utf-8"))
    caption = escape(plot.caption)
    return f'<figure><img src="{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _pictures(results: StudyResults) -> Iterator[str]:
    """Yield what the first run of every row answers to the questions of the store."""
    if not results.runs:
        return
    first = results.runs[0]
    store, data = Store(first.folder.parent.parent), first.result["samples"]["data"]
    shown = [
        (question, list(_answers(results, number, store.questions_folder(data) / f"{number}.jpg")))
        for number, question in enumerate(store.questions(data))
    ]
    if not any(answers for _, answers in shown):
        return
    yield "<h2>The same words under each row</h2>"
    yield '<p class="note">The run of the first seed of each.</p>'
    for question, answers in shown:
        yield '<div class="case">'
        yield f'<p class="sentence">{escape(question["words"])}</p>'
        yield f'<p class="note">{escape(question["split"])}, {escape(question["image"])}</p>'
        yield '<div class="answers">'
        yield from answers
        yield "</div></div>"


def _answers(results: StudyResults, number: int, meant: Path) -> Iterator[str]:
    """Yield what is meant, and what each row answers, of those that were drawn."""
    files = {row.name: row.runs[0].folder / picture_file(number) for row in results.measured}
    drawn = {name: file for name, file in files.items() if file.is_file()}
    if drawn and meant.is_file():
        drawn = {MEANT: meant, **drawn}
    for name, file in drawn.items():
        address = _embedded("jpeg", file.read_bytes())
        yield (
            f'<figure><img src="{address}" alt="{escape(name)}" loading="lazy">'
            f"<figcaption>{escape(name)}</figcaption></figure>"
        )


def _embedded(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
