"""Adapters on the Hub: pushed, found by name elsewhere; what is said where something is wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_hub import READER, WRITER, WRONG, Hub, Repo, hub_server
from helpers_lockstep import same
from PIL import Image

from bridger import BridgedModel
from bridger.adapter_files import ADAPTER_FILES, read, write
from bridger.data.scenes import make_scene
from bridger.hub import find_adapter, push_folder
from bridger.model_card import write_card
from bridger.tiny_clip import SHIPPED

Run = Callable[..., tuple[int, str, str]]
FILES = {
    "bridger_config.json",
    "bridger.safetensors",
    "processor.json",
    "recipe.json",
    "README.md",
    "card.png",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process uses, as anna, with an empty cache."""
    with hub_server() as server:
        server.use(monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The adapters of the package with cards, so that not every push makes one."""
    folders = {}
    for name, source in SHIPPED.items():
        folders[name] = tmp_path_factory.mktemp("made") / name
        shutil.copytree(source, folders[name])
        write_card(folders[name], "anna/owls")
    return folders


@pytest.fixture
def shared(hub: Hub, made: dict[str, Path]) -> Hub:
    """A Hub that holds the adapter anna/owls."""
    push_folder(made["tiny"], "anna/owls")
    return hub


@pytest.fixture
def elsewhere(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Go to a machine of another cache, and with another token."""

    def move(name: str = "elsewhere", token: str | None = WRITER, *, offline: bool = False) -> None:
        hub.use(monkeypatch, tmp_path / name, token, offline=offline)

    return move


def pushed(hub: Hub, name: str, revision: str = "main") -> set[str]:
    return set(hub.repos[name].files(revision)) - {".gitattributes"}


# There and back.


@pytest.mark.parametrize("name", ["tiny", "tiny-heads"])
def test_what_is_pushed_comes_back_by_its_id_bit_by_bit(
    name: str, hub: Hub, elsewhere: Callable[..., None]
) -> None:
    model = BridgedModel.from_pretrained(name)
    address = model.push_to_hub("anna/owls")
    assert address == f"{hub.url}/anna/owls"
    elsewhere()
    again = BridgedModel.from_pretrained("anna/owls")
    own, loaded = model.adapter_state_dict(), again.adapter_state_dict()
    assert list(own) == list(loaded)
    assert same(list(own.values()), list(loaded.values()))
    picture = make_scene("val", 1).image
    for head in model.heads:
        words = ["the star"] if name == "tiny" else None
        first, second = (m.predict(picture, words, head=head) for m in (model, again))
        assert first.found() == second.found()
        if name == "tiny":
            assert np.array_equal(first.masks, second.masks)


def test_a_folder_is_pushed_as_it_is(shared: Hub) -> None:
    assert pushed(shared, "anna/owls") == FILES
    there = shared.repos["anna/owls"].files()
    for file in FILES - {"README.md", "card.png"}:
        assert there[file] == (SHIPPED["tiny"] / file).read_bytes()


def test_half_the_size_is_rounded_once(hub: Hub) -> None:
    model = BridgedModel.from_pretrained("tiny")
    model.push_to_hub("anna/half", dtype=torch.float16)
    model.push_to_hub("anna/whole")
    half, whole = (
        len(hub.repos[name].files()["bridger.safetensors"]) for name in ("anna/half", "anna/whole")
    )
    assert half < 0.52 * whole
    found = BridgedModel.from_pretrained("anna/half").adapter_state_dict()
    for name, tensor in model.adapter_state_dict().items():
        assert torch.equal(found[name], tensor.half().float())


def test_nothing_but_the_adapter_of_a_run_is_pushed(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(SHIPPED["tiny"], folder)
    (folder / "history.json").write_text("[]")
    (folder / "notes.txt").write_text("private")
    for inner, file in [
        ("checkpoints/checkpoint-8", "optimizer.pt"),
        ("checkpoints/checkpoint-8", "bridger.safetensors"),
        ("runs", "events.out"),
        ("pictures", "step-1.png"),
        ("tokenizer", "vocab.pkl"),
        ("tokenizer/cache", "old.json"),
    ]:
        (folder / inner).mkdir(parents=True, exist_ok=True)
        (folder / inner / file).write_bytes(b"secret")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    push_folder(folder, "anna/owls")
    assert pushed(hub, "anna/owls") == FILES
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_nothing_but_an_adapter_is_downloaded(shared: Hub, elsewhere: Callable[..., None]) -> None:
    repo = shared.repos["anna/owls"]
    extra = {"weights.pkl": b"evil", "pytorch_model.bin": b"evil", "tokenizer/x.pkl": b"evil"}
    repo.commit({**repo.files(), **extra}, "main", "more")
    elsewhere()
    folder = find_adapter("anna/owls")
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    assert found == FILES


def test_a_later_push_replaces_what_is_no_more(shared: Hub, made: dict[str, Path]) -> None:
    repo = shared.repos["anna/owls"]
    repo.commit({**repo.files(), "tokenizer/old.txt": b"", "mine.txt": b"kept"}, "main", "more")
    push_folder(made["tiny-heads"], "anna/owls")
    assert pushed(shared, "anna/owls") == FILES - {"recipe.json"} | {"mine.txt"}


# Revisions.


def test_a_branch_and_a_tag_are_loaded_by_their_names(
    shared: Hub, elsewhere: Callable[..., None], made: dict[str, Path]
) -> None:
    from huggingface_hub import HfApi

    HfApi().create_tag("anna/owls", tag="v1.0")
    address = push_folder(
        made["tiny-heads"], "anna/owls", revision="heads/3", commit_message="Three"
    )
    assert address == f"{shared.url}/anna/owls/tree/heads/3"
    assert shared.repos["anna/owls"].messages[-1] == "Three"
    push_folder(made["tiny-heads"], "anna/owls")
    elsewhere()
    first = find_adapter("anna/owls@v1.0")
    assert (first / "bridger.safetensors").read_bytes() == (
        SHIPPED["tiny"] / "bridger.safetensors"
    ).read_bytes()
    assert find_adapter("anna/owls", revision="v1.0") == first
    assert find_adapter(f"anna/owls@{first.name}") == first  # a commit
    for name in ("anna/owls@heads/3", "anna/owls"):
        assert len(BridgedModel.from_pretrained(name).heads) == 3
    assert list(BridgedModel.from_pretrained("anna/owls", revision="v1.0").heads) == ["head"]


def test_a_revision_that_does_not_exist_is_said(shared: Hub) -> None:
    with pytest.raises(FileNotFoundError, match="anna/owls has no revision 'v9': its branches"):
        find_adapter("anna/owls@v9")


def test_two_revisions_are_refused(shared: Hub) -> None:
    assert find_adapter("anna/owls@main", revision="main")
    with pytest.raises(ValueError, match="names another revision than 'v2'"):
        find_adapter("anna/owls@v1", revision="v2")
    with pytest.raises(ValueError, match="no revision 'v2' of it"):
        find_adapter("tiny", revision="v2")


# Names.


def test_folders_come_before_names_and_paths_are_folders(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_adapter("tiny") == SHIPPED["tiny"]
    assert find_adapter("tiny-heads") == SHIPPED["tiny-heads"]
    for name in ("tiny", "anna/owls"):
        shutil.copytree(SHIPPED["tiny"], name)
        assert find_adapter(name) == Path(name)
    with pytest.raises(FileNotFoundError, match="no adapter 'ben/owls'"):
        find_adapter(Path("ben/owls"))
    assert not hub.requests


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tinny", "did you mean 'tiny'"),
        ("./a/b", "there is no folder './a/b': expected that of an adapter"),
        (".a/b", "there is no folder '.a/b'"),
        ("../a", "there is no folder '../a'"),
        ("/a/b", "there is no folder '/a/b'"),
        ("~/no/such/adapter", "there is no folder '~/no/such/adapter'"),
        ("~nouser/x", "there is no folder '~nouser/x'"),
        ("a/b/c", "expected a folder"),
        ("", "expected a folder|holds no adapter"),
    ],
)
def test_what_is_no_name_is_said_without_asking_the_hub(name: str, said: str, hub: Hub) -> None:
    with pytest.raises(FileNotFoundError, match=said):
        find_adapter(name)
    assert not hub.requests


def test_a_folder_without_an_adapter_and_a_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no adapter: expected bridger.safetensors"):
        find_adapter(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        find_adapter(tmp_path / "file")


# What the Hub may answer.


def test_a_missing_repository_is_said(hub: Hub, elsewhere: Callable[..., None]) -> None:
    for token in (WRITER, None):
        elsewhere("there", token)
        with pytest.raises(
            FileNotFoundError,
            match="no anna/nothing on the Hub, or it is private, and no folder of that name here",
        ):
            BridgedModel.from_pretrained("anna/nothing")


def test_a_repository_of_something_else_is_said(hub: Hub) -> None:
    hub.repos["anna/other"] = Repo()
    hub.repos["anna/other"].commit({"pytorch_model.bin": b"1", "README.md": b"2"}, "main", "x")
    with pytest.raises(FileNotFoundError, match="is no adapter of bridger: it has no bridger.safe"):
        find_adapter("anna/other")


def test_a_private_one_is_for_its_owner(
    hub: Hub, elsewhere: Callable[..., None], made: dict[str, Path]
) -> None:
    push_folder(made["tiny"], "anna/secret", private=True)
    assert hub.repos["anna/secret"].private
    elsewhere("hers", WRITER)
    assert find_adapter("anna/secret")
    for token in (READER, None):
        elsewhere("theirs", token)
        with pytest.raises(FileNotFoundError, match="or it is private"):
            find_adapter("anna/secret")
    elsewhere("given", None)
    assert find_adapter("anna/secret", token=WRITER)


def test_a_gated_one_says_where_to_ask(shared: Hub, elsewhere: Callable[..., None]) -> None:
    shared.repos["anna/owls"].gated = True
    elsewhere("theirs", READER)
    with pytest.raises(PermissionError, match=rf"gated: ask for access at {shared.url}/anna/owls"):
        find_adapter("anna/owls")


def test_a_wrong_token_is_said(
    shared: Hub, elsewhere: Callable[..., None], made: dict[str, Path]
) -> None:
    elsewhere("theirs", WRONG)
    with pytest.raises(PermissionError, match="does not know this token: log in with `hf auth"):
        find_adapter("anna/owls")
    with pytest.raises(PermissionError, match="does not know this token"):
        push_folder(made["tiny"], "anna/owls")


def test_pushing_needs_the_right_to_write(
    shared: Hub, elsewhere: Callable[..., None], made: dict[str, Path]
) -> None:
    before = dict(shared.repos["anna/owls"].commits)
    elsewhere("theirs", READER)
    for name in ("anna/owls", "anna/new"):
        with pytest.raises(PermissionError, match="your token may not do this"):
            push_folder(made["tiny"], name)
    elsewhere("nobody's", None)
    for name in ("anna/owls", "anna/new"):
        with pytest.raises(PermissionError, match="asks for a token that may write: log in"):
            push_folder(made["tiny"], name)
    with pytest.raises(PermissionError, match="there is no token on this machine"):
        push_folder(made["tiny"], "anna/owls", token=True)
    assert shared.repos["anna/owls"].commits == before
    assert list(shared.repos) == ["anna/owls"]


@pytest.mark.parametrize("name", ["owls", "a/b/c", "anna/owls@v2", "anna/ow ls", "anna/o--ls"])
def test_an_id_that_is_none_is_refused(name: str, hub: Hub) -> None:
    with pytest.raises(ValueError, match="is no id on the Hub: expected user/name"):
        push_folder("tiny", name)
    assert not hub.repos


# Connections.


@pytest.mark.parametrize("cut", [("PUT", "/lfs/"), ("POST", "/batch"), ("POST", "/commit/")])
def test_an_upload_that_breaks_off_leaves_the_old_adapter(
    cut: tuple[str, str], hub: Hub, elsewhere: Callable[..., None], made: dict[str, Path]
) -> None:
    push_folder(made["tiny"], "anna/owls")
    before = hub.repos["anna/owls"].files()
    hub.cut(*cut)
    with pytest.raises(ConnectionError, match="confirmed the push to anna/owls: push again"):
        push_folder(made["tiny-heads"], "anna/owls")
    assert hub.repos["anna/owls"].files() == before
    hub.cuts.clear()
    push_folder(made["tiny-heads"], "anna/owls")
    elsewhere()
    assert len(BridgedModel.from_pretrained("anna/owls").heads) == 3


def test_a_download_that_breaks_off_is_never_taken_for_whole(
    shared: Hub, elsewhere: Callable[..., None]
) -> None:
    elsewhere("there")
    shared.cut("GET", "bridger.safetensors")
    with pytest.raises(ConnectionError, match="anna/owls could not be downloaded.*try again"):
        find_adapter("anna/owls")
    elsewhere("there", offline=True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        find_adapter("anna/owls")
    elsewhere("there")
    shared.cuts.clear()
    folder = find_adapter("anna/owls")
    assert (folder / "bridger.safetensors").read_bytes() == (
        SHIPPED["tiny"] / "bridger.safetensors"
    ).read_bytes()


def test_a_download_that_lacks_the_processor_is_not_taken_for_whole(
    shared: Hub, elsewhere: Callable[..., None]
) -> None:
    elsewhere("there")
    shared.cut("GET", "processor.json")
    with pytest.raises(ConnectionError, match="could not be downloaded"):
        find_adapter("anna/owls")
    elsewhere("there", offline=True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        find_adapter("anna/owls")


def test_what_was_downloaded_once_needs_no_connection(
    shared: Hub, elsewhere: Callable[..., None], made: dict[str, Path]
) -> None:
    elsewhere("there")
    folder = find_adapter("anna/owls")
    elsewhere("there", offline=True)
    shared.requests.clear()
    assert find_adapter("anna/owls") == folder
    assert list(BridgedModel.from_pretrained("anna/owls").heads) == ["head"]
    assert not shared.requests
    for name in ("anna/other", "anna/owls@v2"):
        with pytest.raises(
            ConnectionError, match=f"{name} is neither a folder.*unset it and try again"
        ):
            find_adapter(name)
    with pytest.raises(ConnectionError, match="cannot push to anna/.* while HF_HUB_OFFLINE is set"):
        push_folder(made["tiny"], "anna/owls")


def test_a_hub_that_is_not_there_is_said(
    shared: Hub, made: dict[str, Path], elsewhere: Callable[..., None]
) -> None:
    folder = find_adapter("anna/owls")
    shared.url = "http://127.0.0.1:1"
    elsewhere("home")
    assert find_adapter("anna/owls") == folder
    for call in (
        lambda: find_adapter("anna/other"),
        lambda: push_folder(made["tiny"], "anna/owls"),
    ):
        with pytest.raises(ConnectionError, match="connection to http://127.0.0.1:1 failed"):
            call()


def test_the_hub_knows_who_asks(shared: Hub, elsewhere: Callable[..., None]) -> None:
    from bridger import __version__

    elsewhere()
    shared.agents.clear()
    find_adapter("anna/owls")
    assert any(agent.startswith(f"bridger/{__version__};") for agent in shared.agents)


# Cards on the Hub.


def test_a_card_that_was_changed_on_the_hub_is_kept(shared: Hub) -> None:
    repo = shared.repos["anna/owls"]
    repo.commit({**repo.files(), "README.md": b"my own words"}, "main", "words")
    with pytest.warns(UserWarning, match="kept the README.md of anna/owls"):
        push_folder("tiny-heads", "anna/owls")
    assert repo.files()["README.md"] == b"my own words"
    assert "recipe.json" not in repo.files()
    push_folder("tiny-heads", "anna/owls", overwrite=True)
    assert repo.files()["README.md"].startswith(b"---\nlibrary_name: bridger")


def test_a_card_of_another_id_or_other_weights_is_made_anew(
    hub: Hub, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(SHIPPED["tiny"], folder)
    record = {"dataset": "refcoco", "split": "a --> b", "expressions": 6, "metrics": {"mIoU": 0.5}}
    figures = {"task": "referring_segmentation", "head": "head", "results": [record]}
    picture = Image.new("RGB", (8, 4))
    before = write_card(folder, "anna/a", licence="mit", figures=figures, picture=picture)
    written = before.read_text()
    push_folder(folder, "anna/a")
    assert hub.repos["anna/a"].files()["README.md"].decode() == written
    push_folder(folder, "anna/b")
    there = hub.repos["anna/b"].files()
    assert "anna/a" not in there["README.md"].decode()
    assert there["card.png"] == (folder / "card.png").read_bytes()
    for said in ("license: mit", "a --> b", "| 50.00 |", "model-index"):
        assert said in there["README.md"].decode()
    assert not [w for w in recwarn if "README.md" in str(w.message)]
    config, tensors = read(folder)
    write(folder, ADAPTER_FILES, config, {name: 2 * t for name, t in tensors.items()})
    with pytest.warns(UserWarning, match="the figures of the old weights are not in it"):
        push_folder(folder, "anna/a")
    now = hub.repos["anna/a"].files()["README.md"].decode()
    assert "license: mit" in now and "50.00" not in now
    assert before.read_text() == written


def test_a_card_of_ones_own_is_pushed(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(SHIPPED["tiny"], folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\nmy own words\n")
    push_folder(folder, "anna/owls")
    assert b"my own words" in hub.repos["anna/owls"].files()["README.md"]
    with pytest.raises(FileExistsError, match="was not written by bridger.*overwrite=True"):
        push_folder(folder, "anna/owls", licence="mit")
    push_folder(folder, "anna/owls", licence="mit", overwrite=True)
    assert b"my own words" not in hub.repos["anna/owls"].files()["README.md"]
    assert "my own words" in (folder / "README.md").read_text()


def test_towers_that_others_do_not_have_are_warned_of(hub: Hub, tmp_path: Path) -> None:
    model = BridgedModel.from_pretrained("tiny")
    secret = tmp_path / "anna-and-her-towers"
    model.tower_source = f"transformers:{secret}"
    with pytest.warns(UserWarning, match="the towers are files on this machine"):
        model.push_to_hub("anna/local")
    card = hub.repos["anna/local"].files()["README.md"].decode()
    assert secret.name not in card and "transformers:FOLDER" in card
    model.tower_source = None
    with pytest.warns(UserWarning, match="does not say where its towers come from"):
        model.push_to_hub("anna/unknown")


def test_paths_of_this_machine_are_left_out_or_warned_of(hub: Hub, tmp_path: Path) -> None:
    folder, secret = tmp_path / "mine", "/home/anna/secret/clip"
    shutil.copytree(SHIPPED["tiny"], folder)
    recipe = json.loads((folder / "recipe.json").read_text())
    written = json.dumps({**recipe, "towers": f"transformers:{secret}"})
    (folder / "recipe.json").write_text(written)
    push_folder(folder, "anna/owls")
    there = hub.repos["anna/owls"].files()
    assert not any(b"/home/anna" in content for content in there.values())
    assert json.loads(there["recipe.json"]) == {k: v for k, v in recipe.items() if k != "towers"}
    assert (folder / "recipe.json").read_text() == written
    config, tensors = read(folder)
    config["towers"]["vision"]["name"] = secret
    write(folder, ADAPTER_FILES, config, tensors)
    with pytest.warns(UserWarning, match=f"vision.name = {secret} in bridger_config.json"):
        push_folder(folder, "anna/owls")


def test_an_adapter_without_a_processor_says_so(hub: Hub) -> None:
    model = BridgedModel.from_pretrained("tiny")
    processor, model.processor = model.processor, None
    assert processor is not None
    model.tower_source = None
    with pytest.warns(UserWarning, match="has no processor, so others can predict with it only"):
        model.push_to_hub("anna/bare")
    card = hub.repos["anna/bare"].files()["README.md"].decode()
    code = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)[0].partition("\nresult =")[0]
    code = code.replace('"NAME")', '"tiny")\nmodel.processor = None')
    said: dict[str, Any] = {
        "image_size": processor.image_size,
        "mean": processor.mean,
        "std": processor.std,
        "tokenizer": processor.words,
        "max_length": processor.max_length,
    }
    exec(compile(code, "README.md", "exec"), said)
    found = said["model"].predict(make_scene("val", 1).image, "the star")
    model.processor = processor
    assert found.found() == model.predict(make_scene("val", 1).image, "the star").found()


# The shell.


def test_push_and_inspect_in_the_shell(
    hub: Hub, run: Run, tmp_path: Path, elsewhere: Callable[..., None]
) -> None:
    code, out, _ = run("push", "tiny", "anna/owls", "--licence", "mit", "--private", "--json",
                       tmp_path / "out.json")  # fmt: skip
    assert code == 0 and out.startswith(f"pushed tiny to {hub.url}/anna/owls\n")
    assert hub.repos["anna/owls"].private
    assert f'"address": "{hub.url}/anna/owls"' in (tmp_path / "out.json").read_text()
    assert b"license: mit" in hub.repos["anna/owls"].files()["README.md"]
    code, out, _ = run("push", "tiny-heads", "anna/owls", "--revision", "more", "--message", "Hm")
    assert code == 0 and "next: bridger inspect anna/owls@more" in out
    assert hub.repos["anna/owls"].messages[-1] == "Hm"
    elsewhere()
    code, out, _ = run("inspect", "anna/owls@more")
    assert code == 0 and "head detection: detection" in out


@pytest.mark.parametrize(
    ("logged", "judged", "warned"),
    [
        ([0.0, 0.002], [], "mIoU 0.20 %"),
        ([0.0, 0.5], [], None),  # the best one is what is saved
        ([], [0.004, 0.001], "mIoU 0.40 %"),
        ([0.0], [0.3], None),
        ([], [], None),
    ],
)
def test_an_adapter_that_learnt_nothing_is_pushed_with_a_warning(
    hub: Hub, run: Run, tmp_path: Path, logged: list[float], judged: list[float], warned: str | None
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(SHIPPED["tiny"], folder)
    history = [{"loss": 2.0}, *({"eval_mIoU": figure} for figure in logged)]
    (folder / "history.json").write_text(json.dumps(history))
    about = {"dataset": "folder", "split": "val", "expressions": 6}
    results = [{**about, "metrics": {"mIoU": figure, "P@0.5": 0.9}} for figure in judged]
    task = {"task": "referring_segmentation", "head": "head"}
    (tmp_path / "figures.json").write_text(json.dumps({**task, "results": results}))
    options = ["--figures", tmp_path / "figures.json"] if judged else []
    code, _, err = run("push", folder, "anna/owls", *options)
    assert code == 0 and "README.md" in hub.repos["anna/owls"].files()
    assert ("learnt next to nothing" in err) == (warned is not None)
    assert warned is None or f"({warned})" in err


def test_the_card_alone_is_written_in_the_shell(hub: Hub, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(SHIPPED["tiny"], folder)
    code, out, _ = run("push", folder, "anna/owls", "--card-only", "--licence", "mit")
    assert code == 0 and f"wrote {folder / 'README.md'}" in out
    assert not hub.requests
    with (folder / "README.md").open("a") as card:
        card.write("my own words\n")
    code, _, error = run("push", folder, "anna/owls", "--card-only")
    assert code == 1 and "was changed since" in error
    code, _, _ = run("push", folder, "anna/owls")
    assert code == 0
    assert hub.repos["anna/owls"].files()["README.md"].endswith(b"my own words\n")
    code, _, error = run("push", "tiny", "anna/owls", "--card-only")
    assert code == 1 and "writes into a folder" in error
    code, _, error = run("push", folder, "anna/owls", "--card-only", "--private")
    assert code == 1 and "--card-only does not" in error


def test_errors_are_one_line_in_the_shell(hub: Hub, run: Run) -> None:
    for argv in (("push", "tiny", "ben/owls"), ("inspect", "anna/nothing"), ("inspect", "tinny")):
        code, out, error = run(*argv)
        assert code == 1 and not out
        assert error.count("\n") == 1 and error.startswith(f"bridger {argv[0]}: error: ")


@pytest.mark.slow
def test_the_environment_says_which_hub_and_who(tmp_path: Path) -> None:
    bridger = [sys.executable, "-m", "bridger"]
    with hub_server() as hub:
        here, there = (hub.environment(tmp_path / name) for name in ("here", "there"))
        push = [*bridger, "push", "tiny", "anna/owls"]
        done = subprocess.run(push, env=here, capture_output=True, text=True, check=True)
        assert f"pushed tiny to {hub.url}/anna/owls" in done.stdout
        inspect = [*bridger, "inspect", "anna/owls"]
        subprocess.run(inspect, env=there, capture_output=True, check=True)
        failed = subprocess.run(
            push, env={**here, "HF_TOKEN": WRONG}, capture_output=True, text=True, check=False
        )
        assert failed.returncode == 1 and "does not know this token" in failed.stderr
    done = subprocess.run(
        inspect, env={**there, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
