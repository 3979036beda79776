"""A page of evaluations of a head: their tables, and the best and worst cases as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridger import __version__
from bridger._files import staging
from bridger.evaluation.comprehension import ComprehensionEvaluation
from bridger.evaluation.page_parts import (
    PAGE,
    PICTURES,
    case,
    document,
    plain,
    stem_of,
    table,
)
from bridger.evaluation.summary import HeadEvaluation, tables
from bridger.model import BridgedModel

if TYPE_CHECKING:
    from bridger.tasks import Task


def write_head_page(
    folder: Path,
    task: Task,
    model: BridgedModel,
    judged: Sequence[tuple[Any, HeadEvaluation]],
    adapter: str,
    *,
    head: str,
    count: int = 12,
) -> Path:
    """Write the page and its pictures; what a page that was there before had shown goes.

    The cases are computed again one by one, as `Task.draw` draws them.

    Args:
        folder: where to; made where it is not there.
        task: what was judged.
        model: the model that was judged.
        judged: evaluations with what they judged.
        adapter: its name.
        head: which head answered.
        count: best and worst cases of each split.

    Returns:
        The page's file.
    """
    evaluations = [evaluation for _, evaluation in judged]
    splits = ", ".join(f"{each.name} {each.split}" for each in evaluations)
    folder.mkdir(parents=True, exist_ok=True)
    with staging(folder) as fresh:
        (fresh / PICTURES).mkdir()
        body = [
            f"<h1>{escape(adapter)}, evaluated</h1>",
            f"<p>{escape(task.name)} on {escape(splits)}.</p>",
            f'<p class="note">bridger {escape(__version__)}.</p>',
            *(table(each) for each in tables(evaluations, adapter)),
        ]
        for data, evaluation in judged:
            ranked = _ranked(evaluation)
            for which, cases in (("worst", ranked[:count]), ("best", ranked[::-1][:count])):
                split = f"{evaluation.name} {evaluation.split}"
                body.append(f"<h2>{escape(f'{split}: the {which} cases')}</h2>")
                for place, (index, title, about) in enumerate(cases, 1):
                    predicted, truth = task.draw(model, data, head, index)
                    path = data[index].picture
                    views = {"the picture": plain(path), "true": truth, "found": predicted}
                    stem = stem_of(evaluation.name, evaluation.split, which, place)
                    body.append(case(fresh / PICTURES, stem, title, [about, path.name], views))
        (fresh / PAGE).write_text(document(f"bridger evaluate {adapter}", body), encoding="utf-8")
    return folder / PAGE


def _ranked(evaluation: HeadEvaluation) -> list[tuple[int, str, str]]:
    """Return the cases, the worst first: index in the data set, what it is, how well it went."""
    if isinstance(evaluation, ComprehensionEvaluation):
        # Of a ref the first sentence is drawn, and of a picture one ref.
        first = sorted((c for c in evaluation.cases if c.order == 0), key=lambda c: c.iou)
        of_picture = {each.picture: each for each in reversed(first)}
        worst = sorted(of_picture.values(), key=lambda each: each.iou)
        return [(each.index, each.sentence, f"IoU {each.iou:.3f}") for each in worst]
    scores = evaluation.scores()
    order = [int(i) for i in np.argsort(scores, kind="stable") if not np.isnan(scores[i])]
    pictures = [evaluation.cases[i].picture for i in order]
    said = [f"{evaluation.scored} {scores[i]:.3f}" for i in order]
    return list(zip(order, pictures, said, strict=True))
