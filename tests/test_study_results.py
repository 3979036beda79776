"""What a study's runs say together: rows over seeds, differences over pictures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers_study import SPLITS, row_of

from bridger.studies.results import METRICS, Row, Spread, StudyResults
from bridger.studies.store import Cases, Run, cases_file


def judged(folder: Path, cases: Sequence[Cases]) -> Row:
    """A row whose runs counted that on one split."""
    runs = []
    for seed, found in enumerate(cases):
        own = folder / f"seed-{seed}"
        own.mkdir(parents=True)
        found.save(own / cases_file("val"))
        samples = {"order": "", "data": {}}
        runs.append(Run(own, folder.name, seed, {"samples": samples}))
    return Row(folder.name, tuple(runs))


def cases(seed: int, better: float = 0.0, pictures: int = 30, each: int = 2) -> Cases:
    random = np.random.default_rng(seed)
    union = random.integers(200, 900, pictures * each)
    share = (random.uniform(0.1, 0.8, pictures * each) + better).clip(0, 1)
    return Cases(np.arange(pictures).repeat(each), np.rint(share * union).astype(np.int64), union)


def two(folder: Path, ours: Sequence[Cases], theirs: Sequence[Cases]) -> StudyResults:
    rows = (judged(folder / "theirs", theirs), judged(folder / "ours", ours))
    return StudyResults("s", "", "theirs", ("val",), rows)


# Rows.


def test_a_row_is_the_mean_and_the_sample_deviation_of_its_seeds(results: StudyResults) -> None:
    row = row_of(results, "Bridgers, 64 wide")
    single = [run.result["splits"]["testA"]["oIoU"] for run in row.runs]
    mean, deviation = row.spread("testA", "oIoU")
    assert row.seeds == (0, 1, 2) and row.mean("testA", "oIoU") == mean
    assert mean == pytest.approx(np.mean(single)) and np.std(single) > 0
    assert deviation == pytest.approx(np.std(single, ddof=1))
    assert np.isnan(Spread.of([0.4]).deviation)


def test_parameters_in_the_towers_are_all_but_the_heads(results: StudyResults) -> None:
    run = results.runs[0]
    parts = {"bridgers": 5, "peft": 70, "tower_tensors": 900, "head": 3_000, "frozen": 10_000}
    row = Row("a", (replace(run, result={**run.result, "parameters": parts}),))
    assert (row.tower_parameters, row.parameters) == (975, 3_975)
    assert row_of(results, "the head alone").tower_parameters == 0


def test_rows_that_cannot_be_are_refused(results: StudyResults) -> None:
    run = results.runs[0]
    with pytest.raises(ValueError, match="several runs of one seed"):
        Row("a", (run, run))
    with pytest.raises(ValueError, match="runs and a reason"):
        Row("a", (run,), reason="none")
    with pytest.raises(ValueError, match="none of the rows"):
        replace(results, reference="Bridger")
    with pytest.raises(ValueError, match="names of their own"):
        replace(results, rows=(*results.rows, results.rows[0]))


# Differences.


def test_differences_are_those_of_the_figures_of_the_same_seeds(results: StudyResults) -> None:
    assert {name for name, _, _ in results.differences} == {
        "the head alone",
        "Bridgers, 64 wide",
    }
    reference = results.reference_row
    for (name, split, metric), found in results.differences.items():
        gaps = [
            ours.metric(split, metric) - theirs.metric(split, metric)
            for ours, theirs in zip(row_of(results, name).runs, reference.runs, strict=True)
        ]
        assert found.spread.mean == pytest.approx(statistics.fmean(gaps), abs=1e-12)
        assert found.spread.deviation == pytest.approx(statistics.stdev(gaps))
        assert found.low < found.spread.mean < found.high
        assert found.sure == (found.low * found.high > 0)


def test_intervals_are_of_pictures_drawn_for_both_alike(tmp_path: Path) -> None:
    """An independent bootstrap: loops over drawn pictures, for both metrics."""
    ours, theirs = [cases(0), cases(1)], [cases(2), cases(3)]
    results = two(tmp_path, ours, theirs)
    random = np.random.default_rng(7)
    drawn: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for _ in range(1500):
        pictures = random.integers(30, size=30)
        rows = np.concatenate([np.flatnonzero(ours[0].picture == p) for p in pictures])
        gaps: dict[str, list[float]] = {metric: [] for metric in METRICS}
        for a, b in zip(ours, theirs, strict=True):
            ious = [c.intersection[rows] / c.union[rows] for c in (a, b)]
            sums = [c.intersection[rows].sum() / c.union[rows].sum() for c in (a, b)]
            gaps["mIoU"].append(float(ious[0].mean() - ious[1].mean()))
            gaps["oIoU"].append(float(sums[0] - sums[1]))
        for metric in METRICS:
            drawn[metric].append(statistics.fmean(gaps[metric]))
    for metric in METRICS:
        found = results.differences["ours", "val", metric]
        low, high = np.quantile(drawn[metric], [0.025, 0.975])
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_what_differs_alike_in_every_picture_is_sure(tmp_path: Path) -> None:
    union = np.full(40, 1000)
    few, more = (Cases(np.arange(40) // 2, np.full(40, n), union) for n in (300, 340))
    found = two(tmp_path, [more], [few]).differences["ours", "val", "mIoU"]
    assert (found.spread.mean, found.low, found.high) == pytest.approx((0.04,) * 3, abs=1e-6)
    assert found.sure and np.isnan(found.spread.deviation)


def test_more_sentences_of_the_same_pictures_make_no_interval_narrower(tmp_path: Path) -> None:
    def times(each: Cases, count: int) -> Cases:
        return Cases(*(np.tile(a, count) for a in (each.picture, each.intersection, each.union)))

    pairs = [
        two(tmp_path / str(count), [times(cases(0), count)], [times(cases(1), count)])
        for count in (1, 8)
    ]
    once, often = (r.differences["ours", "val", "mIoU"] for r in pairs)
    assert (often.low, often.high) == pytest.approx((once.low, once.high), abs=1e-9)


def test_the_other_way_round_everything_is_negated(results: StudyResults) -> None:
    turned = replace(results, reference="Bridgers, 64 wide")
    for split in SPLITS:
        there = results.differences["Bridgers, 64 wide", split, "mIoU"]
        back = turned.differences[results.reference, split, "mIoU"]
        assert back.spread.mean == pytest.approx(-there.spread.mean)
        assert (back.low, back.high) == pytest.approx((-there.high, -there.low))


def test_only_seeds_that_both_have_are_compared(tmp_path: Path) -> None:
    both = two(tmp_path, [cases(0), cases(1), cases(2)], [cases(3), cases(4)])
    alone = two(tmp_path / "again", [cases(0), cases(1)], [cases(3), cases(4)])
    found = both.differences["ours", "val", "mIoU"]
    assert found.seeds == (0, 1) and found == alone.differences["ours", "val", "mIoU"]
    ours = both.rows[1]
    apart = replace(both, rows=(both.rows[0], replace(ours, runs=ours.runs[2:])))
    assert apart.differences == {}


def test_runs_that_judged_other_expressions_are_refused(tmp_path: Path) -> None:
    results = two(tmp_path, [cases(0), cases(1, pictures=29)], [cases(2), cases(3)])
    with pytest.raises(
        ValueError, match=r"ours.seed-1 and .* other expressions of val \(58 and 60"
    ):
        _ = results.differences


def test_runs_that_saw_other_samples_are_named(results: StudyResults) -> None:
    assert results.unequal == [] and results.warnings == []
    odd = row_of(results, "the head alone")
    changed = []
    for run, samples in zip(
        odd.runs,
        ({"order": "other"}, {}, {"data": {"train": "other"}}),
        strict=True,
    ):
        own = {**run.result["samples"], **samples}
        changed.append(replace(run, result={**run.result, "samples": own}))
    rows = tuple(replace(r, runs=tuple(changed)) if r is odd else r for r in results.rows)
    unequal = replace(results, rows=rows)
    assert unequal.unequal == [
        "the head alone, seed 0: other samples, or another order",
        "the head alone, seed 2: of other data than the others",
    ]
    assert len(unequal.warnings) == 1 and len(replace(unequal, quick=True).warnings) == 2
