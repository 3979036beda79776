"""Detection's figures: against pycocotools on files, by hand, and against `predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_judging import CLASSES, boxed, model_with
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bridger.evaluation import DetectionEvaluation, evaluate_detection
from bridger.evaluation.detection import DetectionCase, FoundBox, TrueBox

NAMES = ("a", "b", "c", "d")
SEEN = (True, True, False, False)
SIDES = (20.0, 60.0, 120.0)  # small, medium, large


def evaluation(cases: list[DetectionCase]) -> DetectionEvaluation:
    return DetectionEvaluation("few", "val", NAMES, SEEN, tuple(cases))


def case(index: int, true: list[TrueBox], found: list[FoundBox]) -> DetectionCase:
    return DetectionCase(f"{index}.png", str(index), (200, 200), tuple(true), tuple(found))


def random_case(index: int) -> DetectionCase:
    """Objects of all sizes and three of the classes, found more or less well, and others."""
    numbers = np.random.default_rng(index)
    true, found = [], []
    for _ in range(int(numbers.integers(0, 7))):
        side = float(numbers.choice(SIDES)) * numbers.uniform(0.6, 1.1)
        x, y = numbers.uniform(0, 60, 2)
        label, crowd = int(numbers.integers(0, 3)), bool(numbers.random() < 0.15)
        # The area is that of the object, not of its box.
        true.append(TrueBox((x, y, x + side, y + side), label, crowd, 0.7 * side**2))
        for _ in range(int(numbers.integers(0, 3))):
            x0, y0, x1, y1 = np.array(true[-1].box) + numbers.normal(0, 0.06 * side, 4)
            label = label if numbers.random() < 0.8 else int(numbers.integers(0, 4))
            found.append(FoundBox((x0, y0, x1, y1), label, float(numbers.random())))
    return case(index, true, found)


def stats_of_files(cases: list[DetectionCase], folder: Path) -> Any:
    """What pycocotools says of the same boxes in files, with ids of their own."""
    annotations, results = [], []
    for index, each in enumerate(cases):
        for t in each.true:
            x0, y0, x1, y1 = t.box
            annotations.append(
                {
                    "id": 1000 + 7 * len(annotations),
                    "image_id": 50 + 3 * index,
                    "category_id": 10 * (t.label + 1),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": t.area,
                    "iscrowd": int(t.crowd),
                }
            )
        for f in each.found:
            x0, y0, x1, y1 = f.box
            results.append(
                {
                    "image_id": 50 + 3 * index,
                    "category_id": 10 * (f.label + 1),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": f.score,
                }
            )
    whole = {
        "info": {},
        "images": [{"id": 50 + 3 * i, "height": 200, "width": 200} for i in range(len(cases))],
        "categories": [{"id": 10 * (k + 1), "name": name} for k, name in enumerate(NAMES)],
        "annotations": annotations,
    }
    (folder / "instances.json").write_text(json.dumps(whole))
    (folder / "results.json").write_text(json.dumps(results))
    true = COCO(str(folder / "instances.json"))
    judge = COCOeval(true, true.loadRes(str(folder / "results.json")), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return judge


@pytest.mark.parametrize("seed", [0, 100])
def test_figures_are_those_of_pycocotools_on_files(seed: int, tmp_path: Path) -> None:
    cases = [random_case(seed + i) for i in range(12)]
    judge, found = stats_of_files(cases, tmp_path), evaluation(cases)
    names = ("mAP", "mAP50", "mAP75", "mAP small", "mAP medium", "mAP large")
    metrics = found.metrics()
    assert [metrics[name] for name in names] == judge.stats[:6].tolist()
    assert 0.05 < metrics["mAP"] < metrics["mAP50"] < 1
    # Of each class: the mean over thresholds and recalls; class d has no object.
    precision = judge.eval["precision"][:, :, :, 0, 2]
    per_class = found.per_class()
    assert list(per_class) == ["a", "b", "c"]
    for label, figures in enumerate(per_class.values()):
        assert figures["AP"] == precision[:, :, label].mean()
        assert figures["AP50"] == precision[0, :, label].mean()
    assert metrics["mAP seen"] == pytest.approx((per_class["a"]["AP"] + per_class["b"]["AP"]) / 2)
    assert metrics["mAP unseen"] == pytest.approx(per_class["c"]["AP"])


def test_a_tiny_case_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """Of two large objects one is found at an IoU of 0.81, after a box where there is nothing.

    Precision is 0 and then 1/2, at a recall of 1/2: up to there, at 51 of COCO's 101 recalls, the
    interpolated precision is 1/2, at the 7 thresholds up to 0.8.
    """
    true = [TrueBox((0, 0, 100, 100), 0, False, 10000), TrueBox((0, 100, 100, 200), 0, False, 1e4)]
    found = [FoundBox((150, 150, 190, 190), 0, 0.9), FoundBox((0, 0, 90, 90), 0, 0.8)]
    metrics = evaluation([case(0, true, found)]).metrics()
    at_one = 51 / 101 / 2
    assert metrics == {
        "mAP": pytest.approx(0.7 * at_one),
        "mAP50": pytest.approx(at_one),
        "mAP75": pytest.approx(at_one),
        # The wrong box is of medium size, and no miss among large ones.
        "mAP large": pytest.approx(0.7 * 51 / 101),
        "mAP seen": pytest.approx(0.7 * at_one),
    }
    assert capsys.readouterr().out == ""


def test_a_crowd_is_neither_object_nor_background() -> None:
    crowd = TrueBox((0, 0, 150, 150), 0, True, 20000)
    one = TrueBox((150, 150, 200, 200), 0, False, 2500)
    within = [FoundBox((10 * i, 0, 10 * i + 40, 40), 0, 0.9) for i in range(3)]
    right = FoundBox((150, 150, 200, 200), 0, 0.5)
    metrics = evaluation([case(0, [crowd, one], [*within, right])]).metrics()
    assert metrics["mAP"] == pytest.approx(1)


def test_without_objects_or_without_boxes_nothing_breaks() -> None:
    true, found = TrueBox((0, 0, 50, 50), 0, False, 2500), FoundBox((0, 0, 50, 50), 0, 0.5)
    assert evaluation([case(0, [], []), case(1, [], [found])]).metrics() == {}
    assert evaluation([case(0, [true], [])]).metrics()["mAP"] == 0.0
    assert evaluation([case(0, [true], []), case(1, [], [])]).per_class() == {
        "a": {"AP": 0.0, "AP50": 0.0}
    }


def test_pictures_are_judged_as_predict_answers(tmp_path: Path) -> None:
    model, data = model_with("boxes"), boxed(tmp_path)
    found = evaluate_detection(model, data, batch_size=1)
    assert found.classes == ("owl", "drum", "car", "tree")
    assert found.seen == (True, False, True, False)
    for picture, each in zip(data.pictures, found.cases, strict=True):
        expected = model.predict(picture.image_path, CLASSES, 0.0, agnostic=False)
        assert each.size == expected.size == picture.size
        assert [list(f.box) for f in each.found] == expected.boxes.tolist()
        assert [f.label for f in each.found] == expected.labels.tolist()
        assert [t.area for t in each.true] == picture.areas.tolist()
        assert [t.crowd for t in each.true] == picture.crowd.tolist()
    assert max(len(each.found) for each in found.cases) == 100
    assert len(found.rows()) == 5 and found.rows()[2]["true"][1]["crowd"]


def test_a_picture_alone_scores_as_an_evaluation_of_it_alone() -> None:
    cases = [random_case(index) for index in range(12)]
    expected = [evaluation([each]).metrics().get("mAP", np.nan) for each in cases]
    assert evaluation(cases).scores().tolist() == pytest.approx(expected, nan_ok=True)
    assert 0 < np.isnan(expected).sum() < 12 and len(set(expected)) > 6
