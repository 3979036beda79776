"""The parts of a page: one HTML file without scripts, and a folder of pictures beside it.

It can be opened from disk, and be sent to somebody as a folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from bridger.evaluation.table import Links, Table
from bridger.pictures import read_picture

if TYPE_CHECKING:
    from PIL import Image

# Not "pictures", which is what people call a folder of their own: files of an older page go.
PAGE, PICTURES = "report.html", "report_pictures"
SIDE = 448  # pixels of the longer side of a shown picture

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff;
  max-width: 84rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
caption { text-align: left; font-weight: 600; padding: 1.2rem 0 0.4rem;
  white-space: nowrap; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #d8dee4; text-align: left;
  white-space: nowrap; }
th { background: #f3f5f7; }
table.published { background: #fbf6e9; border-left: 4px solid #c99a2e; }
table.published th { background: #f5ebd0; }
table.published tbody tr:first-child { background: #fff; font-weight: 600; }
.note { color: #57606a; font-size: 0.85rem; margin: 0.3rem 0 0; }
.case { border: 1px solid #d8dee4; border-radius: 6px; padding: 0.8rem; margin: 1rem 0;
  break-inside: avoid; }
.case p { margin: 0 0 0.5rem; } .sentence { font-weight: 600; overflow-wrap: anywhere; }
.views { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 0.6rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; }
figcaption { color: #57606a; font-size: 0.85rem; }
"""


def document(title: str, body: Sequence[str], style: str = "") -> str:
    """Return a whole page, with more rules of style where it has parts of its own."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}{style}</style>",
            "</head>",
            "<body>",
            *body,
            "</body>",
            "</html>",
            "",
        ]
    )


def table(shown: Table) -> str:
    """Return a table with its note."""
    kind = ' class="published"' if shown.published else ""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in shown.header)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in shown.rows
    )
    note = f'\n<p class="note">{escape(shown.note)}</p>' if shown.note else ""
    return (
        f'<div class="scroll"><table{kind}>\n<caption>{escape(shown.title)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>{note}"
    )


def _cell(cell: str) -> str:
    if not isinstance(cell, Links):
        return escape(cell)
    return " ".join(
        f'<a href="{escape(address)}">{escape(word)}</a>'
        for word, address in cell.addresses.items()
    )


def case(
    folder: Path, stem: str, title: str, about: Sequence[str], views: Mapping[str, Image.Image]
) -> str:
    """Write the views of a case to the page's folder of pictures, and return what shows it.

    Args:
        folder: of pictures.
        stem: of the files' names there.
        title: what the case is called.
        about: what is said about it.
        views: pictures by their captions, made smaller where they are larger than is shown.
    """
    figures = [
        _figure(folder, view, f"{stem}-{place}.jpg", f"{name}: {title}", name)
        for place, (name, view) in enumerate(views.items())
    ]
    return (
        f'<div class="case">\n<p class="sentence">{escape(title)}</p>\n'
        f'<p class="note">{escape(" · ".join(about))}</p>\n'
        f'<div class="views">\n' + "\n".join(figures) + "\n</div></div>"
    )


def _figure(folder: Path, view: Image.Image, file: str, said: str, caption: str) -> str:
    view.thumbnail((SIDE, SIDE))
    view.save(folder / file, quality=88)
    return (
        f'<figure><img src="{PICTURES}/{file}" alt="{escape(said)}" width="{view.width}" '
        f'height="{view.height}" loading="lazy"><figcaption>{escape(caption)}</figcaption>'
        f"</figure>"
    )


def stem_of(name: str, split: str, which: str, place: int) -> str:
    """Return how the files of a case are called."""
    return f"{re.sub('[^A-Za-z0-9]+', '-', f'{name} {split}')}-{which}-{place:02}"


def plain(path: Path) -> Image.Image:
    """Read a picture as the overlays show it, small ones enlarged."""
    from PIL import Image

    picture = Image.fromarray(read_picture(path).permute(1, 2, 0).contiguous().numpy())
    factor = max(1.0, SIDE / max(picture.size))
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BICUBIC)
