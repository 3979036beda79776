"""Classification's figures: against direct computations, by hand, and against `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_judging import CLASSES, Labelled, classified, model_with

from bridger.data.labelled import ClassifiedPicture
from bridger.evaluation import ClassificationEvaluation, evaluate_classification
from bridger.evaluation.classification import ClassificationCase
from bridger.evaluation.ranking import average_precision, ranks

K = 7
SEEN = (True, True, True, False, False, True, True)


def evaluation(
    scores: Any, labels: list[tuple[int, ...]], multi_label: bool = False
) -> ClassificationEvaluation:
    cases = [
        ClassificationCase(f"{i}.png", str(i), own, np.asarray(row, np.float32))
        for i, (row, own) in enumerate(zip(scores, labels, strict=True))
    ]
    names = tuple("abcdefg"[: len(cases[0].logits)])
    return ClassificationEvaluation(
        "few", "val", names, SEEN[: len(names)], tuple(cases), multi_label=multi_label
    )


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_torchs_topk(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    scores = numbers.normal(size=(40, K)).astype(np.float32)
    labels = numbers.integers(0, K - 1, 40)  # nothing shows the last class
    top = torch.topk(torch.from_numpy(scores), 5).indices.numpy()
    right, in_five = top[:, 0] == labels, (top == labels[:, None]).any(axis=1)
    seen = np.array(SEEN)[labels]
    found = evaluation(scores, [(int(label),) for label in labels])
    per_class = {k: right[labels == k].mean() for k in range(K) if (labels == k).any()}
    assert found.metrics() == pytest.approx(
        {
            "top1": right.mean(),
            "top5": in_five.mean(),
            "top1 seen": right[seen].mean(),
            "top1 unseen": right[~seen].mean(),
            "mean per class": np.mean(list(per_class.values())),
        }
    )
    assert found.per_class() == {"abcdefg"[k]: {"top1": v} for k, v in per_class.items()}
    low, high = found.bootstrap(resamples=100)["top1"]
    assert low < right.mean() < high


def test_of_equal_scores_the_first_class_wins() -> None:
    scores = np.array([[0.0, 1.0, 1.0, 0.0]] * 4)
    assert ranks(scores, np.arange(4)).tolist() == [2, 0, 1, 3]
    # A head that says nothing is not right about everything.
    assert evaluation(np.zeros((4, 4)), [(k,) for k in range(4)]).metrics()["top1"] == 0.25


def test_few_classes_have_no_five_best() -> None:
    assert "top5" not in evaluation(np.eye(5), [(k,) for k in range(5)]).metrics()


def stepwise(scores: Any, true: Any) -> float:
    """Average precision by its definition: over all thresholds, sets compared at each."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        found = scores >= threshold
        recall = (found & true).sum() / true.sum()
        total += (recall - before) * (found & true).sum() / found.sum()
        before = recall
    return total


@pytest.mark.parametrize("steps", [3, 1000])  # with many equal scores, and with hardly any
def test_average_precision_is_its_definition(steps: int) -> None:
    numbers = np.random.default_rng(steps)
    for _ in range(20):
        scores = numbers.integers(0, steps, 30) / steps
        true = numbers.random(30) < 0.3
        true[0] = True
        assert average_precision(scores, true) == pytest.approx(stepwise(scores, true), abs=1e-12)


def test_average_precision_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    assert average_precision(scores, np.array([True, False, True, False])) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    assert average_precision(np.zeros(4), np.array([True, False, False, False])) == 0.25
    assert np.isnan(average_precision(scores, np.zeros(4, bool)))


def test_multi_label_figures_are_means_over_the_classes_that_are_shown() -> None:
    numbers = np.random.default_rng(0)
    scores = numbers.normal(size=(30, K)).astype(np.float32)
    labels = [tuple(np.flatnonzero(numbers.random(K - 1) < 0.3).tolist()) for _ in range(30)]
    assert () in labels  # some show none of the classes
    true = np.array([[k in own for k in range(K)] for own in labels])
    each = np.array([stepwise(scores[:, k], true[:, k]) for k in range(K - 1)])
    seen = np.array(SEEN[:-1])
    found = evaluation(scores, labels, multi_label=True)
    assert found.headline == "mAP"
    assert found.metrics() == pytest.approx(
        {"mAP": each.mean(), "mAP seen": each[seen].mean(), "mAP unseen": each[~seen].mean()}
    )
    assert list(found.per_class()) == list("abcdef")


def test_pictures_are_judged_as_predict_answers(tmp_path: Path) -> None:
    model, data = model_with("label"), classified(tmp_path)
    found = evaluate_classification(model, data, batch_size=2)
    assert found.classes == ("owl", "drum", "car", "tree")
    assert found.seen == (True, False, True, False) and found.headline == "top1"
    right = []
    for picture, row in zip(data.pictures, found.rows(), strict=True):
        answer: Any = model.predict(picture.image_path, CLASSES)
        assert row["found"] == [name for name, _ in answer.top(5)]
        right.append(answer.label == answer.names[picture.labels[0]])
    assert found.metrics()["top1"] == np.mean(right)


def test_heads_for_one_class_need_pictures_of_one(tmp_path: Path) -> None:
    data = classified(tmp_path, 3)
    both = ClassifiedPicture(data.pictures[0].image_path, "both", "few", (0, 2))
    several = Labelled([*data.pictures, both])
    with pytest.raises(ValueError, match="show 1 to 2: .* trained with multi_label=true"):
        evaluate_classification(model_with("label"), several)
    found = evaluate_classification(model_with("label", multi_label=True), several)
    assert found.multi_label and 0 < found.metrics()["mAP"] <= 1


def test_a_fixed_list_is_judged_by_names_on_other_lists(tmp_path: Path) -> None:
    # Not the data's order, another case, and one that they do not know.
    listed = ("Tree", "moon", "owl")
    model, data = model_with("label", scores="fixed", classes=listed), classified(tmp_path)
    with torch.no_grad():
        model.heads["label"].scores.linear.bias.copy_(torch.tensor([2.0, 9.0, 1.0]))
    found = evaluate_classification(model, data, batch_size=2)
    assert found.seen == (True, False, False, True)  # owl, drum, car, tree
    for case in found.cases:
        assert case.logits[[1, 2]].tolist() == [-np.inf, -np.inf]
        assert case.logits[3] > case.logits[0]
    trees = [case.labels == (3,) for case in found.cases]
    assert found.metrics()["top1"] == pytest.approx(np.mean(trees))
