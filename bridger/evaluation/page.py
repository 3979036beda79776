"""A page of an evaluation of masks: its tables, and its best and worst cases as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from bridger import __version__
from bridger._files import staging
from bridger.data import ReferringDataset
from bridger.evaluation.page_parts import (
    PAGE,
    PICTURES,
    SIDE,
    case,
    document,
    plain,
    stem_of,
    table,
)
from bridger.evaluation.report import SENTENCES, tables
from bridger.evaluation.result import Case, Evaluation
from bridger.model import BridgedModel
from bridger.predictions import Prediction


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
        body += [table(each) for each in tables(evaluations, adapter)]
        shown = set()
        for dataset, evaluation in judged:
            if (evaluation.name, evaluation.split) in shown:
                continue
            shown.add((evaluation.name, evaluation.split))
            cases = _Cases(fresh / PICTURES, model, dataset, evaluation, head)
            body += cases.section("worst", evaluation.worst(count))
            body += cases.section("best", evaluation.best(count))
        (fresh / PAGE).write_text(document(f"bridger evaluate {adapter}", body), encoding="utf-8")
    return folder / PAGE


def _heading(evaluations: Sequence[Evaluation], adapter: str) -> str:
    splits = dict.fromkeys(f"{e.name} {e.split}" for e in evaluations)
    return (
        f"<h1>{escape(adapter)}, evaluated</h1>\n"
        f"<p>On {escape(', '.join(splits))}.</p>\n"
        f'<p class="note">bridger {escape(__version__)}. IoU = I / (U + 1e-6) at the size of each '
        f"picture; mIoU is the mean over expressions, oIoU the sum of I over the sum of U, P@X the "
        f"share of expressions with an IoU above X.</p>"
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
        for place, (shown_case, score) in enumerate(ranked, 1):
            stem = stem_of(evaluation.name, evaluation.split, which, place)
            yield self._case(shown_case, score, stem)

    def _case(self, shown: Case, score: float, stem: str) -> str:
        """Write one case: the picture, what is meant, what was found."""
        sample = self.dataset[shown.index]
        found: Any = self.model.predict(
            sample.image_path, shown.sentence, self.evaluation.threshold, self.head
        )
        meant = Prediction.from_probabilities(sample.mask[None].astype(np.float32), 0.5)
        views = {
            "the picture": plain(sample.image_path),
            "meant": meant.overlay(sample.image_path, least_side=SIDE),
            "found": found.overlay(sample.image_path, least_side=SIDE),
        }
        about = [f"IoU {score:.3f}", f"{shown.area} pixels meant ({shown.object_size})"]
        about += [shown.kind] if shown.kind else []
        about += [shown.source, Path(shown.image).name, f"ref {shown.ref_id}"]
        return case(self.folder, stem, shown.sentence, about, views)
