"""The example of a head of one's own: short, and as good as the library's in every way."""

from __future__ import annotations

import ast
import random
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_heads import SPEC, features
from PIL import Image

import bridger
from bridger import BridgedModel
from bridger.heads import registry

EXAMPLE = Path(__file__).parent.parent / "examples" / "own_head.py"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the example defines; its head is forgotten afterwards."""
    monkeypatch.setattr(registry, "_HEADS", dict(registry._HEADS))
    return runpy.run_path(str(EXAMPLE))


def test_the_head_with_all_that_it_imports_is_short() -> None:
    kinds = (ast.ClassDef, ast.Import, ast.ImportFrom)
    parts = [n for n in ast.parse(EXAMPLE.read_text()).body if isinstance(n, kinds)]
    lines = 0
    for node in parts:
        first = node.decorator_list[0].lineno if isinstance(node, ast.ClassDef) else node.lineno
        assert node.end_lineno is not None
        lines += node.end_lineno - first + 1
    assert [node.name for node in parts if isinstance(node, ast.ClassDef)] == [
        "CountConfig",
        "CountHead",
    ]
    assert 40 < lines < 80


def test_padding_counts_in_no_loss(example: dict[str, Any]) -> None:
    head = example["CountHead"].from_spec(SPEC)
    seen, labels = features(SPEC, 2, 3), torch.tensor([[1.0, 0.0, 2.0], [3.0, 1.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    out = head(seen, labels, mask)
    assert out.logits.shape == (2, 3) and (out.logits > 0).all()
    labels[1, 2] = 0
    assert torch.equal(head(seen, labels, mask).loss, out.loss)
    assert not torch.equal(head(seen, labels).loss, out.loss)


def test_questions_are_answered_by_the_scene_itself(example: dict[str, Any]) -> None:
    for number in range(5):
        scene = bridger.data.scenes.make_scene("testA", number)
        asked = example["questions"](scene, random.Random(0))
        names = [thing.kind.name for thing in scene.objects]
        assert all(names.count(name) == count for name, count in asked.items())
        assert min(asked.values()) == 0 and max(asked.values()) >= 2


@pytest.mark.slow
def test_it_trains_is_saved_loaded_and_leaves_a_picture(
    example: dict[str, Any], tmp_path: Path
) -> None:
    argv = [sys.executable, str(EXAMPLE), "--steps", "2", "--out", "counter"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert "step 2: loss" in printed and "saved counter" in printed
    assert printed.count("(true: ") > 10
    with Image.open(tmp_path / "own_head.png") as sheet:
        assert sheet.width == 5 * 256 and sheet.height > 256
    model = BridgedModel.from_pretrained(tmp_path / "counter", *bridger.load_tiny_clip()[:2])
    assert type(model.heads["head"]).__name__ == "CountHead"
    found = model.predict(bridger.data.scenes.make_scene("val", 0).image, ["owl", "the red ball"])
    assert list(found) == ["owl", "the red ball"] and all(count > 0 for count in found.values())
