"""Whole runs by `train`: what they leave behind, and how they are resumed and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers_training import adapter, assert_same, make_trainer
from PIL import Image
from torch.optim.lr_scheduler import LambdaLR

from bridger.data import RefCOCO
from bridger.data.collate import CACHE_BYTES
from bridger.data.scenes import write_scenes
from bridger.evaluation.generalized import generalized_ratios
from bridger.evaluation.metrics import values_of
from bridger.tasks import get_task
from bridger.tasks.referring_segmentation import GENERALIZED_METRICS
from bridger.training import Recipe, train
from bridger.training.callbacks import Interruption
from bridger.training.run import has_checkpoint

HEAD = {"width": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
SMALL = Recipe(
    head=HEAD,
    bridger_options={"hidden_dim": 16, "num_heads": 2, "ffn_dim": 16, "dropout": 0.0},
    steps=4,
    batch_size=4,
    evaluations=2,
    bridger_learning_rate=5e-4,
    report_to=(),
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"train": 6, "val": 3, "testA": 1, "testB": 1}, size=64)
    return folder


def run(scenes: Path, out: Path, recipe: Recipe = SMALL, **options: Any) -> None:
    splits = {name: RefCOCO(scenes, split) for name, split in (("t", "train"), ("v", "val"))}
    train(recipe, splits["t"], out, validation=splits["v"], **options).detach()


@pytest.mark.slow
def test_a_run_leaves_logs_and_pictures(scenes: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(scenes, tmp_path, SMALL.replace(report_to=("tensorboard",)))
    history = json.loads((tmp_path / "history.json").read_text())
    events = accumulator.EventAccumulator(str(tmp_path / "runs")).Reload()
    for tag, name in (
        ("train/loss", "loss"),
        ("train/grad_norm", "grad_norm"),
        ("train/learning_rate/bridgers", "learning_rate/bridgers"),
        ("train/learning_rate/head", "learning_rate/head"),
        ("eval/mIoU", "eval_mIoU"),
        ("eval/P@0.5", "eval_P@0.5"),
        ("eval/loss", "eval_loss"),
    ):
        expected = [(entry["step"], entry[name]) for entry in history if name in entry]
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert len(found) == len(expected) > 0
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [v for _, v in found] == pytest.approx([v for _, v in expected], rel=1e-6)
    rates = [entry for entry in history if "learning_rate/head" in entry]
    assert all(e["learning_rate/head"] == 2 * e["learning_rate/bridgers"] for e in rates)
    shown = events.Images("predictions")
    assert [image.step for image in shown] == [2, 4]
    sheets = sorted((tmp_path / "pictures").iterdir())
    assert [sheet.name for sheet in sheets] == ["step-000002.png", "step-000004.png"]
    for sheet, image in zip(sheets, shown, strict=True):
        with Image.open(sheet) as opened:
            assert opened.size == (image.width, image.height)
            assert opened.height > 4 * 300 and opened.width > 2 * 300


@pytest.mark.slow
def test_workers_change_nothing(scenes: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        run(scenes, tmp_path / str(workers), workers=workers)
    assert_same(adapter(tmp_path / "0"), adapter(tmp_path / "2"))
    assert not (tmp_path / "0" / "runs").exists()


@pytest.mark.slow
def test_unfinished_checkpoints_are_none(scenes: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "checkpoints" / "checkpoint-2"
    unfinished.mkdir(parents=True)
    (unfinished / "rng_state_1.pth").write_text("of another process, once")
    assert not has_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        run(scenes, tmp_path, resume=True)
    run(scenes, tmp_path)
    assert has_checkpoint(tmp_path) and not (unfinished / "rng_state_1.pth").exists()
    with pytest.raises(FileExistsError, match="already holds checkpoints"):
        run(scenes, tmp_path)


@pytest.mark.slow
def test_the_recipe_s_metric_chooses(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path, SMALL.replace(metric="oIoU"))
    history = json.loads((tmp_path / "history.json").read_text())
    values = {e["step"]: e["eval_oIoU"] for e in history if "eval_oIoU" in e}
    best = max(values, key=lambda step: values[step])
    assert_same(adapter(tmp_path / "checkpoints" / f"checkpoint-{best}"), adapter(tmp_path))


def test_a_metric_that_the_data_cannot_give_is_refused_first(scenes: Path, tmp_path: Path) -> None:
    recipe = SMALL.replace(metric="gIoU", towers="nowhere:to be found")
    with pytest.raises(ValueError, match="metric='gIoU' needs .*: choose one of mIoU, .*P@0.9$"):
        run(scenes, tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "meant", [(1, 1), (0, 0), (0, 1), (1, 2), (2, 2), (0, 2)], ids=lambda meant: str(meant)
)
def test_metrics_are_refused_where_they_are_not_defined(meant: tuple[int, ...]) -> None:
    data: Any = [SimpleNamespace(ann_ids=tuple(range(count))) for count in meant]
    areas = np.array([10 * count for count in meant])
    given = values_of(generalized_ratios(areas, areas, areas)) if set(meant) != {1} else {}
    task = get_task("referring_segmentation")
    for metric in task.metrics:
        recipe = SMALL.replace(metric=metric)
        if metric in given or metric not in GENERALIZED_METRICS:
            task.check(recipe, data, data)
            continue
        with pytest.raises(ValueError, match=f"metric='{metric}'") as refused:
            task.check(recipe, data, data)
        names = str(refused.value).rpartition("one of ")[2].split(", ")
        assert names == [n for n in task.metrics if n in given or n not in GENERALIZED_METRICS]


@pytest.mark.slow
def test_evaluations_let_ctrl_c_of_other_processes_in(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(Interruption, "break_off", lambda self, device: calls.append(device))
    run(scenes, tmp_path)
    assert len(calls) >= 2 and {device.type for device in calls} == {"cpu"}


@pytest.mark.parametrize(("workers", "shares"), [(0, 1), (2, 2)])
def test_workers_share_the_memory_for_pictures(
    workers: int, shares: int, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made(Exception):
        pass

    def make(processor: Any, *, cache: int) -> Any:
        assert cache == CACHE_BYTES // shares
        raise Made

    monkeypatch.setattr("bridger.tasks.referring_segmentation.RaggedRefCollator", make)
    with pytest.raises(Made):
        run(scenes, tmp_path, workers=workers)


def test_the_scheduler_is_the_one_that_was_given(tmp_path: Path) -> None:
    asked: list[int] = []

    def falling(optimizer: Any, total: int) -> LambdaLR:
        asked.append(total)
        return LambdaLR(optimizer, lambda update: 0.5**update)

    trainer = make_trainer(tmp_path, scheduler=falling, learning_rates={"bridgers": 0.4})
    trainer.train()
    assert asked == [6]
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    rates = [entry["learning_rate/bridgers"] for entry in logs]
    assert rates == pytest.approx([0.4 * 0.5**update for update in range(6)])
    heads = [entry["learning_rate/head"] for entry in logs]
    assert heads == pytest.approx([1e-2 * 0.5**update for update in range(6)])


def launch(*arguments: Any, processes: int = 2) -> subprocess.Popen[str]:
    """Start a command of several processes, as users do."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launcher, "-m", "bridger", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_and_the_run_goes_on(scenes: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    SMALL.replace(steps=40, evaluations=1).save(recipe)
    out = tmp_path / "out"
    common = ("train", "--data", scenes, "--out", out)
    started = launch("train", recipe, *common[1:])
    # Steps take a while, and the first line comes after two of them.
    assert started.stderr is not None
    said = ""
    while "step 2/40" not in said and started.poll() is None:
        said += started.stderr.readline()
    started.send_signal(signal.SIGINT)
    said += started.communicate(timeout=120)[1]
    assert said.count("stopping after this step") == 1
    assert said.count("bridger: interrupted; go on with") == 1
    left = [path.name for path in (out / "checkpoints").iterdir()]
    assert len(left) == 1 and left != ["checkpoint-40"] and has_checkpoint(out)
    resumed = launch(*common, "--resume")
    printed, said = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, said
    assert printed.count("saved ") == 1  # by one of them
    assert said.count("step 40/40: loss") == 1
    history = json.loads((out / "history.json").read_text())
    logged = [entry["step"] for entry in history if "loss" in entry]
    assert logged == list(range(2, 41, 2))
    run(scenes, tmp_path / "alone", Recipe.load(recipe))
    expected = json.loads((tmp_path / "alone" / "history.json").read_text())
    first, other = ([e["loss"] for e in h if "loss" in e][0] for h in (expected, history))
    assert other == pytest.approx(first, rel=1e-5)
