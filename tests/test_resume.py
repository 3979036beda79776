"""Runs that were killed: what is resumed from, and that the end is that of an undisturbed run."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import (
    Run,
    adapter,
    assert_same,
    make_model,
    make_runs,
    make_trainer,
    numbers,
    result,
)
from transformers import TrainerCallback

from bridger import BridgedModel
from bridger.training import BridgerTrainer
from bridger.training.checkpoints import is_whole, newest_whole, remove_unfinished
from bridger.training.run import has_checkpoint

DEATHS = {
    "step 3": 2,
    "step 5": 4,
    "adapter": 2,
    "optimizer": 2,
    "state": 2,
    "deleting": 6,
}
"""Where a run dies, and the step that it has to be resumed from."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run's folder, "whole", and one for each of `DEATHS`."""
    folder = tmp_path_factory.mktemp("killed")
    Run(str(folder / "whole"))()
    runs = [Run(str(folder / place), die=place) for place in DEATHS]
    assert make_runs(folder, runs, "--fork") == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("place", DEATHS)
def test_a_killed_run_resumes_to_the_same_bits(place: str, killed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed / place, folder)  # elsewhere, as runs get moved
    checkpoints = folder / "checkpoints"
    newest = newest_whole(checkpoints)
    assert newest is not None and newest.name == f"checkpoint-{DEATHS[place]}"
    assert not (folder / "bridger.safetensors").exists()
    Run(str(folder), resume=True)()
    assert_same(adapter(killed / "whole"), adapter(folder))
    logs = [result(f)["history"] for f in (killed / "whole", folder)]
    for one, other in zip(*logs, strict=True):
        measured = {name for name in one if "runtime" in name or "per_second" in name}
        if "train_loss" not in one:  # of the part since the start or the resumption
            assert {n: one[n] for n in one if n not in measured} == {
                n: other[n] for n in other if n not in measured
            }
    # The best one is step 4's, as in the undisturbed run, and what was left unfinished is gone.
    assert_same(adapter(checkpoints / "checkpoint-4"), adapter(folder))
    assert all(is_whole(path) for path in checkpoints.glob("checkpoint-*"))


@pytest.mark.slow
def test_a_run_keeps_its_best_step(tmp_path: Path) -> None:
    Run(str(tmp_path))()
    best, last = (tmp_path / "checkpoints" / f"checkpoint-{step}" for step in (4, 6))
    assert_same(adapter(best), adapter(tmp_path))
    with pytest.raises(AssertionError):
        assert_same(adapter(last), adapter(tmp_path))


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    assert newest_whole(checkpoints) is None and not has_checkpoint(tmp_path)
    for step, state in ((2, "{}"), (10, "{}"), (12, '{"global_step": 1'), (14, None)):
        (checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        if state is not None:
            (checkpoints / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (checkpoints / "checkpoint-best").mkdir()
    (checkpoints / "checkpoint-99").write_text("a file")
    assert newest_whole(checkpoints) == checkpoints / "checkpoint-10" and has_checkpoint(tmp_path)
    remove_unfinished(checkpoints)
    left = sorted(path.name for path in checkpoints.iterdir())
    assert left == ["checkpoint-10", "checkpoint-2", "checkpoint-99", "checkpoint-best"]


def test_without_a_whole_checkpoint_there_is_nothing_to_resume(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match="no whole checkpoint"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)


class PressCtrlC(TrainerCallback):
    """Ctrl-C at an event of a step."""

    def __init__(self, event: str, step: int) -> None:
        self.step = step
        setattr(self, event, self._press)

    def _press(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def with_evaluations(folder: Path, *presses: tuple[str, int], **changes: Any) -> BridgerTrainer:
    """A run by the Trainer's own evaluation, with dropout, whose best step is the fourth."""

    def nearness(prediction: Any) -> dict[str, float]:
        return {"nearness": -abs(trainer.state.global_step - 4)}

    options = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "nearness"}
    options |= {"greater_is_better": True, "load_best_model_at_end": True, "save_total_limit": 2}
    trainer = make_trainer(
        folder,
        callbacks=[PressCtrlC(*press) for press in presses],
        compute_metrics=nearness,
        **{**options, **changes},
    )
    return trainer


def evaluations(trainer: BridgerTrainer) -> list[tuple[int, float, float]]:
    history = trainer.state.log_history
    return [(e["step"], e["eval_loss"], e["eval_nearness"]) for e in history if "eval_loss" in e]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> BridgerTrainer:
    trainer = with_evaluations(tmp_path_factory.mktemp("undisturbed"))
    trainer.train()
    assert [step for step, *_ in evaluations(trainer)] == [2, 4, 6]
    assert trainer.state.best_global_step == 4
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "step", "saved"),
    [
        ("on_pre_optimizer_step", 3, 4),
        ("on_prediction_step", 4, 4),
        ("on_evaluate", 4, 4),
        ("on_pre_optimizer_step", 4, 5),
        ("on_pre_optimizer_step", 5, 6),
        ("on_prediction_step", 6, 6),
    ],
)
def test_an_evaluation_that_ctrl_c_prevents_is_made_up_for(
    event: str, step: int, saved: int, undisturbed: BridgerTrainer, tmp_path: Path
) -> None:
    """In or after the update of a step, in its evaluation, and when that was logged."""
    with pytest.raises(KeyboardInterrupt):
        with_evaluations(tmp_path, (event, step)).train()
    assert newest_whole(tmp_path) == tmp_path / f"checkpoint-{saved}"
    # Once more, while it is made up for: what was saved stays.
    if saved % 2 == 0 and event != "on_evaluate":
        with pytest.raises(KeyboardInterrupt):
            with_evaluations(tmp_path, ("on_prediction_step", saved)).train(True)
    resumed = with_evaluations(tmp_path)
    resumed.train(True)
    assert evaluations(resumed) == evaluations(undisturbed)
    assert resumed.state.best_global_step == 4
    assert_same(numbers(undisturbed.model), numbers(resumed.model))
    last = "checkpoint-6"
    assert_same(adapter(Path(undisturbed.args.output_dir, last)), adapter(tmp_path / last))


@pytest.mark.slow
def test_ctrl_c_in_an_epoch_evaluates_at_its_end_alone(tmp_path: Path) -> None:
    options = {"eval_strategy": "epoch", "save_strategy": "epoch"}  # an epoch has two steps
    whole = with_evaluations(tmp_path / "whole", **options)
    whole.train()
    assert [step for step, *_ in evaluations(whole)] == [2, 4, 6]
    for name, step, saved in (("middle", 2, 3), ("end", 3, 4)):
        folder = tmp_path / name
        stopped = with_evaluations(folder, ("on_pre_optimizer_step", step), **options)
        with pytest.raises(KeyboardInterrupt):
            stopped.train()
        assert stopped.state.global_step == saved and len(evaluations(stopped)) == 1
        resumed = with_evaluations(folder, **options)
        resumed.train(True)
        assert evaluations(resumed) == evaluations(whole)
        assert_same(numbers(whole.model), numbers(resumed.model))


def test_after_mixed_precision_the_forward_is_the_users_again(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1, save_strategy="no", bf16=True)
    before = numbers(trainer.model)
    trainer.train()
    assert "forward" not in vars(trainer.model)
    assert any((before[name] != value).any() for name, value in numbers(trainer.model).items())


def autocast_in_training(
    folder: Path, model: BridgedModel, bf16: bool, evaluate: bool = False
) -> bool:
    seen: list[bool] = []
    trainer = make_trainer(folder, model, max_steps=1, save_strategy="no", bf16=bf16)
    if evaluate:
        trainer.evaluate()
    hook = model.encoder.register_forward_pre_hook(
        lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
    )
    trainer.train()
    hook.remove()
    assert len(set(seen)) == 1
    return seen[0]


@pytest.mark.slow
def test_each_training_of_a_model_has_its_own_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    for bf16 in (False, True, False, True):
        # In transformers 4, arguments leave their precision to later ones; see `Recipe.arguments`.
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        assert autocast_in_training(tmp_path, model, bf16) == bf16
    assert autocast_in_training(tmp_path, make_model(), True, evaluate=True)
