"""Evaluations as tables for people and as records for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bridger.evaluation.published import published_beside
from bridger.evaluation.result import SIZES, Evaluation, Stratum
from bridger.evaluation.table import LEVEL, Table, percent, with_interval

LABEL = ("data set", "split", "sentences", "count")
WITH_INTERVALS = ("mIoU", "oIoU", "gIoU", "cIoU")
SENTENCES = {"first": "first sentences", "every": "every sentence"}
STRATA: dict[Stratum, str] = {
    "size": "object size",
    "kind": "kind of expression",
    "source": "data set",
}
COCO_SIZES = (
    "; small is below 32 x 32 pixels of the true mask, large from 96 x 96 on, as in COCO's "
    "evaluation"
)


def label(evaluation: Evaluation) -> list[str]:
    """Return the cells that say what was judged: data set, split, sentences, how many."""
    said = SENTENCES[evaluation.sentences]
    return [evaluation.name, evaluation.split, said, str(len(evaluation))]


def tables(evaluations: Sequence[Evaluation], adapter: str) -> list[Table]:
    """Return the tables of some evaluations: ours, then ours in parts, then others' beside them.

    Args:
        evaluations: of an adapter on some splits.
        adapter: its name.
    """
    made = [_results(evaluations, general=False)]
    usual, general = (
        [each for each in evaluations if each.generalized == kind] for kind in (False, True)
    )
    if general:
        made.append(_results(general, general=True))
    same = [group for group in (usual, general) if group]
    made += [_best_thresholds(group) for group in same]
    made += [table for name in STRATA for group in same for table in _parts(_whole(group), name)]
    whole = _whole(evaluations)
    made += [table for metric in ("mIoU", "oIoU") for table in _published(whole, adapter, metric)]
    return made


def record(evaluation: Evaluation) -> dict[str, Any]:
    """Return everything but the single expressions, for JSON; shares are from 0 to 1."""
    best = evaluation.best_threshold()
    parts = {name: evaluation.by(name) for name in STRATA}
    return {
        "dataset": evaluation.name,
        "split": evaluation.split,
        "sentences": evaluation.sentences,
        "refs": evaluation.refs,
        "expressions": len(evaluation),
        "threshold": evaluation.threshold,
        "metrics": evaluation.metrics(),
        "intervals": {"level": LEVEL, "resampled": "pictures", **evaluation.bootstrap(LEVEL)},
        "loss": evaluation.loss,
        "chosen_on_this_split": {"threshold": best, "metrics": evaluation.at(best).metrics()},
        "by": {
            name: {
                part: {"expressions": len(those), "metrics": those.metrics()}
                for part, those in found.items()
            }
            for name, found in parts.items()
        },
        "published_by_others": [asdict(figure) for figure in published_beside(evaluation)],
    }


def _results(evaluations: Sequence[Evaluation], *, general: bool) -> Table:
    metrics = [evaluation.metrics() for evaluation in evaluations]
    intervals = [
        {n: ends for n, ends in evaluation.bootstrap(LEVEL).items() if n in WITH_INTERVALS}
        for evaluation in evaluations
    ]
    usual = {name for name in metrics[0] if name in ("mIoU", "oIoU") or name.startswith("P@")}
    # A split in which everything means something has no N-acc: every name that any split has.
    names = list(dict.fromkeys(n for each in metrics for n in each if (n in usual) != general))
    cells = [
        [*label(evaluation), *(with_interval(n, own, ends) for n in names)]
        for evaluation, own, ends in zip(evaluations, metrics, intervals, strict=True)
    ]
    what = "gRefCOCO's figures" if general else "figures"
    note = "in brackets: 95 % bootstrap intervals over pictures"
    if not general and any(evaluation.generalized for evaluation in evaluations):
        note += "; expressions that mean nothing count as missed here"
    return Table(
        f"{what} in percent, at threshold {evaluations[0].threshold:g}",
        [*LABEL, *names],
        cells,
        note=note,
    )


def _best_thresholds(evaluations: Sequence[Evaluation]) -> Table:
    names = ("gIoU", "cIoU") if evaluations[0].generalized else ("mIoU", "oIoU")
    lines = []
    for evaluation in evaluations:
        best = evaluation.best_threshold()
        metrics = evaluation.at(best).metrics()
        figures = (percent(metrics[name]) if name in metrics else "-" for name in names)
        lines.append([*label(evaluation), f"{best:g}", *figures])
    return Table(
        "in percent, at its best threshold",
        [*LABEL, "threshold", *names],
        lines,
        note="chosen on the very split that it is judged by: not comparable with other figures",
    )


def _parts(evaluations: Sequence[Evaluation], stratum: Stratum) -> list[Table]:
    """Show a figure of every part, a column for each evaluation; nothing where there are none."""
    found = [evaluation.by(stratum) for evaluation in evaluations]
    names = sorted({name for parts in found for name in parts if name})
    if stratum == "size":
        names = [name for name in SIZES if name in names]
    if not names or (stratum == "source" and max(map(len, found)) == 1):
        return []
    metric = evaluations[0].headline
    note = "in brackets: how many expressions" + (COCO_SIZES if stratum == "size" else "")
    return [
        Table(
            f"{metric} in percent by {STRATA[stratum]}",
            ["", *_columns(evaluations)],
            [[name, *(_part(parts, name, metric) for parts in found)] for name in names],
            note=note,
        )
    ]


def _part(parts: Mapping[str, Evaluation], name: str, metric: str) -> str:
    if name not in parts:
        return "-"
    return f"{percent(parts[name].metrics()[metric])} ({len(parts[name])})"


def _published(evaluations: Sequence[Evaluation], adapter: str, metric: str) -> list[Table]:
    """Show what others have published of the same splits under our own row."""
    theirs = [
        {(f.method, f.source): f for f in published_beside(evaluation) if f.metric == metric}
        for evaluation in evaluations
    ]
    columns = [place for place, figures in enumerate(theirs) if figures]
    if not columns:
        return []
    shown = [evaluations[place] for place in columns]
    ours = [percent(evaluation.metrics()[metric]) for evaluation in shown]
    said = SENTENCES[shown[0].sentences]
    cells = [[f"OURS: {adapter}", *ours, f"this evaluation, {said}"]]
    for method, source in dict.fromkeys(key for figures in theirs for key in figures):
        values = (theirs[place].get((method, source)) for place in columns)
        line = (f"{value.percent:g}" if value else "-" for value in values)
        cells.append([f"published: {method}", *line, source])
    return [
        Table(
            f"{metric} in percent beside what others have published",
            ["", *_columns(shown), "source"],
            cells,
            published=True,
            note="published figures were not measured here; their authors' protocols may differ",
        )
    ]


def _whole(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Leave out the first sentences of splits of which every sentence was judged."""
    every = {(e.name, e.split) for e in evaluations if e.sentences == "every"}
    return [e for e in evaluations if e.sentences == "every" or (e.name, e.split) not in every]


def _columns(evaluations: Sequence[Evaluation]) -> list[str]:
    return [f"{evaluation.name} {evaluation.split}" for evaluation in evaluations]
