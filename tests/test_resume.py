"""Runs that were killed: what is resumed from, and that the end is that of an undisturbed run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers_training import Run, adapter, assert_same, make_runs, make_trainer, numbers, result

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


def test_after_mixed_precision_the_forward_is_the_users_again(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1, save_strategy="no", bf16=True)
    before = numbers(trainer.model)
    trainer.train()
    assert "forward" not in vars(trainer.model)
    assert any((before[name] != value).any() for name, value in numbers(trainer.model).items())
