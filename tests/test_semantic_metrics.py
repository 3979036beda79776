"""Semantic segmentation's figures: against direct counts of pixels, and against `predict`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_judging import CLASSES, Labelled, model_with, segmented

from bridger.data.labelled import SegmentedPicture
from bridger.evaluation import SemanticEvaluation, evaluate_semantic
from bridger.evaluation.confusion import confusion, semantic_metrics
from bridger.evaluation.semantic import SemanticCase
from bridger.labels import BACKGROUND, IGNORE

K = 4
SEEN = (True, False, True, False)


def random_maps(seed: int, classes: int = K) -> tuple[Any, Any]:
    """A true map with background and ignored pixels, and a prediction that is often right."""
    numbers = np.random.default_rng(seed)
    truth = numbers.integers(BACKGROUND, classes, (9, 11))
    predicted = np.where(
        numbers.random(truth.shape) < 0.6, truth, numbers.integers(BACKGROUND, classes, truth.shape)
    )
    truth[numbers.random(truth.shape) < 0.1] = IGNORE
    return truth, predicted


def evaluation_of(maps: list[tuple[Any, Any]]) -> SemanticEvaluation:
    cases = []
    for index, (truth, predicted) in enumerate(maps):
        picture = SegmentedPicture(Path(f"{index}.png"), str(index), "few", lambda t=truth: t)
        cases.append(SemanticCase.of(picture, confusion(truth, predicted, K)))
    return SemanticEvaluation("few", "val", ("a", "b", "c", "d"), SEEN, tuple(cases))


def directly(maps: list[tuple[Any, Any]]) -> dict[str, float]:
    """The figures by comparing masks class by class, over all pictures put together."""
    truth = np.concatenate([t[t != IGNORE] for t, _ in maps])
    predicted = np.concatenate([p[t != IGNORE] for t, p in maps])
    ious, accuracies = {}, {}
    for label in range(K):
        true, found = truth == label, predicted == label
        if (true | found).any():
            ious[label] = (true & found).sum() / (true | found).sum()
        if true.any():
            accuracies[label] = (true & found).sum() / true.sum()
    seen = [ious[label] for label in ious if SEEN[label]]
    unseen = [ious[label] for label in ious if not SEEN[label]]
    return {
        "mIoU": np.mean(list(ious.values())),
        "mIoU seen": np.mean(seen),
        "mIoU unseen": np.mean(unseen),
        "pixel accuracy": np.mean(truth == predicted),
        "mean accuracy": np.mean(list(accuracies.values())),
    }


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_direct_counts(seed: int) -> None:
    maps = [random_maps(10 * seed + i) for i in range(5)]
    assert evaluation_of(maps).metrics() == pytest.approx(directly(maps), abs=1e-12)


def test_a_tiny_case_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1], [BACKGROUND, BACKGROUND, IGNORE, 1]])
    predicted = np.array([[0, 2, 1, 1], [1, BACKGROUND, 0, BACKGROUND]])
    # 0: 1 of 2; 1: 2 of 4, since a pixel of the background was taken for it; 2: 0 of 1, though it
    # is nowhere; 3 does not occur. The ignored pixel is neither right nor wrong.
    figures = semantic_metrics(confusion(truth, predicted, K), SEEN)
    assert figures == {
        "mIoU": pytest.approx((1 / 2 + 2 / 4 + 0) / 3),
        "mIoU seen": pytest.approx((1 / 2 + 0) / 2),
        "mIoU unseen": pytest.approx(2 / 4),
        "pixel accuracy": pytest.approx(4 / 7),
        "mean accuracy": pytest.approx((1 / 2 + 2 / 3) / 2),
    }
    found = evaluation_of([(truth, predicted)]).per_class()
    assert found == {
        "a": {"IoU": 1 / 2, "accuracy": 1 / 2},
        "b": {"IoU": 2 / 4, "accuracy": 2 / 3},
        "c": {"IoU": 0.0},
    }


def test_what_is_not_there_has_no_figure() -> None:
    nothing = np.full((2, 3), IGNORE)
    assert semantic_metrics(confusion(nothing, np.zeros((2, 3), int), K), SEEN) == {}
    background = np.full((2, 3), BACKGROUND)
    figures = semantic_metrics(confusion(background, background, K), SEEN)
    assert figures == {"pixel accuracy": 1.0}
    owls = np.zeros((2, 3), int)
    assert "mIoU unseen" not in semantic_metrics(confusion(owls, owls, K), SEEN)


def test_matrices_hold_every_pair_of_classes_and_survive_being_kept_without_zeros() -> None:
    maps = [random_maps(i) for i in range(3)]
    expected = np.zeros((K + 1, K + 1), np.int64)
    for truth, predicted in maps:
        for true, found in zip(truth.ravel(), predicted.ravel(), strict=True):
            if true != IGNORE:
                expected[true, found] += 1  # the background's index, -1, is the last one
    assert (evaluation_of(maps).confusion == expected).all()


def test_maps_that_cannot_be_compared_are_refused() -> None:
    labels = np.zeros((4, 5), int)
    with pytest.raises(ValueError, match=r"truth is \(4, 5\) and the prediction \(5, 4\)"):
        confusion(labels, labels.T, K)
    with pytest.raises(ValueError, match="truth has labels from 0 to 7, expected 0 to 3"):
        confusion(np.where(np.eye(4, 5) > 0, 7, 0), labels, K)
    with pytest.raises(ValueError, match="prediction has labels from -100"):
        confusion(labels, np.full((4, 5), IGNORE), K)


def test_intervals_resample_pictures() -> None:
    maps = [random_maps(i) for i in range(6)]
    intervals = evaluation_of(maps).bootstrap(0.9, resamples=200, seed=3)
    drawn = np.random.default_rng(3).integers(6, size=(200, 6))
    again = [directly([maps[index] for index in row]) for row in drawn]
    assert set(intervals) == {"mIoU", "mIoU seen", "mIoU unseen"}
    for name, (low, high) in intervals.items():
        values = [figures[name] for figures in again]
        assert (low, high) == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])), abs=1e-12)
    same = evaluation_of([maps[0]] * 4)
    for low, high in same.bootstrap(resamples=50).values():
        assert math.isclose(low, high)


def test_pictures_are_judged_as_predict_answers(tmp_path: Path) -> None:
    model, data = model_with("regions"), segmented(tmp_path)
    found = evaluate_semantic(model, data, batch_size=1)
    maps = [(p.labels, model.predict(p.image_path, CLASSES).labels) for p in data.pictures]
    assert len(np.unique(np.concatenate([labels.ravel() for _, labels in maps]))) > 1
    assert found.classes == ("owl", "drum", "car", "tree") and found.seen == SEEN
    assert found.metrics() == pytest.approx(directly(maps), abs=1e-12)
    assert 0 < found.metrics()["mIoU"] < 1
    assert [case.image for case in found.cases] == [str(p.image_path) for p in data.pictures]
    rows = found.rows()
    assert sum(row["pixels"] for row in rows[0]["pixels"]) == (maps[0][0] != IGNORE).sum()


def test_classes_are_known_by_their_main_names(tmp_path: Path) -> None:
    model, data = model_with("regions"), segmented(tmp_path, 1)
    renamed = Labelled(data.pictures, ["night bird", ("drum", "owl"), "car", "tree"])
    assert evaluate_semantic(model, renamed).seen == (False, False, True, False)
    spelled = Labelled(data.pictures, ["OWL", "drum", " Car", "tree"])
    assert evaluate_semantic(model, spelled).seen == SEEN
