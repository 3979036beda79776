"""BridgerTrainer: resuming to the same bits, checkpoints without towers, Ctrl-C."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers_towers import PAIRS
from helpers_training import assert_same, make_model, make_trainer, numbers
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from bridger import BridgedModel
from bridger.recomputing import recomputes


def test_training_lowers_the_loss_and_leaves_the_towers_alone(tmp_path: Path) -> None:
    model = make_model()
    towers = {name: t.clone() for name, t in model.encoder.towers.state_dict().items()}
    trainer = make_trainer(tmp_path, model, max_steps=30, save_strategy="no")
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert_same(towers, model.encoder.towers.state_dict())


@pytest.mark.slow
def test_a_resumed_run_ends_at_the_same_bits(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    resumed = make_trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.state.global_step == 6
    assert_same(numbers(whole.model), numbers(resumed.model))


@pytest.mark.slow
def test_recomputing_in_backward_ends_at_the_same_bits(tmp_path: Path) -> None:
    names = ("activation_checkpointing", "gradient_checkpointing")  # in 5.x, and before
    option = next(name for name in names if name in TrainingArguments.__dataclass_fields__)
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    saving = make_trainer(tmp_path / "saving", **{option: True})
    saving.train()
    assert any(map(recomputes, saving.model.modules()))
    assert_same(numbers(whole.model), numbers(saving.model))


def test_a_checkpoint_holds_the_adapter_and_no_tower(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    assert not list(folder.glob("*model*")) and not (folder / "training_args.bin").exists()
    saved = load_file(folder / "bridger.safetensors")
    assert_same(dict(sorted(saved.items())), dict(sorted(numbers(trainer.model).items())))
    assert not any("towers." in name for name in saved)
    again = BridgedModel.from_pretrained(folder, *PAIRS["open_clip_vit"]())
    assert_same(numbers(trainer.model), numbers(again))


def test_evaluation_reports_its_loss_and_leaves_heads_out_of_predictions(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def shapes(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions.shape)
        return {}

    trainer = make_trainer(tmp_path)
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.compute_metrics = shapes
    trainer.evaluate()
    assert seen == [(8, 1, 8, 8)]


@pytest.mark.slow
def test_the_best_adapter_by_the_score_is_kept(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    scores = [0.1, 0.9, 0.3]

    def score(model: BridgedModel) -> dict[str, float]:
        seen.append(numbers(model))
        return {"mIoU": scores[len(seen) - 1]}

    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    trainer = make_trainer(
        tmp_path, score=score, eval_dataset=None, metric_for_best_model="mIoU", **options
    )
    trainer.train()
    assert trainer.state.best_metric == 0.9
    # How much a score judges is not known, and so neither its speed.
    figures = [e for e in trainer.state.log_history if "eval_mIoU" in e]
    assert [set(e) for e in figures] == [{"eval_mIoU", "eval_runtime", "epoch", "step"}] * 3
    assert_same(numbers(trainer.model), seen[1])


def test_the_last_step_is_evaluated_too(tmp_path: Path) -> None:
    steps: list[int] = []

    def score(model: BridgedModel) -> dict[str, float]:
        steps.append(trainer.state.global_step)
        return {"mIoU": 0.0}

    trainer = make_trainer(tmp_path, score=score, eval_strategy="steps", eval_steps=4)
    trainer.train()
    assert steps == [4, 6]


def test_parts_have_learning_rates_of_their_own(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, learning_rates={"bridgers": 0.5}, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    bridgers = {id(p) for p in trainer.model.encoder.bridgers.parameters()}
    for group in groups:
        inside = {id(p) in bridgers for p in group["params"]}
        assert inside == {group["lr"] == 0.5}
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    trained = [id(p) for group in groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in trainer.model.trainable_parameters())
    with pytest.raises(ValueError, match="'bridger'.*did you mean 'bridgers'"):
        make_trainer(tmp_path, learning_rates={"bridger": 1.0})


class PressCtrlC(TrainerCallback):
    """Ctrl-C in the middle of a step, as the user's terminal would send it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_ctrl_c_saves_and_resuming_equals_the_whole_run(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    before = signal.getsignal(signal.SIGINT)
    stopped = make_trainer(tmp_path / "stopped", callbacks=[PressCtrlC(2)])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert signal.getsignal(signal.SIGINT) is before
    assert stopped.state.global_step == 3
    resumed = make_trainer(tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    assert_same(numbers(whole.model), numbers(resumed.model))


def test_ctrl_c_during_an_evaluation_saves_at_once(tmp_path: Path) -> None:
    def score(model: BridgedModel) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the evaluation went on")

    options = {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 3}
    stopped = make_trainer(tmp_path, score=score, **options)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert (tmp_path / "checkpoint-3" / "bridger.safetensors").is_file()


def test_progress_in_a_pipe_is_plain_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(tmp_path, max_steps=2, save_strategy="no", disable_tqdm=False).train()
    out, err = capsys.readouterr()
    assert "step 1/2: loss" in err and "\r" not in err
    assert out == ""
