"""What the shell takes for adapters, devices and modules of one's own, and how it names them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_hub import Hub, hub_server
from PIL import Image

import bridger
from bridger import BridgedModel, attach_bridgers
from bridger.cli import adapters, main, quickstart
from bridger.data.scenes import write_scenes
from bridger.heads import registry
from bridger.training import Recipe

Run = Callable[..., tuple[int, str, str]]

EXAMPLE = Path(__file__).parent.parent / "examples" / "own_head.py"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), (40, 90, 140)).save(path)
    return path


# The Hub.


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: Path) -> Iterator[Hub]:
    with hub_server() as served:
        served.use(monkeypatch, tmp_path / "home")
        bridger.hub.push_folder(adapter, "anna/owls")
        yield served


def test_what_takes_a_folder_takes_an_id(
    hub: Hub, run: Run, adapter: Path, picture: Path, scenes: Path, tmp_path: Path
) -> None:
    found = []
    for name in (adapter, "anna/owls", "anna/owls@main"):
        files = [tmp_path / "m.png", tmp_path / "p.json", tmp_path / "e.json"]
        options = ["--adapter", name, "--out", files[0], "--json", files[1], "--threshold", "0"]
        code, _, err = run("predict", picture, "the owl", *options)
        assert code == 0, err
        argv = ["evaluate", name, "--data", scenes, "--split", "val", "--json", files[2]]
        code, said, err = run(*argv)
        assert code == 0, err
        judged = json.loads(files[2].read_text())
        assert judged["adapter"] == str(name) and str(tmp_path / "home") not in said
        found.append((json.loads(files[1].read_text())["found"], judged["results"]))
    assert found[0] == found[1] == found[2]


def test_inspect_says_which_commit_of_the_hub_it_is(hub: Hub, run: Run, tmp_path: Path) -> None:
    code, said, err = run("inspect", "anna/owls", "--json", tmp_path / "a.json")
    commit = hub.repos["anna/owls"].refs["main"]
    assert code == 0, err
    assert said.splitlines()[:2] == [said.splitlines()[0], f"  from the Hub: commit {commit}"]
    assert said.startswith("anna/owls: adapter of bridger ")
    assert json.loads((tmp_path / "a.json").read_text())["commit"] == commit


def test_errors_call_an_adapter_what_the_user_called_it(
    hub: Hub, run: Run, picture: Path, scenes: Path, tmp_path: Path
) -> None:
    cases: list[tuple[list[object], str]] = [
        (["predict", picture, "a", "--adapter", "anna/owls", "--head", "boxes"], "a head 'boxes'"),
        (["evaluate", "anna/owls", "--data", scenes, "--head", "boxes"], "a head 'boxes'"),
        (["convert", "anna/owls", tmp_path / "a.pth", "--to-etris"], ""),
        (["inspect", "anna/cats"], "anna/cats"),
        (["inspect", "anna/owls@v9"], "v9"),
    ]
    for argv, words in cases:
        code, _, err = run(*argv)
        assert code == 1 and words in err.splitlines()[-1], err
        assert str(tmp_path / "home") not in err and "snapshots" not in err, err
    for name in ("tiny", "tiny-heads"):
        _, _, err = run("predict", picture, "a", "--adapter", name, "--head", "depth")
        assert err.startswith(f"bridger predict: error: {name} does not have a head 'depth'")


@pytest.mark.filterwarnings("always")
def test_a_config_of_other_weights_is_told_once(
    run: Run, adapter: Path, picture: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(adapter, tmp_path / "broken")
    (broken / "bridger_config.json").write_text("{}")
    for argv in (
        ["predict", picture, "the owl", "--adapter", broken, "--overlay", tmp_path / "seen.png"],
        ["inspect", broken],
    ):
        code, _, err = run(*argv)
        assert code == 0 and err.count("does not belong to bridger.safetensors") == 1, err


def test_only_folders_that_were_not_typed_are_renamed(adapter: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(adapter.parent)
    args = main.parse(["inspect", "./adapter"])
    assert adapters.find("./adapter", args) == Path("adapter")
    assert adapters.named_as_typed("an adapter", args) == "an adapter"
    folder = adapters.find("tiny", args)
    assert adapters.named_as_typed(f"{folder} is it", args) == "tiny is it"


# Devices.


def test_a_device_that_is_not_there_is_refused_before_data_are_read(
    run: Run, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: None)
    missing = tmp_path / "missing"
    for argv in (
        ["predict", picture, "the owl", "--adapter", "nobody/nothing"],
        ["evaluate", "nobody/nothing", "--data", missing],
        ["train", "--data", missing, "--out", tmp_path / "out"],
        ["quickstart", "--out", tmp_path / "out"],
    ):
        for name in ("cuda", "cuda:1", "mps", "gpu"):
            code, _, err = run(*argv, "--device", name)
            assert code == 1, err
            assert f"--device {name}: there is no such device here; there is cpu" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture.png"]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch say that there are two."""
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: gpu)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_devices_have_torch_s_names(two_gpus: None) -> None:
    names = ("auto", "cpu", "cuda", "cuda:0", "cuda:1")
    devices = [str(adapters.device_of(name)) for name in names]
    assert devices == ["cuda", "cpu", "cuda", "cuda:0", "cuda:1"]
    for name in ("cuda:2", "mps", "meta", "", "CUDA"):
        with pytest.raises(ValueError, match="there is cpu, cuda, cuda:0, cuda:1"):
            adapters.device_of(name)


def test_training_takes_the_cpu_or_the_first_gpu(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert adapters.trains_on_cpu("cpu")
    assert not any(adapters.trains_on_cpu(name) for name in ("auto", "cuda", "cuda:0"))
    with pytest.raises(ValueError, match="set CUDA_VISIBLE_DEVICES=1 and say cuda"):
        adapters.trains_on_cpu("cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert adapters.trains_on_cpu("cpu") and not adapters.trains_on_cpu("cuda")
    with pytest.raises(ValueError, match="of several processes each takes its own: say auto"):
        adapters.trains_on_cpu("cuda:0")


def test_without_a_gpu_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: None)
    assert adapters.device_of("auto") == torch.device("cpu") and adapters.trains_on_cpu("auto")


class Reached(Exception):
    """The Trainer's arguments were made."""


@pytest.mark.parametrize(("device", "use_cpu"), [("cpu", True), ("auto", False), ("cuda", False)])
@pytest.mark.parametrize("verb", ["train", "quickstart"])
def test_the_trainer_is_told_to_use_the_cpu(
    verb: str,
    device: str,
    use_cpu: bool,
    two_gpus: None,
    run: Run,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []

    def arguments(self: Recipe, *_: Any, **changes: Any) -> Any:
        told.append(changes["use_cpu"])
        raise Reached

    monkeypatch.setattr(Recipe, "arguments", arguments)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(quickstart, "SHORT_COUNTS", dict.fromkeys(quickstart.SHORT_COUNTS, 1))
    where = ["--data", scenes] if verb == "train" else ["--short"]
    code, _, err = run(verb, *where, "--out", tmp_path / "out", "--device", device)
    assert code == 1 and told == [use_cpu], err


# Modules of one's own.


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Heads and modules that a test brings are forgotten afterwards."""
    monkeypatch.setattr(registry, "_HEADS", dict(registry._HEADS))
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) in (str(EXAMPLE), None) or (
            name.startswith("own_")
        ):
            del sys.modules[name]


@pytest.fixture
def counter(forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved adapter with a head that bridger does not know."""
    with monkeypatch.context() as patched:
        patched.setattr(registry, "_HEADS", dict(registry._HEADS))
        patched.syspath_prepend(str(EXAMPLE.parent))
        import own_head

        vision, text, processor = bridger.load_tiny_clip()
        model = attach_bridgers(vision, text, 1).with_head(own_head.CountHead)
        model.processor = processor
        model.save_pretrained(tmp_path / "counter")
    del sys.modules["own_head"]
    return tmp_path / "counter"


def test_a_head_of_ones_own_answers_in_the_shell(
    counter: Path, run: Run, picture: Path, tmp_path: Path
) -> None:
    argv = ["predict", picture, "owl", "the red ball", "--adapter", counter]
    code, _, err = run(*argv)
    assert code == 1 and "no head is called 'count'" in err and "--import" in err
    options = ["--import", EXAMPLE, "--json", tmp_path / "p.json"]
    code, said, err = run(*argv, *options)
    assert code == 0, err
    found = json.loads((tmp_path / "p.json").read_text())["found"]
    expected: Any = BridgedModel.from_pretrained(counter).predict(picture, ["owl", "the red ball"])
    assert found == expected and str(expected) in said
    code, _, err = run(*argv, "--import", EXAMPLE, "--overlay", tmp_path / "seen.png")
    assert code == 1 and "--overlay means nothing for count, whose results draw nothing" in err


OWN = '''
from bridger.heads import register_head
from bridger.heads.classification import ClassificationHead
from own_words import NAME

@register_head(NAME)
class Own(ClassificationHead):
    """As the library's, under a name of its own."""
'''


@pytest.mark.parametrize("named", ["own_labels.py", "own_labels"])
def test_files_and_modules_are_imported_with_what_lies_beside_them(
    named: str, forgotten: None, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_labels.py").write_text(OWN)
    (tmp_path / "own_words.py").write_text('NAME = "own_labels"\n')
    assert "own_labels" not in registry.list_heads()
    assert run("inspect", "tiny", "--import", named)[0] == 0
    assert "own_labels" in registry.list_heads()


def test_what_cannot_be_imported_is_said_in_a_line(
    forgotten: None, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("")
    (tmp_path / "own_broken.py").write_text("import nowhere_to_be_found\n")
    for name, words in (
        (tmp_path / "none.py", "there is no such file"),
        ("own_nothing", "No module named 'own_nothing'"),
        (tmp_path / "json.py", "has the same name and was there before"),
        (tmp_path / "own_broken.py", "No module named 'nowhere_to_be_found'"),
    ):
        code, _, err = run("inspect", "tiny", "--import", name)
        assert code == 1 and words in err and len(err.splitlines()) == 1, err
        assert f"--import {name}" in err


# Classes.


def test_all_classes_are_ranked(run: Run, picture: Path, tmp_path: Path) -> None:
    argv = ["predict", picture, "--adapter", "tiny-heads", "--head", "classification"]
    code, said, err = run(*argv, "owl", "drum", "car", "--json", tmp_path / "p.json")
    assert code == 0, err
    whole = json.loads((tmp_path / "p.json").read_text())
    model = BridgedModel.from_pretrained("tiny-heads")
    expected: Any = model.predict(picture, ["owl", "drum", "car"], head="classification")
    ranked = [(part["words"], part["score"]) for part in whole["ranked"]]
    assert ranked == expected.top(3) and whole["found"] == [whole["ranked"][0]]
    first, *behind = expected.top(3)
    assert f"{first[0]}: score {first[1]:.2f}\n" in said and "warning" not in err
    assert "behind: " + ", ".join(f"{name} {score:.2f}" for name, score in behind) in said
    _, said, _ = run(*argv, "--json", tmp_path / "p.json")
    known = json.loads((tmp_path / "p.json").read_text())["ranked"]
    assert len(known) > 10 and said.splitlines()[1].count(",") == 3  # four runners-up


def test_one_class_alone_is_told_to_say_nothing(run: Run, picture: Path) -> None:
    argv = ["predict", picture, "--adapter", "tiny-heads", "--head", "classification"]
    code, _, err = run(*argv, "owl")
    assert code == 0 and "'owl' is the only class that was asked about" in err
    assert len(err.splitlines()) == 1


# Data of other tasks.


def test_data_of_another_task_are_told_first(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = tmp_path / "boxes"
    write_scenes(boxes, {"train": 1, "val": 1}, size=64, layout="boxed", classes=6)
    out = ["--out", tmp_path / "out"]
    said = "holds no data for referring_segmentation, but for another task: detection (--head"
    for argv in (
        ["train", "--data", boxes, *out],
        ["train", "--data", boxes, *out, "--dataset", "refcoco"],
        ["train", "etris-vit-b16-refcoco", "--data", boxes, *out],
        ["train", "--data", boxes, *out, "--split", "nothing"],
        ["evaluate", "tiny", "--data", boxes],
        ["evaluate", "tiny", "--data", boxes, "--dataset", "refcoco"],
        ["evaluate", "tiny", "--data", boxes, "--split", "testA"],
    ):
        code, _, err = run(*argv)
        assert code == 1 and said in err, err
