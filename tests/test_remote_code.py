"""What comes along with a model or an adapter is read, and never run unless told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers_hub import hub_server
from helpers_towers import PAIRS, hf_clip
from helpers_words import word_tokenizer

from bridger import BridgedModel, attach_bridgers, load_towers
from bridger.heads import ReferringSegmentationHead
from bridger.known_towers import known_inputs
from bridger.processing import Processor
from bridger.words import load_words

CODE = """
from pathlib import Path
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, CLIPImageProcessor

Path({marker!r}).touch()


class OwnConfig(CLIPConfig):
    model_type = {kind!r}


class OwnModel(CLIPModel):
    config_class = OwnConfig


class OwnTokenizer(PreTrainedTokenizerFast):
    pass


class OwnImages(CLIPImageProcessor):
    pass
"""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that a model's own code leaves where it is run."""
    return tmp_path / "it-ran"


def bring_code(folder: Path, marker: Path, kind: str, file: str, classes: dict[str, Any]) -> None:
    """Let a folder's config ask for code of its own, which lies beside it."""
    (folder / "own.py").write_text(CODE.format(marker=str(marker), kind=kind))
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**config, "auto_map": classes}))


def own_model(folder: Path, marker: Path, kind: str) -> str:
    """Save a model whose config and class are its own; return its name."""
    hf_clip().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    classes = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    bring_code(folder, marker, kind, "config.json", classes)
    return f"transformers:{folder}"


def test_a_models_own_code_runs_only_when_told(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("nobody is asked"))
    name = own_model(tmp_path / "own", marker, "own-clip")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        load_towers(name)
    model = attach_bridgers(*PAIRS["hf_clip_whole"]()).with_head(ReferringSegmentationHead)
    model.tower_source = name
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        BridgedModel.from_pretrained(tmp_path / "adapter")
    assert not marker.exists()
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.syspath_prepend(str(tmp_path / "m"))
    again = BridgedModel.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    assert marker.exists() and type(again.encoder.vision.given).__name__ == "OwnModel"
    assert again.tower_source == name
    # Loaded by its user, it has the same name: its class is what the checkpoint itself brings.
    clip = transformers.AutoModel.from_pretrained(tmp_path / "own", trust_remote_code=True)
    assert attach_bridgers(clip, clip).tower_source == name


def test_code_beside_a_known_model_is_left_alone(tmp_path: Path, marker: Path) -> None:
    name = own_model(tmp_path / "clip", marker, "clip")
    vision, _, _ = load_towers(name)
    assert type(vision).__name__ == "CLIPModel" and not marker.exists()
    vision, _, _ = load_towers(f"{name}#CLIPVisionModelWithProjection,{name}#CLIPTextModel")
    assert type(vision).__name__ == "CLIPVisionModelWithProjection" and not marker.exists()


@pytest.mark.parametrize(
    "class_name", ["AutoModel", "Pipeline", "CLIPConfig", "set_seed", "NoModel"]
)
def test_only_models_are_loaded_by_class(class_name: str, tmp_path: Path) -> None:
    hf_clip().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"transformers has no model of the class '{class_name}'"):
        load_towers(f"transformers:{tmp_path}#{class_name}")


def test_a_tokenizer_in_an_adapter_runs_nothing(tmp_path: Path, marker: Path) -> None:
    processor = Processor(32, (0.5,) * 3, (0.5,) * 3, word_tokenizer(), 12)
    processor.save(tmp_path)
    file = tmp_path / "tokenizer" / "tokenizer_config.json"
    for known in (True, False):
        config = json.loads(file.read_text())
        if not known:
            config["tokenizer_class"] = "OwnTokenizer"
        file.write_text(json.dumps(config))
        classes = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
        bring_code(file.parent, marker, "own-clip", file.name, classes)
        try:
            Processor.load(tmp_path)
        except ValueError as error:
            assert "trust_remote_code" in str(error)
        assert not marker.exists()
    saved = json.loads((tmp_path / "processor.json").read_text())
    for option in ({"trust_remote_code": True}, {"bpe_path": "/etc/passwd"}):
        for kind in ("transformers", "open_clip", "open_clip_transformers"):
            saved["tokenizer"] = {"kind": kind, "options": option}
            (tmp_path / "processor.json").write_text(json.dumps(saved))
            with pytest.raises(
                ValueError, match=rf"has unknown options \['{next(iter(option))}'\]"
            ):
                Processor.load(tmp_path)
    assert not marker.exists()


def test_open_clips_tokenizers_in_an_adapter_run_nothing(tmp_path: Path, marker: Path) -> None:
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    classes = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    file = tmp_path / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "tokenizer_class": "OwnTokenizer"}))
    bring_code(file.parent, marker, "own-clip", file.name, classes)
    with pytest.raises(ValueError, match=r"."):
        load_words(tmp_path, "open_clip_transformers", {"context_length": 12})
    assert not marker.exists()


def test_guessing_a_processor_runs_nothing(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("nobody is asked"))
    folder = tmp_path / "clip"
    hf_clip().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder)
    clip = transformers.CLIPModel.from_pretrained(folder)
    assert known_inputs(clip, clip) is not None
    for file, classes in {
        "tokenizer_config.json": {"AutoTokenizer": [None, "own.OwnTokenizer"]},
        "preprocessor_config.json": {"AutoImageProcessor": "own.OwnImages"},
    }.items():
        bring_code(folder, marker, "clip", file, classes)
    known_inputs(clip, clip)
    assert not marker.exists()


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["open_clip:RN50:{}", "timm:resnet10t:{},tiny", "etris:{}", "tiny,transformers:{}"]
)
def test_pickles_run_nothing(name: str, tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "weights.pth"
    if "transformers" in name:
        path = tmp_path / "clip" / "pytorch_model.bin"
        hf_clip().save_pretrained(path.parent)
        (path.parent / "model.safetensors").unlink()
    torch.save({"state_dict": Bomb(marker), "a": torch.zeros(2)}, path)
    given = path.parent if "transformers" in name else path
    with pytest.raises(
        ValueError, match=r"other things than tensors|cannot be read as a checkpoint"
    ):
        load_towers(name.format(given))
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # so the bomb is one


def test_pickles_of_timms_and_torchvisions_own_run_nothing(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir()
    torch.save(Bomb(marker), path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match="other things than tensors"):
        load_towers("torchvision:resnet18:DEFAULT,tiny")
    assert not marker.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


OFFLINE = """
import socket, sys
import transformers
from bridger import attach_bridgers
from bridger.known_towers import known_inputs

clip = transformers.CLIPModel.from_pretrained("lab/clip")
transformers.AutoTokenizer.from_pretrained("lab/clip")
transformers.AutoImageProcessor.from_pretrained("lab/clip")
asked = []
connect = socket.socket.connect
socket.socket.connect = lambda self, address: (asked.append(address), connect(self, address))[1]
found = known_inputs(clip, clip)
source = attach_bridgers(clip, clip, 2).tower_source
print(found is not None, source is not None, asked)
"""


@pytest.mark.slow
def test_guessing_reaches_no_network(tmp_path: Path) -> None:
    from helpers_hub import Repo

    hf_clip().save_pretrained(tmp_path / "clip")
    word_tokenizer().save_pretrained(tmp_path / "clip")
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / "clip")
    with hub_server() as hub:
        files = {path.name: path.read_bytes() for path in (tmp_path / "clip").iterdir()}
        hub.repos["lab/clip"] = Repo()
        hub.repos["lab/clip"].commit(files, "main", "all")
        done = subprocess.run(
            [sys.executable, "-c", OFFLINE],
            env=hub.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True True []"
