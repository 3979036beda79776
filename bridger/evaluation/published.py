"""What others have published, to stand beside figures of one's own and never among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bridger.data.catalog import PUBLISHED
from bridger.evaluation.result import Evaluation


@dataclass(frozen=True)
class PublishedFigure:
    """One figure that somebody else measured.

    Attributes:
        method: what was judged.
        dataset: name of the data set in `bridger.data.PUBLISHED`.
        split: name of the split.
        metric: "mIoU" or "oIoU".
        percent: the figure, as published.
        source: where it stands.
    """

    method: str
    dataset: str
    split: str
    metric: str
    percent: float
    source: str


# Columns of the table below. A blank is a figure that is not known to us.
_COLUMNS = (
    ("refcoco", "val"),
    ("refcoco", "testA"),
    ("refcoco", "testB"),
    ("refcoco+", "val"),
    ("refcoco+", "testA"),
    ("refcoco+", "testB"),
    ("refcocog", "val"),
    ("refcocog", "test"),
    ("refcocog/google", "val"),
)
_QUOTED = "quoted in the README of RP_ETRIS (HuiLingLiu-pumpkin)"
_RERUN = "rerun by RP_ETRIS (HuiLingLiu-pumpkin), without logs"
_MASKRIS = "table 1 of MaskRIS, arXiv 2411.19067"
_DETRIS = "README of DETRIS"
_TABLE: tuple[tuple[str, str, str, str], ...] = (
    ("ETRIS R50", "mIoU", "70.39 73.11 66.38 - - - - - -", _QUOTED),
    ("ETRIS R101", "mIoU", "71.06 74.11 66.66 62.23 68.51 52.79 60.28 60.42 -", _MASKRIS),
    ("ETRIS ViT-B/16", "mIoU", "70.51 73.51 66.63 - - - - - -", _QUOTED),
    ("ETRIS R50, rerun", "mIoU", "69.88 72.76 65.35 - - - - - -", _RERUN),
    ("ETRIS R101, rerun", "mIoU", "71.09 73.72 66.79 - - - - - -", _RERUN),
    ("ETRIS ViT-B/16, rerun", "mIoU", "70.66 73.89 66.84 - - - - - -", _RERUN),
    (
        "ETRIS without Bridgers",
        "mIoU",
        "67.73 - - - - - - - -",
        "ablation in the paper, arXiv 2307.11545",
    ),
    ("CRIS R101", "mIoU", "70.47 73.18 66.10 62.27 68.08 53.68 59.87 60.36 -", _MASKRIS),
    ("DETRIS-B", "mIoU", "76.0 78.2 73.5 68.9 74.0 61.5 67.9 68.1 65.9", _DETRIS),
    ("DETRIS-L", "mIoU", "77.3 79.0 75.2 70.8 75.3 64.7 69.3 70.2 67.9", _DETRIS),
    ("DETRIS-L, mixed", "mIoU", "81.0 81.9 79.0 75.2 78.6 70.2 74.6 75.3 -", _DETRIS),
    ("DETRIS-B", "oIoU", "74.3 77.6 71.4 65.6 72.0 56.5 65.2 66.4 63.2", _DETRIS),
    ("DETRIS-L", "oIoU", "76.1 78.3 73.2 67.9 73.3 60.2 66.8 68.0 65.0", _DETRIS),
)


def _figures() -> Iterator[PublishedFigure]:
    for method, metric, row, source in _TABLE:
        for (dataset, split), value in zip(_COLUMNS, row.split(), strict=True):
            if value != "-":
                yield PublishedFigure(method, dataset, split, metric, float(value), source)


PUBLISHED_FIGURES: Sequence[PublishedFigure] = tuple(_figures())
"""Of every method in the order of docs/method.md."""


def published_beside(evaluation: Evaluation) -> list[PublishedFigure]:
    """Return what was published of the split that was judged.

    Only where it really is that split: its name and its number of refs must be the published
    ones, so that neither scenes in RefCOCO's layout nor a part of a split is compared.
    """
    return [
        figure
        for name in _names_of(evaluation)
        for figure in PUBLISHED_FIGURES
        if (figure.dataset, figure.split) == (name, evaluation.split)
    ]


def _names_of(evaluation: Evaluation) -> list[str]:
    return [
        name
        for name, known in PUBLISHED.items()
        if f"{known.folder}/{known.split_by}" == evaluation.name
        and known.splits.get(evaluation.split, (None,))[0] == evaluation.refs
    ]
