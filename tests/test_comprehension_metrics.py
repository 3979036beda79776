"""Referring comprehension's figures: boxes by hand, and against `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_evaluation import few
from helpers_judging import model_with

from bridger.evaluation import ComprehensionEvaluation, evaluate_comprehension
from bridger.evaluation.bootstrap import percentile_intervals
from bridger.evaluation.comprehension import ComprehensionCase, compare
from bridger.evaluation.metrics import Ratio

REFS = [(0, 3, 1), (1, 2, 1), (0, 1, 1), (2, 1, 1), (3, 3, 0)]
"""(picture, sentences, objects) of the refs; the last one means nothing."""


def case(iou: float, index: int = 0, picture: str = "0") -> ComprehensionCase:
    return ComprehensionCase(
        index=index,
        order=0,
        image=f"{picture}.png",
        picture=picture,
        ref_id=index,
        sent_id=index,
        sentence="the owl",
        kind="",
        source="few",
        objects=1,
        size=(40, 40),
        true=(0.0, 0.0, 10.0, 10.0),
        found=(0.0, 0.0, 10.0, 10.0 * iou),
        score=0.5,
        iou=iou,
    )


def evaluation(cases: list[ComprehensionCase]) -> ComprehensionEvaluation:
    return ComprehensionEvaluation("few", "val", "every", tuple(cases))


@pytest.mark.parametrize(
    ("found", "iou"),
    [
        ((0, 0, 10, 10), 1.0),
        ((0, 0, 10, 5), 0.5),
        ((5, 5, 15, 15), 25 / 175),
        ((10, 0, 20, 10), 0.0),  # edges touch
        ((3, 3, 3, 8), 0.0),  # without an area
    ],
)
def test_boxes_by_hand(found: tuple[int, ...], iou: float) -> None:
    got = compare((0, 0, 10, 10), np.array(found, np.float32), np.float32(0.25))
    assert got["iou"] == pytest.approx(iou) and got["score"] == 0.25
    assert got["true"] == (0, 0, 10, 10) and got["found"] == found


def test_where_nothing_is_meant_every_box_is_wrong() -> None:
    for found in ((0, 0, 0, 0), (0, 0, 5, 5)):
        assert compare((0, 0, 0, 0), found, 1.0)["iou"] == 0.0


def test_half_is_right() -> None:
    ious = [1.0, 0.5, 0.4999999, 0.0]
    assert evaluation([case(iou) for iou in ious]).metrics() == {
        "Acc@0.5": 0.5,
        "mean IoU": pytest.approx(np.mean(ious)),
    }


def test_intervals_resample_pictures() -> None:
    cases = [case(0.1 * i, i, str(i // 3)) for i in range(9)]
    groups = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    ious = np.array([each.iou for each in cases])
    expected = percentile_intervals({"mean IoU": Ratio(ious, np.ones(9))}, groups)
    assert evaluation(cases).bootstrap()["mean IoU"] == pytest.approx(expected["mean IoU"])


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_every_sentence_is_judged_as_predict_answers(tmp_path: Path, batch_size: int) -> None:
    model, data = model_with("phrases"), few(tmp_path, REFS)
    found = evaluate_comprehension(model, data, batch_size=batch_size)
    assert [(c.index, c.order) for c in found.cases] == data.expressions()
    for each in found.cases:
        sample = data[each.index]
        rows, columns = np.nonzero(sample.mask)
        true = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None
        assert each.true == (true or (0, 0, 0, 0))
        answer: Any = model.predict(sample.image_path, sample.sentences[each.order])
        assert each.found == pytest.approx(answer.boxes[0].tolist(), abs=1e-3)
        assert each.score == pytest.approx(float(answer.scores[0]), abs=1e-5)
        assert each.sentence == sample.sentences[each.order]
        again = compare(each.true, answer.boxes[0], answer.scores[0])
        assert each.iou == pytest.approx(again["iou"], abs=1e-5)
    assert len(found.rows()) == len(found) == 10 and found.rows()[0]["sentence"]


def test_the_first_sentences_can_be_judged_alone(tmp_path: Path) -> None:
    model, data = model_with("phrases"), few(tmp_path, REFS[:3])
    found = evaluate_comprehension(model, data, first_sentence=True)
    assert [(c.index, c.order) for c in found.cases] == [(0, 0), (1, 0), (2, 0)]
    assert found.sentences == "first"
