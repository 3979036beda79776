"""Detection: what is refused, and how it is said."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers_boxes import (
    CLASSES,
    FIXED,
    asked,
    boxes,
    joint,
    make,
    results,
    small_processor,
)
from helpers_heads import SPEC, features

from bridger.heads import DetectionHead
from bridger.processing import Processor


@pytest.fixture(scope="module")
def processor() -> Processor:
    return small_processor()


@pytest.mark.parametrize(
    "options", [{"threshold": 1.1}, {"threshold": -0.1}, {"nms": 2}, {"most": 0}]
)
def test_impossible_options_of_results_are_refused(
    processor: Processor, options: dict[str, float]
) -> None:
    head = make(DetectionHead)
    with pytest.raises(ValueError, match=next(iter(options))):
        results(head, head(joint()), processor, **options)


@pytest.mark.parametrize(
    "options",
    [{"threshold": "a"}, {"nms": "a"}, {"nms": None}, {"most": 1.5}, {"most": "2"}, {"most": True}],
)
def test_options_of_another_kind_are_refused(processor: Processor, options: dict[str, Any]) -> None:
    head = make(DetectionHead)
    ((name, value),) = options.items()
    with pytest.raises(TypeError, match=f"{name} is a .*got {value!r}"):
        results(head, head(joint()), processor, **options)


def test_numbers_of_numpy_are_options(processor: Processor) -> None:
    head = make(DetectionHead)
    options = {"threshold": np.float32(0), "nms": np.float64(0.5), "most": np.int64(2)}
    assert 0 < len(results(head, head(joint()), processor, **options)[0]) <= 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([boxes()], "list of 2 dicts.*found 1"),
        (torch.zeros(2, 4), "list of 2 dicts.*found Tensor"),
        ([boxes(), {"boxes": torch.zeros(0, 4)}], "picture 1 must be a dict.*found"),
        ([boxes(), torch.zeros(4)], "picture 1 must be a dict.*found Tensor"),
        ([boxes(), {**boxes(), "boxes": torch.zeros(2, 5)}], r"'boxes' must have shape \(2, 4\)"),
        ([boxes(), {**boxes(), "boxes": torch.zeros(2, 4)}], r"'labels' must have shape \(2,\)"),
        ([boxes(), {**boxes(), "boxes": torch.tensor(1.0)}], r"'boxes' must have shape \(n, 4\)"),
        (
            [boxes(), {**boxes(), "labels": torch.tensor(1)}],
            r"'labels' must have shape \(0,\).*\(\)",
        ),
        ([boxes(), {**boxes(), "crowd": torch.zeros(3)}], r"'crowd' must have shape \(0,\)"),
        ([boxes(), {**boxes((1, 1, 9, 9)), "crowd": torch.zeros(1)}], "'crowd' bool"),
        ([boxes(), {**boxes((1, 1, 9, 9)), "labels": torch.zeros(1)}], "'labels' int64"),
        ([boxes(), {**boxes((1, 1, 9, 9)), "boxes": torch.ones(1, 4).long()}], "must be float"),
        ([boxes(), boxes((1, 1, 9, 9), (5, 5, 5, 9))], r"picture 1: box 1, .*no area"),
        ([boxes((9, 9, 1, 1)), boxes()], "picture 0: box 0, .*no area"),
        ([boxes((1, 1, math.nan, 9)), boxes()], "picture 0: box 0, .*no area"),
        ([boxes((1, 1, 99, 9)), boxes()], "picture 0: box 0, .*out of the picture.*96 x 64"),
        ([boxes((-3, 1, 9, 9)), boxes()], "picture 0: box 0, .*out of the picture"),
        ([boxes((1, 1, 9, 9), labels=[3]), boxes()], "label 3, has a label that is none of 0 to 2"),
        ([boxes((1, 1, 9, 9), labels=[-1]), boxes()], "label -1, .*none of 0 to 2"),
    ],
)
def test_wrong_labels_are_named(bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(DetectionHead)(joint(), bad)


ONE = boxes((1, 1, 9, 9))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {**ONE, "boxes": [[1, 1, 9, 9]]},
            "picture 1: 'boxes' must be a tensor of float, found list",
        ),
        ({**ONE, "labels": [0]}, "picture 1: 'labels' must be a tensor of int64, found list"),
        (
            {**ONE, "labels": np.array([0])},
            "picture 1: 'labels' must be a tensor of int64, found ndarray",
        ),
        ({**ONE, "crowd": [False]}, "picture 1: 'crowd' must be a tensor of bool, found list"),
        ({**ONE, "crowd": None}, "picture 1: 'crowd' must be a tensor of bool, found NoneType"),
    ],
)
def test_labels_that_are_no_tensors_are_named(bad: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make(DetectionHead)(joint(), [boxes(), bad])


def test_cocos_other_keys_are_no_labels() -> None:
    head, given = make(DetectionHead), joint()
    plain = head(given, [boxes(), ONE])
    more = {**ONE, "area": torch.tensor([64.0]), "image_id": torch.tensor([3])}
    torch.testing.assert_close(head(given, [boxes(), more]).loss, plain.loss)
    with pytest.raises(ValueError, match="picture 1: COCO's 'iscrowd' is called 'crowd'"):
        head(given, [boxes(), {**ONE, "iscrowd": torch.ones(1, dtype=torch.int64)}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 40}, "multiple of 32"),
        ({"width": 0}, "width must be a whole number from 32"),
        ({"num_convs": 1.5}, "num_convs must be a whole number"),
        ({"extra_levels": "p5"}, "extra_levels='p5' is unknown"),
        ({"scores": "linear"}, "scores='linear' is unknown"),
        ({"scores": "fixed"}, "say which, classes="),
        ({"classes": ("owl", "owl")}, "owl"),
        ({"text_mode": "jont"}, "joint"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionHead.from_spec(SPEC, **options)


def test_a_fixed_list_answers_about_itself_alone(processor: Processor) -> None:
    head = make(DetectionHead, **FIXED)
    assert head.fixed_classes and not make(DetectionHead).fixed_classes
    assert head.texts(processor, None).names == CLASSES
    with pytest.raises(ValueError, match="fixed classes"):
        head.texts(processor, ["owl", "dog"])
    with pytest.raises(
        ValueError, match="3 fixed classes, but the texts are about 4, from class 0"
    ):
        head(asked([0, 1, 2, 3], [0, 1, 2, 3]))
    with pytest.raises(ValueError, match="3 fixed classes, but the texts are about 2"):
        head(asked([0, 1], [0, 1]), [boxes(), boxes()])
    late = asked([0, 1], [0, 1])
    with pytest.raises(ValueError, match="are about 2, from class 2 on"):
        head(replace(late, mentions=replace(late.mentions, first_class=2)))


def test_features_of_other_towers_are_refused() -> None:
    other = replace(SPEC, sentence_width=16)
    with pytest.raises(ValueError, match="was built for"):
        make(DetectionHead)(features(other))
