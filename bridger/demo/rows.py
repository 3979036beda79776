"""What was found as rows of a table, whatever head found it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

MOST_ROWS = 100
MOST_LETTERS = 500
NAMES = {"words": "What", "score": "Score", "share": "Share", "box": "Box"}
"""Titles of the columns that the library's heads have."""


def rows_of(result: Any, scale: tuple[float, float] = (1.0, 1.0)) -> list[dict[str, Any]]:
    """Return a result's rows: of what it says it has found, or of what it is.

    Args:
        result: what a head's `results` made.
        scale: (x, y) factors from the pixels of the result to those of the picture.
    """
    if hasattr(result, "found"):
        rows = [dict(row) for row in result.found()]
    elif isinstance(result, Mapping):
        rows = [{"words": key, "value": value} for key, value in result.items()]
    elif isinstance(result, Sequence) and not isinstance(result, str):
        rows = [dict(e) if isinstance(e, Mapping) else {"value": e} for e in result]
    else:
        rows = [{"value": result}]
    if scale != (1.0, 1.0):
        for row in rows:
            if "box" in row:
                row["box"] = [edge * scale[at % 2] for at, edge in enumerate(row["box"])]
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table in HTML; everything in it is escaped."""
    if not rows:
        return '<p class="hint">Nothing found.</p>'
    columns = list(dict.fromkeys(name for row in rows for name in row))
    titles = "".join(f"<th>{escape(_title(name))}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(row, name)}</td>" for name in columns) + "</tr>"
        for row in rows[:MOST_ROWS]
    )
    more = len(rows) - MOST_ROWS
    rest = f'<p class="hint">and {more} more, in the download</p>' if more > 0 else ""
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>{rest}"


def _title(name: Any) -> str:
    return NAMES.get(str(name), str(name).replace("_", " ").capitalize())


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name, "")
    absent = row.get("share") == 0 and name in ("score", "share", "box")
    if absent:
        return "nothing found" if name == "score" else ""
    if name == "share" and isinstance(value, (float, np.floating)):
        return f"{100 * value:.1f} %"
    if name == "box":
        return escape(", ".join(f"{edge:.0f}" for edge in value))
    if isinstance(value, (float, np.floating)):
        return f"{value:.2f}"
    text = str(value)
    return escape(text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + " ...")
