"""Metrics against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bridger.evaluation import SegmentationMetrics


def strip(count, start=0, length=20):
    """A mask (1, length) with `count` true pixels from `start` on."""
    mask = np.zeros((1, length), dtype=bool)
    mask[0, start : start + count] = True
    return mask


def test_figures_counted_by_hand():
    metrics = SegmentationMetrics()
    # intersection / union: 10 / 10, 3 / 9, 17 / 20, 0 / 5
    pairs = [
        (strip(10), strip(10)),
        (strip(6), strip(6, 3)),
        (strip(20), strip(17)),
        (strip(0), strip(5)),
    ]
    ious = [metrics.update(pred, target) for pred, target in pairs]
    expected = [10 / 10.000001, 3 / 9.000001, 17 / 20.000001, 0]
    assert ious == pytest.approx(expected, abs=1e-12)
    assert metrics.ious == pytest.approx(expected, abs=1e-12) and len(metrics) == 4
    figures = metrics.compute()
    assert figures["mIoU"] == pytest.approx(sum(expected) / 4, abs=1e-12)
    assert figures["oIoU"] == pytest.approx(30 / 44.000001, abs=1e-12)
    precision = [figures[f"P@{x}"] for x in (0.5, 0.6, 0.7, 0.8, 0.9)]
    assert precision == [0.5, 0.5, 0.5, 0.5, 0.25]
    assert list(figures) == ["mIoU", "oIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"]


def test_an_iou_at_the_threshold_is_not_above_it():
    metrics = SegmentationMetrics()
    metrics.update(strip(5), strip(10))  # 5 / 10.000001
    assert metrics.compute()["P@0.5"] == 0


def test_two_empty_masks_count_as_a_miss():
    metrics = SegmentationMetrics()
    assert metrics.update(strip(0), strip(0)) == 0


def test_tensors_count_like_arrays():
    pred, target = strip(6), strip(6, 2)
    assert SegmentationMetrics().update(
        torch.from_numpy(pred), torch.from_numpy(target)
    ) == SegmentationMetrics().update(pred, target)


def test_merged_counts_equal_counting_in_one():
    whole, first, second = (SegmentationMetrics() for _ in range(3))
    for i in range(6):
        for part in (whole, (first, second)[i % 2]):
            part.update(strip(3 + i), strip(8, i))
    first.merge(second)
    assert first.compute() == pytest.approx(whole.compute())


def test_unusable_masks_say_what_to_do():
    metrics = SegmentationMetrics()
    with pytest.raises(ValueError, match=r"pred is \(1, 20\) and target \(1, 10\)"):
        metrics.update(strip(3), strip(3, length=10))
    with pytest.raises(TypeError, match="pred is float64.*threshold"):
        metrics.update(strip(3) * 0.5, strip(3))
    with pytest.raises(ValueError, match=r"one mask \(h, w\)"):
        metrics.update(strip(3)[None], strip(3)[None])
    with pytest.raises(RuntimeError, match="update"):
        metrics.compute()
