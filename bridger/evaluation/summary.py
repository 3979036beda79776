"""Evaluations of heads as tables for people and as records for programs.

Referring segmentation has more to tell, and a report of its own: `bridger.evaluation.report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridger.evaluation.comprehension import ComprehensionEvaluation
from bridger.evaluation.labelled import LabelledEvaluation
from bridger.evaluation.table import LEVEL, Table, percent, with_interval

HeadEvaluation = LabelledEvaluation[Any] | ComprehensionEvaluation

SHOWN = 5
"""Of the classes as many of the best and of the worst are shown."""


def tables(evaluations: Sequence[HeadEvaluation], adapter: str) -> list[Table]:
    """Return the tables of some evaluations of one task: all figures, then classes.

    Args:
        evaluations: of an adapter on some splits.
        adapter: its name.
    """
    per_split = [
        _classes(evaluation)
        for evaluation in evaluations
        if isinstance(evaluation, LabelledEvaluation)
    ]
    return [_figures(evaluations), *per_split]


def record(evaluation: HeadEvaluation) -> dict[str, Any]:
    """Return everything but the single pictures or expressions, for JSON; shares are 0 to 1."""
    about: dict[str, Any] = {"dataset": evaluation.name, "split": evaluation.split}
    if isinstance(evaluation, LabelledEvaluation):
        about["pictures"] = len(evaluation)
        trained = dict(zip(evaluation.classes, evaluation.seen, strict=True))
        classes = evaluation.per_class()
        about["per_class"] = {name: {**classes[name], "seen": trained[name]} for name in classes}
    else:
        about |= {"sentences": evaluation.sentences, "expressions": len(evaluation)}
    return {
        **about,
        "metrics": evaluation.metrics(),
        "intervals": {"level": LEVEL, "resampled": "pictures", **evaluation.bootstrap(LEVEL)},
    }


def _figures(evaluations: Sequence[HeadEvaluation]) -> Table:
    first = evaluations[0]
    metrics = [evaluation.metrics() for evaluation in evaluations]
    intervals = [
        {name: ends for name, ends in each.bootstrap(LEVEL).items() if name == each.headline}
        for each in evaluations
    ]
    names = list(dict.fromkeys(name for each in metrics for name in each))
    notes = ["in brackets: 95 % bootstrap intervals over pictures"] if any(intervals) else []
    if isinstance(first, ComprehensionEvaluation):
        unit = "first sentences" if first.sentences == "first" else "sentences"
    else:
        unit = "pictures"
        notes.append("seen: classes that the head was trained on, unseen: others")
    return Table(
        "figures in percent",
        ["data set", "split", unit, *names],
        [
            [each.name, each.split, str(len(each)), *(with_interval(n, own, ends) for n in names)]
            for each, own, ends in zip(evaluations, metrics, intervals, strict=True)
        ],
        note="; ".join(notes),
    )


def _classes(evaluation: LabelledEvaluation[Any]) -> Table:
    """Show all classes, or of many the best and the worst, by the first of their figures."""
    found = evaluation.per_class()
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    trained = dict(zip(evaluation.classes, evaluation.seen, strict=True))
    by = names[0] if names else ""
    ranked = sorted(found, key=lambda each: (-found[each].get(by, 0.0), each))
    which, shown = "classes", ranked
    if len(ranked) > 2 * SHOWN:
        which = f"the best {SHOWN} and the worst {SHOWN} of {len(ranked)} classes"
        shown = [*ranked[:SHOWN], *ranked[-SHOWN:]]
    return Table(
        f"{evaluation.name} {evaluation.split}: {which}, in percent",
        ["class", *names, "trained on"],
        [
            [
                each,
                *(percent(found[each][n]) if n in found[each] else "-" for n in names),
                "yes" if trained[each] else "no",
            ]
            for each in shown
        ],
    )
