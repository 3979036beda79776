"""The comparison with a clone of ETRIS, a stand-in taking its place, and the measuring tools."""

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

FOLDER = EXAMPLES / "benchmarks"
CONFIG = """\
TRAIN:
  clip_pretrain: pretrain/ViT-B-16.pt
  word_len: 9
  input_size: 32
  base_lr: 0.5
DATA: {dataset: refcoco}
"""
PACKAGE = """\
import torch
from loguru import logger
from model.clip import CLIP

def build_segmenter(options):
    logger.info("building")
    read = torch.jit.load(options.clip_pretrain, map_location="cpu").eval()
    assert isinstance(read, CLIP)
    return read, [{"params": list(read.parameters()), "initial_lr": options.base_lr}]
"""
CLIP = """\
import torch

class CLIP(torch.nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        self.sizes = sizes
        self.bn3 = torch.nn.BatchNorm1d(sizes["vision_width"])
        torch.nn.init.zeros_(self.bn3.weight)
"""


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The scripts as modules, under names that other tests may use for others."""
    before = dict(sys.modules)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(FOLDER))
        names = ("measuring", "etris_patches", "etris_cases")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in {path.stem for path in FOLDER.glob("*.py")} - set(before):
        sys.modules.pop(name, None)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Files where the released code has its own, and no more in them than is called."""
    files = {
        "config/refcoco/bridge_v16.yaml": CONFIG,
        "model/__init__.py": PACKAGE,
        "model/clip.py": CLIP,
        "model/segmenter.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_clone_is_built_without_its_packages_and_leaves_nothing(bench: Any, clone: Path) -> None:
    before = set(sys.modules), list(sys.path), torch.jit.load
    released = bench.etris_patches.load(clone, "ViT-B/16")
    assert released.model.sizes["vision_width"] == 768
    assert released.options.base_lr == 0.5 and released.options.dataset == "refcoco"
    assert released.groups[0]["initial_lr"] == 0.5
    assert bool(released.model.bn3.weight.all()), "frozen residual branches would be idle"
    after = set(sys.modules), list(sys.path), torch.jit.load
    assert "model" not in after[0] and "loguru" not in after[0] - before[0]
    assert after[1:] == before[1:]


def test_another_folder_is_refused(bench: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="clone of"):
        bench.etris_patches.load(tmp_path, "ViT-B/16")


def test_sentences_end_once_and_are_padded_behind(bench: Any) -> None:
    released = SimpleNamespace(options=SimpleNamespace(input_size=16, word_len=12))
    pixels, ids, masks = bench.etris_cases.draw(64, released, "cpu")
    assert pixels.shape == (64, 3, 16, 16) and masks.shape == (64, 16, 16)
    ends = ids.argmax(dim=1)
    assert bool((ids[:, 0] == 49406).all()) and bool((ids.amax(dim=1) == 49407).all())
    assert bool(((ids == 0) == (torch.arange(12) > ends[:, None])).all())
    assert set(ends.tolist()) == set(range(3, 10)), "2 to 8 words"


def test_gradients_stand_in_the_places_of_what_is_trained(bench: Any) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    module[0].requires_grad_(False)
    seen = torch.randn(5, 3)
    module(seen).sum().backward()
    expected = module[0](seen).sum(dim=0, keepdim=True)
    bench.etris_cases.put_gradients(module)
    torch.testing.assert_close(module[1].weight.data, expected)
    assert not module[0].weight.any() and not module[0].bias.any()


def test_dropout_goes_wherever_it_is(bench: Any) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5).train()
    bench.etris_cases.without_dropout(layer)
    seen = torch.randn(4, 1, 8)
    assert torch.equal(layer(seen), layer(seen))


def test_parts_are_clocked_while_asked_for(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.etris_cases, "PARTS", {"first": ("0", ""), "last": ("1", "")})
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with bench.etris_cases.clocked(module, "cpu") as seconds:
        module(torch.randn(1, 2))
        module(torch.randn(1, 2))
    module(torch.randn(1, 2))
    assert {name: len(found) for name, found in seconds.items()} == {"first": 2, "last": 2}


# measuring.py


def test_cases_take_turns(bench: Any) -> None:
    called: list[str] = []
    cases = {name: lambda name=name: called.append(name) for name in "ab"}
    timings = bench.measuring.alternate(cases, rounds=3, warmups=1)
    assert "".join(called) == "abababab"
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_round_by_round(bench: Any) -> None:
    slow, fast = bench.measuring.Timing((2.0, 20.0, 6.0)), bench.measuring.Timing((1.0, 10.0, 2.0))
    assert slow.ratio(fast) == 2.0
    assert (fast.low, fast.median, fast.high) == (1.5, 2.0, 6.0)
    assert bench.measuring.Timing((3.0,)).low == 3.0


@pytest.mark.parametrize("fitting", [0, 1, 2, 3, 31, 32, 33, 99, 100, 300])
def test_the_largest_that_fits_is_found(bench: Any, fitting: int) -> None:
    assert bench.measuring.largest(lambda n: n <= fitting, limit=100) == min(fitting, 100)
    about = bench.measuring.largest(lambda n: n <= fitting, limit=100, within=0.1)
    assert about <= fitting <= 1.1 * about or fitting > 100


def test_tables_and_files_hold_what_was_found(bench: Any, tmp_path: Path) -> None:
    rows = [{"way": "a", "s": 1.2345, "n": 1234}, {"way": "longer", "s": None}]
    assert bench.measuring.table(rows, ("way", "s", "n")).splitlines() == [
        "| way    |    s |     n |",
        "| ------ | ---: | ----: |",
        "| a      | 1.23 | 1,234 |",
        "| longer |    - |     - |",
    ]
    bench.measuring.write_json(tmp_path / "out.json", {"step": bench.measuring.Timing((1.0, 3.0))})
    read = json.loads((tmp_path / "out.json").read_text())
    assert read["step"]["median"] == 2.0 and read["step"]["seconds"] == [1.0, 3.0]
    assert read["machine"]["torch"] == torch.__version__
