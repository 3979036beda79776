"""The benchmarks compare what they say: equal forwards, equal ways for gradients, true counts."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_examples import EXAMPLES
from torch import nn

from bridger.summary import count

FOLDER = EXAMPLES / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The scripts as modules, under names that other tests may use for others."""
    before = dict(sys.modules)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(FOLDER))
        names = ("measuring", "scaling", "speed", "speed_cases", "speed_parts")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in {path.stem for path in FOLDER.glob("*.py")} - set(before):
        sys.modules.pop(name, None)


def case(bench: Any, name: str, **changes: Any) -> Any:
    """Build one of the ways on small towers."""
    setting = bench.speed_cases.Setting(small=True, batch=2, **changes)
    towers = bench.speed_cases.load(setting)
    return bench.speed_cases.Case(
        bench.speed_cases.build(name, towers, setting), setting, towers.size
    )


def logits(case: Any) -> torch.Tensor:
    case.module.eval()
    found: torch.Tensor = case.forward().logits
    return found


@pytest.mark.parametrize("expressions", [1, 3])
def test_ways_without_bridging_agree(bench: Any, expressions: int) -> None:
    """Fresh Bridgers and fresh LoRA add nothing, so that these differ in their cost alone."""
    floor = logits(case(bench, "floor", expressions=expressions))
    for name in ("lockstep", "bridged", "positions", "lora", "full"):
        other = logits(case(bench, name, expressions=expressions))
        torch.testing.assert_close(other, floor, rtol=1e-4, atol=1e-5, msg=name)


def reached(case: Any) -> set[tuple[str, int]]:
    """Return the blocks through which a step's gradients run, by tower and number."""
    towers, found = getattr(case.module, "encoder", case.module), set()
    for side in ("vision", "text"):
        for number, block in enumerate(getattr(towers, side).blocks):

            def note(module: nn.Module, args: Any, at: tuple[str, int] = (side, number)) -> None:
                if args[0].requires_grad:
                    args[0].register_hook(lambda gradient: found.add(at))

            block.module.register_forward_pre_hook(note)
    case.module.train()
    case.loss().backward()
    return found


def test_the_floor_runs_gradients_where_bridgers_need_them(bench: Any) -> None:
    floor, bridged = (case(bench, name) for name in ("floor", "bridged"))
    first = bridged.module.encoder.stages[0]
    wanted = {("vision", i) for i in range(first[0] + 1, 4)}
    wanted |= {("text", i) for i in range(first[1] + 1, 4)}
    assert reached(floor) == wanted == reached(bridged)
    assert reached(case(bench, "lockstep")) == set()
    everywhere = {(side, i) for side in ("vision", "text") for i in range(4)}
    assert reached(case(bench, "full")) == everywhere


@pytest.mark.parametrize("name", ["floor", "lockstep", "bridged", "positions", "lora", "full"])
def test_a_step_trains_what_it_counts_and_nothing_else(bench: Any, name: str) -> None:
    setting = bench.speed_cases.Setting(small=True, batch=2)
    towers = bench.speed_cases.load(setting)
    shared = {k: v.clone() for k, v in towers.text.state_dict().items()}
    model = bench.speed_cases.build(name, towers, setting)
    one = bench.speed_cases.Case(model.train(), setting, towers.size)
    before = [p.detach().clone() for group in one.optimizer.param_groups for p in group["params"]]
    assert one.trained == sum(map(torch.numel, before))
    for _ in range(2):  # what starts behind a zero moves in the second step
        one.step()
    after = [p for group in one.optimizer.param_groups for p in group["params"]]
    still = sum(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert still <= 1 if name == "full" else not still  # CLIP's logit scale takes no part
    for key, value in towers.text.state_dict().items():
        assert torch.equal(value, shared[key]), key


def test_lora_has_about_as_many_parameters(bench: Any) -> None:
    lora, bridged = case(bench, "lora"), case(bench, "bridged")
    head = count(bridged.module.heads["head"])
    assert 0.7 < (lora.trained - head) / (bridged.trained - head) < 1.4


def test_half_precision_is_of_the_towers_alone(bench: Any) -> None:
    for name in ("bridged", "lora", "floor"):
        one = case(bench, name, precision="bf16-towers")
        assert {p.dtype for p in one.module.parameters() if p.requires_grad} == {torch.float32}
        frozen = {p.dtype for p in one.module.parameters() if not p.requires_grad}
        assert frozen == {torch.bfloat16}
        assert torch.isfinite(one.step())


def test_parts_add_up_to_the_step(bench: Any) -> None:
    one = case(bench, "bridged", memory="low")
    one.module.train()
    timings = bench.speed_parts.Timeline(one).run(rounds=2, warmups=1)
    whole = timings.pop("whole step").seconds
    assert list(timings)[:3] == ["vision: prefix", "text: prefix", "Bridgers"]
    assert {"head: projector", "loss", "backward", "optimiser"} < set(timings)
    for i, seconds in enumerate(whole):
        assert sum(part.seconds[i] for part in timings.values()) == pytest.approx(seconds)


def test_operations_are_counted_in_the_towers_threads_too(bench: Any) -> None:
    floor, lockstep = case(bench, "floor"), case(bench, "lockstep")
    operations = bench.scaling.operations
    for one in (floor, lockstep):
        one.module.eval()
    assert operations(floor.forward) == operations(lockstep.forward)
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval().requires_grad_(False)
    x, tokens = torch.randn(2, 10, 64), 2 * 10
    products = tokens * 64 * (3 * 64 + 64 + 128 + 128) + 2 * tokens * 10 * 64
    assert operations(lambda: layer(x)) == 2 * products


def test_slopes_are_exponents(bench: Any) -> None:
    assert bench.scaling.slope({x: 3 * x**1.5 for x in (1, 2, 5, 9)}) == pytest.approx(1.5)
    assert bench.scaling.verdict(1.05, 0.2) == bench.scaling.verdict(1.4, 1.35) == "ok"
    assert bench.scaling.verdict(1.2, 0.9) == bench.scaling.verdict(1.6, 1.35) == "ABOVE"


def test_living_tensors_are_counted(bench: Any) -> None:
    def call() -> torch.Tensor:
        kept = torch.zeros(1000) + 1  # two at a time
        return kept.view(10, 100).add_(1)  # the same memory

    assert bench.measuring.peak_memory(call).tensors == 2 * 4000


@pytest.mark.slow
def test_the_scripts_run(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    options = ["--rounds", "1", "--json", str(file)]
    speed = ["speed.py", "--small", "--batch", "1", "--parts", "--cases", "floor", "bridged"]
    monkeypatch.setattr(sys, "argv", [*speed, *options])
    bench.speed.main()
    (table,) = json.loads(file.read_text())["tables"]
    assert table["setting"]["batch"] == 1 and "backward" in table["parts"]
    for kind in ("forward", "step", "memory"):
        assert list(table[kind]) == ["floor", "bridged"]
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--quick", "--axes", "text", *options])
    bench.scaling.main()
    assert json.loads(file.read_text())["slopes"][0]["axis"] == "text"
    assert "| bridged" in capsys.readouterr().out
