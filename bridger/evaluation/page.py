"""A page of an evaluation: its tables, and its best and worst cases as pictures.

One HTML file without scripts, and a folder of pictures beside it: it can be opened from disk,
and be sent to somebody as a folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridger import __version__
from bridger._files import staging
from bridger.data import ReferringDataset
from bridger.evaluation.report import SENTENCES, Table, tables
from bridger.evaluation.result import Case, Evaluation
from bridger.model import BridgedModel
from bridger.pictures import read_picture
from bridger.predictions import Prediction

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


def write_page(
    folder: Path,
    model: BridgedModel,
    judged: Sequence[tuple[ReferringDataset, Evaluation]],
    adapter: str,
    *,
    head: str | None = None,
    count: int = 12,
) -> Path:
    """Write the page and its pictures; what a page that was there before had shown goes.

    The cases are computed again one by one, since an evaluation keeps no masks.

    Args:
        folder: where to; made where it is not there.
        model: the model that was judged.
        judged: evaluations with what they judged. Cases are shown of every split once.
        adapter: its name.
        head: which head answered, where there are several.
        count: best and worst cases of each split, of as many pictures.

    Returns:
        The page's file.
    """
    evaluations = [evaluation for _, evaluation in judged]
    folder.mkdir(parents=True, exist_ok=True)
    with staging(folder) as fresh:
        (fresh / PICTURES).mkdir()
        body = [_heading(evaluations, adapter)]
        body += [_table(table) for table in tables(evaluations, adapter)]
        shown = set()
        for dataset, evaluation in judged:
            if (evaluation.name, evaluation.split) in shown:
                continue
            shown.add((evaluation.name, evaluation.split))
            cases = _Cases(fresh / PICTURES, model, dataset, evaluation, head)
            body += cases.section("worst", evaluation.worst(count))
            body += cases.section("best", evaluation.best(count))
        (fresh / PAGE).write_text(_document(f"bridger evaluate {adapter}", body), encoding="utf-8")
    return folder / PAGE


def _document(title: str, body: Sequence[str]) -> str:
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            *body,
            "</body>",
            "</html>",
            "",
        ]
    )


def _heading(evaluations: Sequence[Evaluation], adapter: str) -> str:
    splits = dict.fromkeys(f"{e.name} {e.split}" for e in evaluations)
    return (
        f"<h1>{escape(adapter)}, evaluated</h1>\n"
        f"<p>On {escape(', '.join(splits))}.</p>\n"
        f'<p class="note">bridger {escape(__version__)}. IoU = I / (U + 1e-6) at the size of each '
        f"picture; mIoU is the mean over expressions, oIoU the sum of I over the sum of U, P@X the "
        f"share of expressions with an IoU above X.</p>"
    )


def _table(table: Table) -> str:
    kind = ' class="published"' if table.published else ""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    note = f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll"><table{kind}>\n<caption>{escape(table.title)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>{note}"
    )


class _Cases:
    """Draws single expressions of one split."""

    def __init__(
        self,
        folder: Path,
        model: BridgedModel,
        dataset: ReferringDataset,
        evaluation: Evaluation,
        head: str | None,
    ) -> None:
        self.folder, self.model, self.dataset = folder, model, dataset
        self.evaluation, self.head = evaluation, head

    def section(self, which: str, ranked: Sequence[tuple[Case, float]]) -> Iterator[str]:
        """Write a heading and the cases below it."""
        evaluation = self.evaluation
        judged = SENTENCES[evaluation.sentences]
        split = escape(f"{evaluation.name} {evaluation.split}")
        yield f"<h2>{split}: the {which} cases</h2>"
        yield f'<p class="note">At most one of each picture. Judged: {judged}.</p>'
        for place, (case, score) in enumerate(ranked, 1):
            stem = re.sub("[^A-Za-z0-9]+", "-", f"{evaluation.name} {evaluation.split}")
            yield self._case(case, score, f"{stem}-{which}-{place:02}")

    def _case(self, case: Case, score: float, stem: str) -> str:
        """Write one case: the picture, what is meant, what was found."""
        sample = self.dataset[case.index]
        found: Any = self.model.predict(
            sample.image_path, case.sentence, self.evaluation.threshold, self.head
        )
        meant = Prediction.from_probabilities(sample.mask[None].astype(np.float32), 0.5)
        views = {
            "the picture": _plain(sample.image_path),
            "meant": meant.overlay(sample.image_path, least_side=SIDE),
            "found": found.overlay(sample.image_path, least_side=SIDE),
        }
        figures = [
            self._figure(view, f"{stem}-{place}.jpg", f"{name}: {case.sentence}", name)
            for place, (name, view) in enumerate(views.items())
        ]
        about = [f"IoU {score:.3f}", f"{case.area} pixels meant ({case.object_size})"]
        about += [case.kind] if case.kind else []
        about += [case.source, Path(case.image).name, f"ref {case.ref_id}"]
        return (
            f'<div class="case">\n<p class="sentence">{escape(case.sentence)}</p>\n'
            f'<p class="note">{escape(" · ".join(about))}</p>\n'
            f'<div class="views">\n' + "\n".join(figures) + "\n</div></div>"
        )

    def _figure(self, view: Image.Image, file: str, said: str, caption: str) -> str:
        view.thumbnail((SIDE, SIDE))
        view.save(self.folder / file, quality=88)
        return (
            f'<figure><img src="{PICTURES}/{file}" alt="{escape(said)}" width="{view.width}" '
            f'height="{view.height}" loading="lazy"><figcaption>{escape(caption)}</figcaption>'
            f"</figure>"
        )


def _plain(path: Path) -> Image.Image:
    """Read a picture as the overlays show it, small ones enlarged."""
    from PIL import Image

    picture = Image.fromarray(read_picture(path).permute(1, 2, 0).contiguous().numpy())
    factor = max(1.0, SIDE / max(picture.size))
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BICUBIC)
