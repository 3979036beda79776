"""The plots of studies: points where the rows are, labels that can be read, curves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_study import Made, drawing, row_of, write_study

from bridger.studies import plots
from bridger.studies.curves import curve_of, curve_plots
from bridger.studies.drawing import series_of
from bridger.studies.placing import Label, Placer
from bridger.studies.plots import PARAMETERS, TIME, accuracy_plot, difference_plot
from bridger.studies.results import StudyResults
from bridger.studies.store import Run


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return write_study(tmp_path_factory.mktemp("compared") / "runs")


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
        1: [{"step": 1, "loss": 5.0}, {"step": 2, "loss": None, "eval_mIoU": 0.35}],
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
