"""Metrics and their intervals against counts made by hand and independent computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_evaluation import case, evaluation

from bridger.evaluation import SegmentationMetrics
from bridger.evaluation.bootstrap import percentile_intervals
from bridger.evaluation.metrics import Ratio


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
    assert first.compute() == whole.compute()


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


# Random masks.


def random_masks(count, seed=0):
    """Pairs of masks (12, 15) of all densities, some of them empty or full."""
    numbers = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        shares = numbers.choice([0, 0.05, 0.5, 0.95, 1], 2)
        masks = numbers.random((2, 12, 15)) < shares[:, None, None]
        if numbers.random() < 0.3:
            masks[0] = masks[1] ^ (numbers.random((12, 15)) < 0.05)
        pairs.append((masks[0], masks[1]))
    return pairs


def reference_figures(pairs):
    """The reference implementation's formulas, pixel by pixel."""
    ious, inside, either = [], 0, 0
    for pred, target in pairs:
        i = sum(1 for p, t in zip(pred.flat, target.flat, strict=True) if p and t)
        u = sum(1 for p, t in zip(pred.flat, target.flat, strict=True) if p or t)
        ious.append(i / (u + 1e-6))
        inside, either = inside + i, either + u
    figures = {"mIoU": sum(ious) / len(ious), "oIoU": inside / (either + 1e-6)}
    for x in (0.5, 0.6, 0.7, 0.8, 0.9):
        figures[f"P@{x}"] = sum(1 for iou in ious if iou > x) / len(ious)
    return figures


def counted(pairs):
    metrics = SegmentationMetrics()
    for pred, target in pairs:
        metrics.update(pred, target)
    return metrics


def test_random_masks_give_the_references_figures():
    pairs = random_masks(200)
    expected = reference_figures(pairs)
    assert 0.1 < expected["mIoU"] < 0.9 and expected["P@0.9"] > 0
    assert counted(pairs).compute() == pytest.approx(expected, rel=0, abs=1e-12)


def test_the_order_and_the_parts_do_not_matter_to_the_last_bit():
    pairs = random_masks(300, seed=1)
    whole = counted(pairs).compute()
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(pairs))
        shuffled = [pairs[i] for i in order]
        parts = [counted(shuffled[part::7]) for part in range(7)]
        merged = SegmentationMetrics()
        for part in parts:
            merged.merge(part)
        assert counted(shuffled).compute() == merged.compute() == whole


# gRefCOCO's figures.


def relas_figures(triples):
    """What ReLA's evaluator does, sample by sample, with masks that a no-target score emptied."""
    right, wrong, kept, lost = 0, 0, 0, 0
    total = inside = either = 0.0
    hits = dict.fromkeys((0.7, 0.8, 0.9), 0)
    for intersection, predicted, area in triples:
        union = predicted + area - intersection
        if area == 0:
            if predicted == 0:
                right, total = right + 1, total + 1
            else:
                wrong, either = wrong + 1, either + union
            continue
        kept, lost = (kept, lost + 1) if predicted == 0 else (kept + 1, lost)
        iou = 0.0 if union == 0 else intersection / union
        total, inside, either = total + iou, inside + intersection, either + union
        for x in hits:
            hits[x] += iou >= x
    return {
        "gIoU": total / len(triples),
        "cIoU": inside / either,
        "N-acc": right / (right + wrong),
        "T-acc": kept / (kept + lost),
        **{f"Pr@{x}": count / (kept + lost) for x, count in hits.items()},
    }


def test_generalized_figures_are_relas():
    triples = [
        (int((p & t).sum()), int(p.sum()), int(t.sum())) for p, t in random_masks(300, seed=2)
    ]
    triples += [(7, 7, 10), (7, 8, 9)]  # an IoU of exactly 0.7 counts, for Pr@0.7
    cases = [case(*counts, index=i) for i, counts in enumerate(triples)]
    found = evaluation(cases, generalized=True).metrics()
    expected = relas_figures(triples)
    assert 0 < expected["N-acc"] < 1 and 0 < expected["T-acc"] < 1
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=0, abs=1e-12)
    assert set(found) == {*expected, *evaluation(cases).metrics()}


def test_an_iou_at_the_threshold_counts_for_pr_and_not_for_p():
    found = evaluation([case(9, 9, 10)], generalized=True).metrics()
    assert found["Pr@0.9"] == 1 and found["P@0.9"] == 0


def test_figures_without_anything_to_divide_by_are_left_out():
    only_targets = evaluation([case(1, 2, 3)], generalized=True).metrics()
    assert "N-acc" not in only_targets and "T-acc" in only_targets
    nothing = evaluation([case(0, 0, 0)], generalized=True).metrics()
    assert nothing["gIoU"] == nothing["N-acc"] == 1
    assert not {"cIoU", "T-acc", "Pr@0.7"} & set(nothing)


# Intervals.


def test_intervals_equal_resampling_pictures_one_by_one():
    numbers = np.random.default_rng(3)
    groups = numbers.integers(0, 13, 60)
    above, below = numbers.random(60), numbers.random(60) + 0.5
    ratios = {"mean": Ratio(above, np.ones(60)), "overall": Ratio(above, below, 0.25)}
    found = percentile_intervals(ratios, groups, level=0.9, resamples=500, seed=5)

    ids = np.unique(groups)
    draws = np.random.default_rng(5).integers(len(ids), size=(500, len(ids)))
    means, overalls = [], []
    for draw in draws:
        rows = np.concatenate([np.flatnonzero(groups == ids[i]) for i in draw])
        means.append(above[rows].mean())
        overalls.append(above[rows].sum() / (below[rows].sum() + 0.25))
    for name, values in (("mean", means), ("overall", overalls)):
        assert found[name] == pytest.approx(np.quantile(values, [0.05, 0.95]), abs=1e-12)
        assert found[name][0] < ratios[name].value < found[name][1]


def test_intervals_do_not_depend_on_the_order_and_repeat():
    cases = [case(i % 50, 50, 60, index=i, picture=f"p{i % 20}") for i in range(200)]
    once = evaluation(cases).bootstrap(resamples=200)
    again = evaluation(cases[::-1]).bootstrap(resamples=200)
    assert set(once) == set(evaluation(cases).metrics())
    for name, ends in once.items():
        assert again[name] == pytest.approx(ends, abs=1e-12)
    assert evaluation(cases).bootstrap(resamples=200, seed=1) != once


def test_expressions_of_one_picture_count_as_one_draw():
    apart = [case(60 if i % 2 else 0, 60, 60, index=i) for i in range(100)]
    together = [case(60 if i % 2 else 0, 60, 60, index=i, picture=f"p{i % 10}") for i in range(100)]
    narrow, wide = (evaluation(cases).bootstrap()["mIoU"] for cases in (apart, together))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    one = evaluation([case(30, 60, 60, index=i, picture="p") for i in range(5)])
    assert one.bootstrap()["mIoU"] == pytest.approx((one.metrics()["mIoU"],) * 2)


def test_a_resample_without_anything_that_counts_is_no_figure():
    cases = [case(0, 0, 0), *(case(5, 6, 7, index=i) for i in range(1, 4))]
    low, high = evaluation(cases, generalized=True).bootstrap()["N-acc"]
    assert low == high == 1


def test_impossible_intervals_are_refused():
    whole = evaluation([case(1, 2, 3)])
    with pytest.raises(ValueError, match="level.*got 95"):
        whole.bootstrap(level=95)
    with pytest.raises(ValueError, match="resamples.*got 0"):
        whole.bootstrap(resamples=0)


# Parts of an evaluation.


def test_sizes_are_cocos():
    areas = [0, 1, 32**2 - 1, 32**2, 96**2 - 1, 96**2]
    whole = evaluation([case(0, 0, area, index=i) for i, area in enumerate(areas)])
    parts = whole.by("size")
    assert list(parts) == ["small", "medium", "large", "empty"]
    assert {name: [c.area for c in part.cases] for name, part in parts.items()} == {
        "small": areas[1:3],
        "medium": areas[3:5],
        "large": areas[5:],
        "empty": [0],
    }


def test_parts_add_up_to_the_whole():
    kinds = ("place", "colour", "")
    whole = evaluation(
        [case(i, 40, 50, index=i, kind=kinds[i % 3], order=i % 2) for i in range(30)]
    )
    parts = whole.by("kind")
    assert list(parts) == ["", "colour", "place"]
    weighted = sum(len(part) * part.metrics()["mIoU"] for part in parts.values())
    assert weighted / 30 == pytest.approx(whole.metrics()["mIoU"], abs=1e-12)
    assert "loss" in whole.figures() and "loss" not in parts["place"].figures()
    first = whole.first_sentences()
    assert (first.sentences, len(first)) == ("first", 15)
    assert all(c.order == 0 for c in first.cases)
    with pytest.raises(ValueError, match="kind, size, source, got 'colour'"):
        whole.by("colour")


def test_another_threshold_of_the_same_run():
    cases = [case(index=i, area=10, intersections=(2, 8, 5), predicted=(3, 9, 5)) for i in range(3)]
    whole = evaluation(cases, thresholds=(0.35, 0.2, 0.5))
    assert whole.metrics()["mIoU"] == pytest.approx(2 / 11, abs=1e-6)
    assert whole.best_threshold() == 0.2
    assert whole.at(0.2).metrics()["mIoU"] == pytest.approx(8 / 11, abs=1e-6)
    with pytest.raises(ValueError, match=r"not counted at 0.3, only at 0.2, 0.35, 0.5"):
        whole.at(0.3)


def test_the_best_and_the_worst_are_of_different_pictures():
    cases = [
        case(0, 5, 5, index=0, picture="a"),
        case(0, 50, 50, index=1, picture="b"),
        case(0, 90, 90, index=2, picture="a"),
        case(9, 10, 10, index=3, picture="c"),
        case(8, 10, 10, index=4, picture="c"),
        case(0, 0, 0, index=5, picture="d"),
    ]
    whole = evaluation(cases, generalized=True)
    assert [c.index for c, _ in whole.worst(3)] == [2, 1, 4]
    assert [c.index for c, _ in whole.best(2)] == [5, 3]
    assert [score for _, score in whole.best(2)] == [1, pytest.approx(9 / 11)]
    assert len(whole.worst(9)) == 4
