"""Large pictures in windows: where they lie, their mean against a direct one, every dense head."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers_towers import PAIRS
from helpers_words import word_tokenizer

from bridger import BridgedModel, BridgerConfig, Processor, attach_bridgers
from bridger.heads import (
    ClassificationHead,
    DetectionHead,
    Head,
    ReferringSegmentationHead,
    SemanticSegmentationHead,
)
from bridger.heads.windows import starts

SMALL = {"width": 32, "num_heads": 4, "num_layers": 1, "grid_stride": 8}
WORDS = ["dog", "red ball", "owl"]


def model_of(head: type[Head] = SemanticSegmentationHead, **options: Any) -> BridgedModel:
    torch.manual_seed(0)
    vision, text = PAIRS["open_clip_vit"]()
    bridgers = BridgerConfig.preset("paper", hidden_dim=16, num_heads=2, ffn_dim=16)
    model = attach_bridgers(vision, text, 2, bridgers).with_head(head, **options)
    mean = std = (0.5, 0.5, 0.5)
    model.processor = Processor(32, mean, std, word_tokenizer(), 16)
    return model


def picture(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_windows_cover_a_side_and_stay_inside() -> None:
    assert starts(100, 40, 0.5) == [0, 20, 40, 60]
    assert starts(101, 40, 0.5) == [0, 20, 40, 60, 61]
    assert starts(100, 40, 0) == [0, 40, 60]
    assert starts(80, 40, 0) == [0, 40]
    assert starts(40, 40, 0.5) == starts(17, 40, 0.5) == [0]
    assert starts(5, 1, 0.9) == [0, 1, 2, 3, 4]
    for length in range(1, 60):
        for window in (1, 7, 20):
            for overlap in (0, 0.3, 0.75):
                covered = np.zeros(length, int)
                for start in starts(length, window, overlap):
                    assert 0 <= start <= max(0, length - window)
                    covered[start : start + window] += 1
                assert covered.min() >= 1


@pytest.mark.parametrize("head", [ReferringSegmentationHead, SemanticSegmentationHead])
@pytest.mark.parametrize("rows_at_once", [1, 6, 64])
def test_overlapping_windows_are_averaged(head: type[Head], rows_at_once: int) -> None:
    model, image = model_of(head, **SMALL), picture(50, 30)
    found = model.predict(image, WORDS, window=24, overlap=0.5, rows_at_once=rows_at_once)
    total, times = np.zeros((3, 50, 30)), np.zeros((50, 30))
    for y in (0, 12, 24, 26):
        for x in (0, 6):
            window = image[y : y + 24, x : x + 24]
            total[:, y : y + 24, x : x + 24] += model.predict(window, WORDS).probabilities
            times[y : y + 24, x : x + 24] += 1
    np.testing.assert_allclose(found.probabilities, total / times, atol=2e-5)


def test_the_label_is_that_of_the_mean() -> None:
    model, image = model_of(**SMALL), picture(50, 30)
    found = model.predict(image, WORDS, window=24)
    p = found.probabilities
    p = np.concatenate([p, 1 - p.sum(axis=0, keepdims=True)])
    expected = p.argmax(axis=0)
    assert np.array_equal(found.labels, np.where(expected == 3, -1, expected))


@pytest.mark.parametrize("head", [ReferringSegmentationHead, SemanticSegmentationHead])
def test_a_window_as_large_as_the_picture_is_the_plain_prediction(head: type[Head]) -> None:
    model, image = model_of(head, **SMALL), picture(30, 44)
    expected = model.predict(image, WORDS)
    for window in (44, 1000):
        found = model.predict(image, WORDS, window=window)
        assert np.array_equal(found.probabilities, expected.probabilities)


def test_what_any_window_shows_is_in_the_picture() -> None:
    options = {**SMALL, "no_target": True}
    model, image = model_of(ReferringSegmentationHead, **options), picture(50, 24)
    found = model.predict(image, WORDS, window=24, overlap=0)
    parts = [model.predict(image[y : y + 24], WORDS).no_target for y in (0, 24, 26)]
    np.testing.assert_allclose(found.no_target, np.min(parts, axis=0), rtol=1e-4)


def test_an_option_of_the_head_goes_with_windows() -> None:
    model, image = model_of(ReferringSegmentationHead, **SMALL), picture(50, 30)
    found = model.predict(image, WORDS, threshold=0.05, window=24)
    assert np.array_equal(found.masks, found.probabilities > 0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 0}, "window must be a side in pixels, 1 or more, got 0"),
        ({"window": 24.0}, "got 24.0"),
        ({"window": 24, "overlap": 1.0}, "overlap must be at least 0 and below 1, got 1.0"),
        ({"window": 24, "overlap": -0.5}, "got -0.5"),
        ({"window": 24, "overlap": "a"}, "overlap must be at least 0 and below 1, got 'a'"),
        ({"rows_at_once": 0}, "rows_at_once must be a positive integer, got 0"),
        ({"rows_at_once": 2.5}, "got 2.5"),
        ({"threshold": 1.5}, "threshold lies between 0 and 1, got 1.5"),
        ({"threshold": "a"}, "got 'a'"),
    ],
)
def test_bad_windows_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model_of(**SMALL).predict(picture(50, 30), WORDS, **options)


def test_options_are_checked_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(**SMALL)
    monkeypatch.setattr(type(model), "encode", None)
    head = type(model.heads["head"]).__name__
    with pytest.raises(TypeError, match=f"{head} has no option 'treshold'.*'threshold'"):
        model.predict(picture(50, 30), WORDS, treshold=0.5)
    detector = model_of(DetectionHead)
    monkeypatch.setattr(type(detector), "encode", None)
    with pytest.raises(TypeError, match="DetectionHead has no option 'window' for predict"):
        detector.predict(picture(50, 30), WORDS, window=24)


def test_windows_are_for_heads_that_score_pixels() -> None:
    with pytest.raises(TypeError, match="ClassificationHead has no option 'window'.*threshold"):
        model_of(ClassificationHead).predict(picture(50, 30), WORDS, window=24)
    with pytest.raises(TypeError, match="overlap"):
        model_of(**SMALL).predict(picture(50, 30), WORDS, overlap=0.5)
