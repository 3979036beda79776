"""Reports of studies: rows over seeds, differences over pictures, plots, Markdown and a page."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from helpers_page import HOSTILE, Page
from helpers_study import COMPARED, SPLITS, Made, write_study

from bridger.evaluation.table import Links, Table
from bridger.studies import plots, sections
from bridger.studies.curves import curve_of, curve_plots
from bridger.studies.drawing import NO_PLOTS, can_plot, series_of
from bridger.studies.placing import Label, Placer
from bridger.studies.plots import PARAMETERS, TIME, accuracy_plot, difference_plot
from bridger.studies.report import PLOTS, write_report
from bridger.studies.results import METRICS, Row, Spread, StudyResults
from bridger.studies.store import Cases, Run, cases_file
from bridger.studies.tables import (
    cost_table,
    difference_table,
    main_table,
    markdown,
    missing_table,
    rates_table,
    runs_table,
)

FEW = COMPARED[:3] + COMPARED[-1:]
drawing = pytest.mark.skipif(not can_plot(), reason="needs matplotlib")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return write_study(tmp_path_factory.mktemp("study") / "runs", FEW)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return write_study(tmp_path_factory.mktemp("compared") / "runs")


def row_of(results: StudyResults, name: str) -> Row:
    return next(row for row in results.rows if row.name == name)


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


# Tables.


def test_tables_have_every_row_that_was_measured(results: StudyResults, tmp_path: Path) -> None:
    names = [row.name for row in results.measured]
    assert len(names) == 3
    shown = main_table(results, tmp_path)
    assert [row[0].removesuffix(" (reference)") for row in shown.rows] == names
    assert [row[0] for row in cost_table(results).rows] == names
    for metric in METRICS:
        compared = [row[0] for row in difference_table(results, metric).rows]
        assert compared == [name for name in names if name != results.reference]
    each = runs_table(results, tmp_path)
    assert [row[:2] for row in each.rows] == [[n, str(s)] for n in names for s in range(3)]
    missing = missing_table(results)
    assert missing and missing.rows == [[COMPARED[-1].name, COMPARED[-1].reason]]
    for table in (shown, each, cost_table(results), missing):
        assert {len(row) for row in table.rows} == {len(table.header)}


def test_cells_say_what_was_found(results: StudyResults) -> None:
    row = row_of(results, "Bridgers, 64 wide")
    cells = dict(zip(main_table(results).header, main_table(results).rows[2], strict=True))
    mean, deviation = row.spread("testB", "mIoU")
    assert cells["mIoU testB"] == f"{100 * mean:.2f} ± {100 * deviation:.2f}"
    assert (cells["trained, in towers"], cells["seeds"]) == ("121,000", "0 1 2")
    found = results.differences["the head alone", "val", "mIoU"]
    cell = difference_table(results, "mIoU").rows[0][1]
    assert found.high < 0 and cell.startswith(f"{100 * found.spread.mean:.2f} ± ")
    assert cell.endswith(f"[{100 * found.low:.2f}, {100 * found.high:.2f}] ▼")
    rates = rates_table(results)
    assert rates and rates.rows[0][2:] == ["30.00", "33.00", "31.00", "0.001", "7 min"]


def test_a_single_seed_has_no_spread(tmp_path: Path) -> None:
    results = write_study(tmp_path, FEW[:2], seeds=1)
    table = main_table(results)
    assert "±" not in "".join(cell for row in table.rows for cell in row)
    assert "±" not in difference_table(results, "mIoU").rows[0][1]


def test_markdown_keeps_a_table_a_table() -> None:
    hostile = Table("a|b", ["x", "y"], [["a | b\nc", Links({"0": "runs/a"})], ["*_`<b>", "[a](b)"]])
    lines = [line for line in markdown(hostile) if line.startswith("|")]
    assert lines[2:] == [
        "| a \\| b c | [0](runs/a) |",
        "| \\*\\_\\`\\<b\\> | [a\\](b) |",
    ]


# Plots.


def painted(monkeypatch: pytest.MonkeyPatch, module: Any, call: Any) -> Any:
    """Return the figure that a call paints, in place of its SVG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(layout="constrained")
    FigureCanvasAgg(made)
    monkeypatch.setattr(module, "draw", lambda size, paint: paint(made) or "drawn")
    assert call() == "drawn"
    return made


@drawing
def test_points_are_where_the_rows_are(
    compared: StudyResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = painted(monkeypatch, plots, lambda: accuracy_plot(compared, "testA", PARAMETERS))
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    drawn = {tuple(map(tuple, c.lines[0].get_xydata())) for c in axes.containers}
    by_group = {
        tuple((row.tower_parameters, 100 * row.mean("testA", "mIoU")) for row in series.rows)
        for series in series_of(compared)
        if series.name != "the head alone"
    }
    assert drawn == by_group and len(drawn) == 6
    whiskers = [c.lines[2][0].get_segments()[0] for c in axes.containers]
    spread = row_of(compared, "Bridgers, 16 wide").spread("testA", "mIoU")
    lengths = [segment[1, 1] - segment[0, 1] for segment in whiskers]
    assert pytest.approx(200 * spread.deviation) in lengths
    # What trains nothing in the towers is a level, named like all others.
    level = 100 * row_of(compared, "the head alone").mean("testA", "mIoU")
    assert [line for line in axes.lines if set(line.get_ydata()) == {level}]
    named = {text.get_text() for text in axes.texts}
    assert named >= {series.name for series in series_of(compared)}


@drawing
@pytest.mark.parametrize("axis", [PARAMETERS, TIME], ids=["parameters", "time"])
def test_labels_lie_in_the_axes_and_not_on_each_other(
    compared: StudyResults, axis: plots.Axis, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = painted(monkeypatch, plots, lambda: accuracy_plot(compared, "val", axis))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_tightbbox() for text in axes.texts]
    assert len(boxes) >= len(series_of(compared))
    room = axes.get_window_extent().padded(2)
    assert all(room.x0 <= box.x0 and box.x1 <= room.x1 for box in boxes)
    words = [text.get_window_extent() for text in axes.texts if not text.arrow_patch]
    assert not any(a.overlaps(b) for i, a in enumerate(words) for b in words[:i])


@drawing
def test_labels_without_need_give_way() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1))
    figure.draw_without_rendering()
    mesh = [np.array([(0, y), (1, y)]) for y in np.linspace(0, 1, 80)]
    placer = Placer(axes, mesh)
    placer.place(Label("optional", [(0.5, 0.5)], "black", needed=False))
    assert not axes.texts
    placer.place(Label("needed", [(0.5, 0.5)], "black"))
    assert [text.get_text() for text in axes.texts] == ["needed"]


@drawing
def test_there_is_no_plot_of_what_nothing_differs_in(tmp_path: Path) -> None:
    alone = write_study(tmp_path, [Made("a"), Made("b")], seeds=2)
    assert accuracy_plot(alone, "val", PARAMETERS) is None
    assert accuracy_plot(alone, "val", TIME) is not None
    single = replace(alone, rows=alone.rows[1:])
    assert difference_plot(single) is None and difference_plot(alone) is not None


def test_series_are_told_apart(compared: StudyResults) -> None:
    made = series_of(compared)
    looks = [series.look for series in made if series.main]
    assert len(set(looks)) == len(looks) == 6
    assert [series.name for series in made if series.strong] == ["Bridgers"]
    assert [series.name for series in made if not series.main] == ["the head alone"]
    many = replace(compared, rows=tuple(replace(r, group=r.name) for r in compared.rows))
    looks = [series.look for series in series_of(many)]
    assert len(set(looks)) == len(looks) == 12


def test_curves_are_of_the_steps_that_all_seeds_have(
    results: StudyResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = {
        0: [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "eval_mIoU": 0.25}],
        1: [{"step": 1, "loss": 5.0}, {"step": 2, "eval_mIoU": 0.35}],
    }
    monkeypatch.setattr(Run, "history", lambda run: histories[run.seed])
    row = results.rows[0]
    two_seeds = replace(row, runs=row.runs[:2])
    loss, figure = curve_of(two_seeds, "loss"), curve_of(two_seeds, "eval_mIoU")
    assert (list(loss.steps), list(loss.means)) == ([1], [4.0])
    assert loss.deviations[0] == pytest.approx(2**0.5)
    assert list(figure.means) == pytest.approx([30.0])
    assert list(curve_of(replace(row, runs=row.runs[:1]), "loss").deviations) == [0, 0]


@drawing
def test_every_method_has_curves(results: StudyResults) -> None:
    drawn = dict(curve_plots(results))
    assert list(drawn) == [series.name for series in series_of(results)]
    assert all(svg.count("<svg") == 1 for svg in drawn.values())


# Reports.


def links_in(text: str) -> list[str]:
    return re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", text)


@drawing
@pytest.mark.slow
def test_the_page_holds_everything_and_leads_to_every_run(
    results: StudyResults, tmp_path: Path
) -> None:
    folder = results.runs[0].folder.parent.parent.parent / "reports" / "some study"
    write_report(folder, results)
    page = Page((folder / "report.html").read_text())
    assert "script" not in page.tags and "link" not in page.tags and "b" not in page.tags
    sources = page.values("img", "src")
    assert sources and all(source.startswith("data:image/") for source in sources)
    pictures = [s for s in sources if s.startswith("data:image/jpeg")]
    assert len(pictures) == 2 * len(results.measured)
    assert "the left <b>cup</b> & saucer" in page.words
    linked = {(folder / unquote(a)).resolve() for a in page.values("a", "href")}
    assert linked == {run.folder.resolve() for run in results.runs}
    text = (folder / "report.md").read_text()
    assert {(folder / unquote(a)).resolve() for a in links_in(text)} == linked
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    there = {f"{PLOTS}/{path.name}" for path in (folder / PLOTS).iterdir()}
    assert set(shown) == there and len(shown) == len(sources) - len(pictures)
    for words in ("Compacter", "the library adapters asks", "At each seed, all runs saw"):
        assert any(words in said for said in page.words) and words in text
    # The same results make the same files; what was there before goes.
    before = (folder / "report.html").read_bytes()
    (folder / PLOTS / "old.svg").touch()
    write_report(folder, results)
    assert (folder / "report.html").read_bytes() == before
    assert not (folder / PLOTS / "old.svg").exists()


def test_without_matplotlib_there_are_tables_and_pictures(
    results: StudyResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "can_plot", lambda: False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_report(tmp_path, results)
    page, text = Page((tmp_path / "report.html").read_text()), (tmp_path / "report.md").read_text()
    assert NO_PLOTS in page.words and "pip install 'bridger-peft[studies]'" in text
    assert not any("svg" in source for source in page.values("img", "src"))
    assert "![" not in text and list((tmp_path / PLOTS).iterdir()) == []
    assert len(page.values("img", "src")) == 2 * len(results.measured)


def test_names_and_warnings_are_shown_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "can_plot", lambda: False)
    made = [Made(HOSTILE), Made("b", reason=HOSTILE)]
    results = write_study(tmp_path / "runs", made, seeds=1)
    odd = replace(results, name=HOSTILE, note=HOSTILE, quick=True)
    write_report(tmp_path / "out", odd)
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "script" not in page.tags and "b" not in page.tags
    assert page.words.count(HOSTILE) >= 4
    assert ("p", "class", "warning") in page.attributes
    text = (tmp_path / "out" / "report.md").read_text()
    assert "A quick run" in text and "<script>" not in text


def test_a_study_without_a_finished_run_says_why(tmp_path: Path) -> None:
    rows = (Row("a", reason="its runs ended with an error"), Row("b"))
    write_report(tmp_path, StudyResults("s", "", "a", SPLITS, rows))
    text = (tmp_path / "report.md").read_text()
    assert "| a | its runs ended with an error |" in text and "| b | not finished |" in text


@pytest.mark.slow
def test_matplotlib_is_imported_when_something_is_drawn() -> None:
    code = "import bridger.studies.report, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
