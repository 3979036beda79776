"""A bridged model as a program of torch.export: equal to the model on inputs that are new to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_conformance import SMALL
from helpers_one_way import one_way
from helpers_towers import images
from test_serving import model_of
from torch import Tensor, nn

from bridger import BridgedModel, export
from bridger.exporting import tensors_of

SAID = [["the red ball", "a dog"], ["dog", "the owl on the left"]]
ALONE = """
import sys, torch
given, expected = torch.load("given.pt")
found = torch.export.load("program.pt2").module()(**given)
torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
print("bridger" in sys.modules)
"""
OTHERS = [["the owl", "the red dog on the left"], ["a ball", "dog"]]


def texts_of(model: BridgedModel, sentences: list[list[str]]) -> dict[str, Tensor]:
    """Sentences of several pictures, padded to 9 tokens."""
    assert model.processor is not None
    rows = [model.processor.text(said) for said in sentences]
    return {
        key: torch.stack([F.pad(row[key], (0, 9 - row[key].shape[1])) for row in rows])
        for key in ("input_ids", "attention_mask")
    }


def answered(model: BridgedModel, head: str, **given: Any) -> dict[str, Tensor]:
    with torch.no_grad():
        return tensors_of(model.heads[head](model.encode(**given)))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["both", "to_vision"])
def test_a_program_answers_as_the_model_does(way: str, tmp_path: Path) -> None:
    model = model_of(SMALL if way == "both" else one_way())
    model.heads["masks"].train()  # what is exported is in eval mode all the same
    program = export(model, images(2), **texts_of(model, SAID), head="masks")
    assert model.heads["masks"].training
    model.eval()
    given = {"pixel_values": images(2, seed=3), **texts_of(model, OTHERS)}
    expected = answered(model, "masks", **given)
    assert expected.keys() == {"logits", "no_target"}
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save((given, expected), tmp_path / "given.pt")
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "False\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("head", ["labels", "classes"])
def test_class_names_become_a_part_of_the_program(head: str) -> None:
    model = model_of()
    assert model.processor is not None
    texts = model.heads[head].texts(model.processor, ["dog", "red ball"])
    program = export(model, images(2), **texts.batch(2), head=head)
    given = {"pixel_values": images(2, seed=3), **texts.batch(2)}
    expected = answered(model, head, **given)["logits"]
    del given["mentions"]
    torch.testing.assert_close(program.module()(**given)["logits"], expected)


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused() -> None:
    model = model_of()
    given = {"pixel_values": images(2), **texts_of(model, SAID)}
    with pytest.raises(RuntimeError, match="'boxes' cannot be exported: it, or a tower, reads"):
        export(model, **given, head="boxes")
    assert not torch.compiler.is_compiling()
    with pytest.raises(ValueError, match="2 images came with texts for 1"):
        export(model, images(2), given["input_ids"][:1], head="masks")
    model.encoder.cache_prefix("memory")
    with pytest.raises(ValueError, match=r"call model.encoder.cache_prefix\(None\) first"):
        export(model, **given, head="masks")


class _Outside(nn.Module):
    """Computes with numpy, which no recording sees."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(x.detach().numpy().copy())


@pytest.mark.slow
def test_a_recording_that_missed_something_is_refused() -> None:
    model = model_of()
    model.heads["masks"].projector.register_forward_hook(lambda _, args, out: _Outside()(out))
    given = {"pixel_values": images(2), **texts_of(model, SAID)}
    with pytest.raises(RuntimeError, match="gives other logits than the model for another picture"):
        export(model, **given, head="masks")
