"""Two processes on gloo against one: items, losses, gradients, BatchNorm, metrics, and deaths.

With SGD, rounding (sums over other orders) stays what it is: losses and weights agree to 1e-5.
Adam takes a step of the same size for a gradient that is rounding alone, so there the first
losses agree as well, and later ones less; see `test_with_adam_too`.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate.utils import FullyShardedDataParallelPlugin
from helpers_training import (
    INTERRUPTED,
    STEPS,
    Run,
    adapter,
    figures,
    make_model,
    make_runs,
    make_trainer,
    result,
)
from torch import nn

from bridger.__main__ import run as run_command
from bridger.evaluation.ranks import connect, gather
from bridger.training import batch_norm, distributed
from bridger.training.batch_norm import GatheredBatchNorm
from bridger.training.checkpoints import newest_whole

if not dist.is_available():
    pytest.skip("this torch knows no processes", allow_module_level=True)

SGD = {"optim": "sgd", "learning_rate": 0.1}
RUNS: dict[str, dict[str, Any]] = {
    "batch norm": {"args": SGD},
    "ragged": {"head": "dot", "expressions": 3, "ragged": True, "args": SGD},
    "accumulated": {
        "head": "dot",
        "expressions": 3,
        "ragged": True,
        "args": {**SGD, "gradient_accumulation_steps": 2},
    },
    "resting": {"head": "resting", "expressions": 3, "ragged": True, "args": SGD},
    "adam": {"args": {}},
}


def runs_in(folder: Path) -> list[Run]:
    return [Run(str(folder / name), **options) for name, options in RUNS.items()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of `RUNS`."""
    folder = tmp_path_factory.mktemp("alone")
    for run in runs_in(folder):
        run()
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make of `RUNS`."""
    folder = tmp_path_factory.mktemp("both")
    assert make_runs(folder, runs_in(folder), processes=2) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_an_update_has_the_items_of_one_process(name: str, both: Path) -> None:
    """Each item once, in its own update, whatever the processes and batches that share it."""
    seen = [result(both / name, rank)["seen"] for rank in (0, 1)]
    assert all(len(mine) == 2 * STEPS for mine in seen)
    for update in range(STEPS):
        shares = [mine[2 * update : 2 * update + 2] for mine in seen]
        assert sorted(sum(shares, [])) == list(range(4 * update, 4 * update + 4))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["batch norm", "ragged", "accumulated", "resting"])
def test_two_processes_learn_what_one_learns(name: str, alone: Path, both: Path) -> None:
    for figure, count in (("loss", STEPS), ("grad_norm", STEPS), ("eval_answer", STEPS // 2)):
        expected = figures(alone / name, figure)
        assert len(set(expected)) == len(expected) == count
        assert figures(both / name, figure) == pytest.approx(expected, rel=1e-5)
    assert_close(adapter(alone / name), adapter(both / name), 1e-5)


@pytest.mark.slow
def test_accumulated_batches_count_by_their_expressions(alone: Path) -> None:
    """Without BatchNorm, an update is the same however it is cut."""
    for figure in ("loss", "grad_norm"):
        expected = figures(alone / "ragged", figure)
        assert figures(alone / "accumulated", figure) == pytest.approx(expected, rel=1e-5)
    assert_close(adapter(alone / "ragged"), adapter(alone / "accumulated"), 1e-5)


@pytest.mark.slow
def test_a_head_that_rests_changes_nothing(alone: Path, both: Path) -> None:
    for folder in (alone, both):
        assert figures(folder / "resting", "loss") == figures(folder / "ragged", "loss")
        expected, found = adapter(folder / "ragged"), adapter(folder / "resting")
        assert [n for n in expected if not torch.equal(expected[n], found[n])] == []
        resting = [name for name in found if name.startswith("heads.other.")]
        assert resting and {*found} == {*expected, *resting}


@pytest.mark.slow
def test_with_adam_too(alone: Path, both: Path) -> None:
    expected, found = (figures(folder / "adam", "loss") for folder in (alone, both))
    assert found[:2] == pytest.approx(expected[:2], rel=1e-5)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_both_processes_hold_the_same_and_one_writes(both: Path) -> None:
    for name in RUNS:
        assert figures(both / name, "eval_answer", 0) == figures(both / name, "eval_answer", 1)
        checkpoint = both / name / "checkpoints" / "checkpoint-6"
        assert {p.name for p in checkpoint.glob("rng*")} == {"rng_state_0.pth", "rng_state_1.pth"}


@pytest.mark.slow
def test_afterwards_the_modules_are_the_models_own(alone: Path, both: Path) -> None:
    assert result(both / "batch norm")["modules"] == result(alone / "batch norm")["modules"]
    assert "BatchNorm2d" in result(both / "batch norm")["modules"]
    names = {folder: list(adapter(folder / "batch norm")) for folder in (alone, both)}
    assert names[alone] == names[both] and any("running_var" in n for n in names[both])


@pytest.mark.slow
def test_when_one_process_is_killed_the_run_can_go_on(alone: Path, tmp_path: Path) -> None:
    """Its launcher ends the others; what is resumed ends close to the undisturbed run."""
    killed = Run(str(tmp_path), args=SGD, die="step 5", rank=1)
    assert make_runs(tmp_path, [killed], processes=2) != 0
    assert not (tmp_path / "bridger.safetensors").exists()
    assert make_runs(tmp_path, [Run(str(tmp_path), args=SGD, resume=True)], processes=2) == 0
    expected = figures(alone / "batch norm", "loss")
    assert figures(tmp_path, "loss") == pytest.approx(expected, rel=1e-5)
    assert_close(adapter(alone / "batch norm"), adapter(tmp_path), 1e-5)
    # It had to be made again from step 4 on: each process had seen two items by update.
    assert len(result(tmp_path, 1)["seen"]) == 2 * (STEPS - 4)


@pytest.mark.slow
def test_an_evaluation_is_broken_off_by_all_together(both: Path, tmp_path: Path) -> None:
    """Ctrl-C that one process sees; the resumed run makes up for the evaluation, to the bit."""
    folders = [tmp_path / name for name in ("interrupted", "run")]
    interrupted = Run(str(folders[1]), args=SGD, interrupt=True, rank=1)
    assert make_runs(tmp_path, [interrupted], processes=2) == 0
    shutil.copytree(folders[1], folders[0])
    for rank in (0, 1):
        assert result(folders[0], rank)["rounds"] == [[*place] for place in INTERRUPTED]
    assert newest_whole(folders[0] / "checkpoints") == folders[0] / "checkpoints" / "checkpoint-4"
    assert len(figures(folders[0], "eval_answer")) == 1
    assert make_runs(tmp_path, [Run(str(folders[1]), args=SGD, resume=True)], processes=2) == 0
    for rank in (0, 1):
        assert [step for step, _ in result(folders[1], rank)["rounds"]] == [4] * 3 + [6] * 3
        expected = figures(both / "batch norm", "eval_answer")
        assert figures(folders[1], "eval_answer", rank) == expected
    assert_close(adapter(both / "batch norm"), adapter(folders[1]), 0.0)


def evaluate_and_train(rank: int, port: int, folder: str) -> None:
    """One of two processes that judge, train and judge, as rows of a table do."""
    torch.set_num_threads(1)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    os.environ.update(meeting, RANK=str(rank), WORLD_SIZE="2")
    heard: list[list[int]] = []

    def command() -> int:
        for row in ("first", "second"):
            connect()
            heard.append(gather([rank]))
            make_trainer(Path(folder, row), max_steps=1, disable_tqdm=True).train()
        return 0

    assert run_command(command) == 0
    assert heard == [[0, 1]] * 2 and not dist.is_initialized()


@pytest.mark.slow
def test_a_training_may_follow_an_evaluation(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(evaluate_and_train, (port, str(tmp_path)), nprocs=2)


BLOCKS = {"fsdp_config": {"transformer_layer_cls_to_wrap": ["ResidualAttentionBlock"]}}
ADAM = {**BLOCKS, "lr_scheduler_type": "constant"}
SHARDED: dict[str, dict[str, Any]] = {
    "whole": {"args": SGD},
    "by block": {"args": {**SGD, **BLOCKS}},
    "adam": {"args": ADAM},
    "resumed": {"args": {**ADAM, "max_steps": 2}},
    "resumed again": {"args": ADAM, "resume": True},
}


@pytest.mark.slow
def test_with_parameters_spread_over_processes(alone: Path, tmp_path: Path) -> None:
    """FSDP2 under lockstep: learns, judges, saves whole adapters without towers, and resumes."""
    if "fsdp_version" not in FullyShardedDataParallelPlugin.__dataclass_fields__:
        pytest.skip("this accelerate does not know FSDP2")
    runs = [
        Run(
            str(tmp_path / name.removesuffix(" again")),
            args={**options["args"], "fsdp": True},
            resume="resume" in options,
        )
        for name, options in SHARDED.items()
    ]
    assert make_runs(tmp_path, runs, "--sharded", processes=2) == 0
    same = alone / "batch norm"
    for folder in (tmp_path / "whole", tmp_path / "by block"):
        for figure in ("loss", "grad_norm", "eval_answer"):
            assert figures(folder, figure) == pytest.approx(figures(same, figure), rel=1e-5)
        assert_close(adapter(same), adapter(folder), 1e-5)
        # The model can be used after training, when it is the best one, of step 4.
        best = figures(folder, "eval_answer")[1]
        assert result(folder)["afterwards"] == pytest.approx(best, rel=1e-5)
        config = "bridger_config.json"
        assert (folder / config).read_text() == (same / config).read_text()
        assert not list((folder / "checkpoints" / "checkpoint-6").glob("*model*"))
    assert figures(tmp_path / "resumed", "loss") == figures(tmp_path / "adam", "loss")
    assert_close(adapter(tmp_path / "adam"), adapter(tmp_path / "resumed"), 0.0)


@contextmanager
def a_group_of_one(folder: Path) -> Iterator[None]:
    """A process group in this process, so that collectives run."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}],
    ids=lambda options: next(iter(options), "default"),
)
def test_gathered_batch_norm_is_batch_norm(options: dict[str, Any], tmp_path: Path) -> None:
    """In values, gradients, running statistics and names; in training and in eval."""
    torch.manual_seed(0)
    plain, gathered = (kind(5, **options).double() for kind in (nn.BatchNorm2d, GatheredBatchNorm))
    for norm in (plain, gathered):
        for parameter in norm.parameters():
            parameter.data.copy_(torch.linspace(0.5, 2, 5))
    assert list(plain.state_dict()) == list(gathered.state_dict())
    batches = [torch.randn(4, 5, 3, 2, dtype=torch.float64) * 3 + 1 for _ in range(3)]
    with a_group_of_one(tmp_path):
        for step, batch in enumerate(batches):
            if step == 2:
                plain.eval(), gathered.eval()
            results = []
            for norm in (plain, gathered):
                given = batch.clone().requires_grad_()
                output = norm(given)
                (output.square() * torch.arange(5.0)[:, None, None]).sum().backward()
                results.append([output, given.grad, *(p.grad for p in norm.parameters())])
            for expected, found in zip(*results, strict=True):
                assert torch.allclose(found, expected, rtol=1e-12, atol=1e-10)
    for name, expected in plain.state_dict().items():
        assert torch.allclose(gathered.state_dict()[name], expected, rtol=1e-12), name


@pytest.mark.parametrize(
    ("device", "kind"), [("cpu", GatheredBatchNorm), ("cuda", nn.SyncBatchNorm)]
)
def test_modules_stay_while_their_class_changes(
    device: str, kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What FSDP knows, and brings together before a forward, are the model's own modules."""
    monkeypatch.setattr(batch_norm, "is_running", lambda: True)
    model = make_model()
    modules, state = [*model.modules()], model.state_dict(keep_vars=True)
    own = [type(module) for module in modules]
    inside = batch_norm.synchronized_batch_norm(model, torch.device(device))
    with pytest.raises(KeyError), inside:
        assert all(m is module for m, module in zip(model.modules(), modules, strict=True))
        norms = {type(m) for m, was in zip(modules, own, strict=True) if was is nn.BatchNorm2d}
        assert norms == {kind}
        raise KeyError
    assert [type(module) for module in model.modules()] == own
    assert not any("process_group" in vars(module) for module in modules)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(state) and all(after[name] is state[name] for name in state)


def test_processes_that_the_arguments_do_not_know_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="2 processes were launched.*know 1.*use_cpu=True"):
        make_trainer(tmp_path)


def test_what_needs_a_gpu_is_refused_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="fp16 needs a GPU.*bf16"):
        make_trainer(tmp_path, fp16=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch --use_fsdp` does
    with pytest.raises(ValueError, match="no FSDP on the CPU"):
        make_trainer(tmp_path)


def assert_close(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float
) -> None:
    assert list(first) == list(second)
    for name, tensor in first.items():
        scale = max(float(tensor.abs().max()), 1e-3)
        worst = float((tensor.double() - second[name].double()).abs().max()) / scale
        assert worst <= tolerance, (name, worst)
