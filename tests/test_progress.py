"""What a run says of itself: time that is left, the bar, plain lines in a pipe."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_training import make_trainer

from bridger.training.progress import Progress, evaluations_left
from bridger.training.remaining import WARM_UP, Remaining


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def steps(remaining: Remaining, clock: Clock, *seconds: float) -> None:
    for each in seconds:
        clock.pass_by(each)
        remaining.step()


def test_first_steps_are_not_reckoned_with() -> None:
    clock = Clock()
    remaining = Remaining(clock)
    clock.pass_by(500)
    remaining.begin()
    steps(remaining, clock, *[90.0] * WARM_UP)
    assert remaining.seconds(10, 0) is None and remaining.text(10, 0) == ""
    steps(remaining, clock, 2, 4)
    assert remaining.seconds(10, 0) == 30 and remaining.text(10, 0) == "30 s left"


def test_evaluations_count_by_themselves() -> None:
    clock = Clock()
    remaining = Remaining(clock)
    remaining.begin()
    steps(remaining, clock, *[1.0] * WARM_UP, 2)
    assert remaining.text(10, 3) == "20 s + evaluations left"
    with remaining.evaluation():
        clock.pass_by(100)
    clock.pass_by(1)  # saving, which belongs to the step
    steps(remaining, clock, 3)
    assert remaining.seconds(10, 0) == 10 * (2 + 4) / 2
    with remaining.evaluation():
        clock.pass_by(200)
    steps(remaining, clock, 3)
    assert remaining.seconds(10, 2) == 10 * (2 + 4 + 3) / 3 + 2 * 150
    assert remaining.text(0, 2) == "5 min left" and remaining.text(0, 0) == ""
    assert remaining.text(1300, 2) == "1 h 10 min left"


def test_an_evaluation_that_was_broken_off_tells_nothing() -> None:
    clock = Clock()
    remaining = Remaining(clock)
    remaining.begin()
    steps(remaining, clock, *[1.0] * WARM_UP, 2)
    with pytest.raises(KeyboardInterrupt), remaining.evaluation():
        raise KeyboardInterrupt
    assert remaining.text(10, 1) == "20 s + evaluations left"


@pytest.mark.parametrize(
    ("strategy", "every", "last", "judged", "left"),
    [
        ("steps", 5, 20, 0, 4),
        ("steps", 5, 20, 15, 1),
        ("steps", 5, 20, 20, 0),
        ("steps", 8, 20, 8, 2),  # at 16, and the last step's
        ("steps", 8, 20, 17, 1),
        ("epoch", None, 30, 10, 2),
        ("no", None, 30, 0, 0),
    ],
)
def test_evaluations_that_are_left(
    strategy: str, every: int | None, last: int, judged: int, left: int
) -> None:
    state = SimpleNamespace(max_steps=last, eval_steps=every, num_train_epochs=3)
    assert evaluations_left(SimpleNamespace(eval_strategy=strategy), state, judged) == left


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_tells_loss_figures_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = Progress(clock)
    state: Any = SimpleNamespace(
        global_step=0,
        max_steps=10,
        eval_steps=5,
        best_metric=0.5,
        best_global_step=None,
        is_world_process_zero=True,
    )
    args = SimpleNamespace(
        eval_strategy="steps", metric_for_best_model="eval_mIoU", greater_is_better=True
    )
    progress.on_train_begin(args, state, None)
    for _ in range(5):
        clock.pass_by(2)
        state.global_step += 1
        progress.on_step_end(args, state, None)
    progress.on_log(args, state, None, {"loss": 0.25})
    shown = str(progress.bar)
    assert "5/10" in shown and "loss 0.2500, 10 s + evaluations left" in shown
    with progress.evaluating(args, state):
        clock.pass_by(7)
        progress.judging(3, 40, 0.875)
        assert "judging 3/40, mIoU so far 87.50 %" in str(progress.bar)
        progress.on_log(args, state, None, {"eval_loss": 1.0, "eval_mIoU": 0.4})
    assert "step 5: validation" in screen.getvalue()
    clock.pass_by(2)
    state.global_step += 1
    progress.on_step_end(args, state, None)
    shown = str(progress.bar)
    assert "loss 0.2500, mIoU 40.00 % (best 50.00 %), 15 s left" in shown
    assert "judging" not in shown
    progress.close()
    assert progress.bar is None


def test_lines_in_a_pipe_tell_the_best_so_far(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = iter((0.5, 0.25, 0.75))
    make_trainer(
        tmp_path,
        max_steps=6,
        disable_tqdm=False,
        score=lambda model: {"gIoU": next(scores)},
        eval_dataset=None,
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="gIoU",
        greater_is_better=True,
        load_best_model_at_end=True,
    ).train()
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err
    assert "step 2/6: validation: gIoU 50.00 %\n" in err
    assert "step 4/6: validation: gIoU 25.00 % (best so far: gIoU 50.00 %)" in err
    assert "step 6/6: validation: gIoU 75.00 %\n" in err
    assert "kept step 6: gIoU 75.00 %\n" in err
