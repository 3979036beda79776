"""Adapters of every released format load, and answer what they answered; today's format is kept."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_formats import CLASSES, EXPECTED, FORMATS, HEADS, SENTENCES, all_answers, picture, towers
from safetensors.torch import load_file

from bridger import BridgedModel
from bridger.adapter_config import FORMAT_VERSION
from bridger.adapter_files import ADAPTER_FILES, read
from bridger.head_files import HEAD_FILES

KEPT = sorted(FORMATS.glob("format_*"), key=lambda folder: int(folder.name.split("_")[1]))
LATEST = KEPT[-1]
CHANGED = (
    "the format of adapters has changed: raise FORMAT_VERSION in bridger/adapter_config.py, read "
    "the older formats there too, and keep the new one with `python tests/kept_formats.py`"
)


def test_every_format_that_was_released_is_kept() -> None:
    assert [folder.name for folder in KEPT] == [f"format_{n + 1}" for n in range(FORMAT_VERSION)]


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_a_kept_adapter_loads_and_answers_as_ever(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"bridger|kept_formats")
        warnings.filterwarnings("error", message="the (vision|text) tower has other weights")
        found = all_answers(folder)
    expected = load_file(folder / EXPECTED)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, atol=1e-4, rtol=1e-5, msg=lambda said, n=name: f"{n}: {said}"
        )


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_all_that_is_kept_comes_back(folder: Path) -> None:
    model = BridgedModel.from_pretrained(folder / "whole", *towers())
    assert {name: head.name for name, head in model.heads.items()} == {
        name: kind for name, (kind, _) in HEADS.items()
    }
    assert model.loss_weights["boxes"] == 0.5 and model.loss_weights["map"] == 1
    assert model.tower_source == "open_clip:kept-in-no-registry"
    assert model.encoder.trainable == ("positions",) and len(model.encoder.tower_tensors) == 2
    layout = model.etris_layout
    assert layout is not None and layout.prefix == "module."
    assert layout.dtypes == {"backbone.ln_final.weight": torch.float16}
    assert torch.equal(layout.masks["attn_mask"], torch.eye(3))
    classes = model.predict(picture(), head="classes")
    assert list(classes.probabilities) and model.heads["classes"].config.classes == CLASSES
    masks = model.predict(picture(), SENTENCES, head="masks")
    assert masks.masks.shape == (len(SENTENCES), 40, 60)


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_a_kept_head_loads_onto_its_bridgers(folder: Path) -> None:
    model = BridgedModel.from_pretrained(folder / "whole", *towers(), heads=["masks"])
    whole = BridgedModel.from_pretrained(folder / "whole", *towers())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_head(folder / "head")
    own, expected = (one.heads["classes"].state_dict() for one in (model, whole))
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[name], expected[name]) for name in own)


def form(values: Any) -> Any:
    """The keys of a config, however deep, without what they hold."""
    if isinstance(values, dict):
        return {key: form(value) for key, value in values.items()}
    return [form(value) for value in values] if isinstance(values, list) else None


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def peft_apart(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what peft's own configs hold, which change with its versions."""
    entries = [{**entry, "config": {}} for entry in config["encoder"]["peft"]]
    return {**config, "encoder": {**config["encoder"], "peft": entries}}


@pytest.mark.parametrize("name", ["whole", "lora", "head"])
def test_what_is_written_today_is_the_format_that_was_kept_last(name: str, tmp_path: Path) -> None:
    model = BridgedModel.from_pretrained(LATEST / name.replace("head", "whole"), *towers())
    kind = HEAD_FILES if name == "head" else ADAPTER_FILES
    if name == "head":
        model.save_head(tmp_path, "classes")
    else:
        model.save_pretrained(tmp_path)
    (written, tensors), (kept, old) = (read(path, kind) for path in (tmp_path, LATEST / name))
    assert written["format_version"] == kept["format_version"] == FORMAT_VERSION
    assert form(peft_apart(written)) == form(peft_apart(kept)), CHANGED
    assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in old.items()}, CHANGED
    # Names of files are part of the format; how a tokenizer is saved is transformers' matter.
    ours = [[f for f in files(p) if "tokenizer/" not in f] for p in (tmp_path, LATEST / name)]
    assert ours[0] == ours[1], CHANGED
    for part in ("encoder", "heads", "processor"):
        assert peft_apart(written)[part] == peft_apart(kept)[part], CHANGED
    if name == "whole":
        new, before = (
            json.loads((path / "processor.json").read_text()) for path in (tmp_path, LATEST / name)
        )
        assert new == before, CHANGED


def test_a_key_more_would_be_noticed() -> None:
    config = read(LATEST / "whole")[0]
    more = json.loads(json.dumps(config))
    more["heads"]["map"]["config"]["new_option"] = 1
    assert form(more) != form(config)
