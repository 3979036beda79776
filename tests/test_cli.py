"""The `bridger` command: exit codes, one-line errors, JSON, and the verbs end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_towers import open_clip_vit
from PIL import Image
from test_etris import small

from bridger import attach_bridgers
from bridger.cli import base, main, predict, quickstart
from bridger.data import RefCOCO, Sample
from bridger.heads import ReferringSegmentationHead
from bridger.tiny_clip import TINY_ADAPTER
from bridger.training.schedule import Schedule

HEAD = {"width": 64, "num_layers": 1, "num_heads": 2}

Run = Callable[..., tuple[int, str, str]]


def test_importing_the_command_is_light() -> None:
    code = (
        "import sys, bridger.cli.main as m; m.build_parser();"
        "print([n for n in ('transformers', 'open_clip', 'timm', 'torchvision', 'PIL') "
        "if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", sorted({*main.VERBS} - {"data"}))
def test_every_verb_explains_itself_with_examples(verb: str, run: Run, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(verb, "--help")
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert f"  bridger {verb}" in text.split("examples:")[1]
    assert "--json FILE" in text and "--debug" in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "VERB"),
        (["trian"], "there is no verb 'trian': did you mean 'train'?"),
        (["data", "chekc"], "did you mean 'check'?"),
        (["frobnicate"], "known: ['ablate', 'compare', "),
        (["train", "--out", "x"], "--data"),
        (["quickstart", "--steps", "0"], "expected a whole number from 1, got '0'"),
        (["predict", "a.png", "the owl", "--threshold", "2"], "expected a number from 0 to 1"),
        (["inspect", "tiny", "tiny", "--size", "0"], "expected a whole number from 1, got '0'"),
        (["inspect", "tiny", "tiny", "--stages", "0"], "expected a whole number from 1, got '0'"),
    ],
)
def test_wrong_usage_exits_2(argv: list[str], words: str, run: Run, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*argv)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a.png owl drum --out m.png --window 9", ["owl", "drum"]),
        ("a.png --out m.png --window 9 owl drum", ["owl", "drum"]),
        ("a.png owl --out m.png drum --window 9 car", ["owl", "drum", "car"]),
        ("--out m.png a.png --window 9", []),
    ],
)
def test_words_stand_before_options_or_after_them(line: str, words: list[str]) -> None:
    args = main.parse(["predict", *line.split()])
    assert (str(args.image), args.words) == ("a.png", words)
    assert (str(args.out), args.window) == ("m.png", 9)


@pytest.mark.parametrize(
    "line",
    ["predict a.png --windw 9 owl", "predict a.png owl --verbose", "inspect tiny --size 9 x y"],
)
def test_what_no_verb_knows_is_refused(line: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.parse(line.split())
    assert stopped.value.code == 2
    assert "unrecognized arguments: " in capsys.readouterr().err


def test_lists_in_messages_keep_their_items_apart() -> None:
    message = "made for others:\n  a is 1,  not 2\n  b is 3\nload those"
    assert (
        base.one_line(message.splitlines()) == "made for others: a is 1, not 2; b is 3; load those"
    )
    assert base.one_line(["wrapped", "prose."]) == "wrapped prose."


def test_errors_are_one_line_and_debug_shows_more(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    cases: list[tuple[list[object], str]] = [
        (["inspect", missing], "there is no folder"),
        (["inspect", tmp_path], "holds no adapter"),
        (["predict", missing / "a.png", "the owl"], "there is no picture"),
        (["train", "--data", missing, "--out", tmp_path], "missing"),
        (["train", "--data", missing, "--out", tmp_path, "--set", "step=3"], "mean 'steps'"),
        (["train", "--data", missing, "--out", tmp_path, "--set", "steps"], "OPTION=VALUE"),
        (["train", "--data", missing, "--out", tmp_path, "--set", "steps.a=1"], "no group of"),
        (["evaluate", missing, "--data", missing], "missing"),
        (["convert", missing, tmp_path / "x"], "no checkpoint file"),
    ]
    for argv, words in cases:
        code, _, err = run(*argv)
        assert code == 1 and words in err, err
        assert len(err.splitlines()) == 1 and err.startswith(f"bridger {argv[0]}: error: ")
    with pytest.raises(FileNotFoundError):
        run("inspect", missing, "--debug")


def test_ctrl_c_exits_130(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def pressed(plan: Any) -> None:
        raise KeyboardInterrupt("the same command goes on")

    monkeypatch.setattr(quickstart, "perform", pressed)
    code, _, err = run("quickstart", "--out", tmp_path)
    assert (code, err.strip()) == (130, "bridger: interrupted; the same command goes on")


def test_the_shipped_adapter_has_a_name(run: Run) -> None:
    named, found = run("inspect", "tiny")[1], run("inspect", TINY_ADAPTER)[1]
    assert named.startswith("tiny: adapter of bridger") and named == found.replace(
        str(TINY_ADAPTER), "tiny"
    )


def test_an_adapter_for_others_says_how_to_name_them(run: Run, tmp_path: Path) -> None:
    clip = open_clip_vit()
    model = attach_bridgers(clip.visual, clip, 2).with_head(ReferringSegmentationHead, **HEAD)
    model.save_pretrained(tmp_path / "adapter")
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    code, _, err = run("predict", tmp_path / "p.png", "a", "--adapter", tmp_path / "adapter")
    assert code == 1 and "does not say where its towers come from" in err and "--towers" in err


def test_inspect_adds_up_the_parts(run: Run, adapter: Path, tmp_path: Path) -> None:
    code, out, _ = run("inspect", adapter, "--json", tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())
    assert code == 0 and "vision tower: open_clip ModifiedResNet" in out
    assert set(found["parts"]) >= {"bridgers", "head head"}
    inside = sum(part["bytes"] for part in found["parts"].values())
    assert inside <= found["bytes"] < inside + 200_000


def test_inspect_says_where_two_towers_would_meet(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("inspect", "tiny", "tiny", "--json", tmp_path / "a.json")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 5 and lines[0].split()[:3] == ["stage", "vision", "block"]
    assert lines[3].split()[:2] == ["2", "layer4"] and "4 x 4" in lines[3]
    assert json.loads((tmp_path / "a.json").read_text())["stages"] == [[1, 0], [2, 1], [3, 2]]
    code, out, _ = run("inspect", "timm:resnet10t", "tiny", "--stages", "1", "--size", "96")
    assert code == 0 and "layer4 (4 of 4)" in out and "3 x 3" in out
    code, out, _ = run("inspect", "torchvision:resnet18", "tiny", "--stages", "1")
    assert code == 0 and "layer4 (4 of 4)" in out
    code, _, err = run("inspect", "timm", "tiny")
    assert code == 1 and "known are tiny" in err
    code, _, err = run("inspect", "a", "b", "c")
    assert code == 1 and "expected an adapter, or a vision and a text tower" in err


def test_predict_writes_masks_of_the_pictures_size(
    run: Run, adapter: Path, scenes: Path, tmp_path: Path
) -> None:
    sample = RefCOCO(scenes, "val")[0]
    picture = tmp_path / "wide.png"
    Image.open(sample.image_path).resize((90, 40)).save(picture)
    files = ["--out", tmp_path / "m.png", "--overlay", tmp_path / "seen.png"]
    options = ["--adapter", adapter, *files, "--json", tmp_path / "p.json", "--threshold", "0"]
    code, out, _ = run("predict", picture, "the owl", "the red car", *options)
    assert code == 0
    assert all(word in out for word in ("loading", "running", "writing"))
    found = json.loads((tmp_path / "p.json").read_text())
    assert [part["words"] for part in found["found"]] == ["the owl", "the red car"]
    masks = [np.asarray(Image.open(tmp_path / f"m-{i}.png")) for i in (1, 2)]
    assert all(m.shape == (40, 90) and set(np.unique(m)) <= {0, 255} for m in masks)
    assert (tmp_path / "seen.png").is_file()


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ([], ["mask.png"]),
        (["--overlay", "seen.png"], ["seen.png"]),
        (["--out", "m.png"], ["m.png"]),
        (["--out", "m.png", "--overlay", "seen.png"], ["m.png", "seen.png"]),
    ],
)
def test_predict_writes_what_was_asked_for(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    written: list[str],
) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (90, 40)).save(picture)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, out, _ = run("predict", picture, "the owl", *options)
    assert code == 0 and f"wrote {', '.join(written)}" in out
    assert sorted(path.name for path in Path().iterdir()) == written


def test_what_cannot_be_written_is_found_before_the_model_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "load_model", lambda *_: pytest.fail("too late"))
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    cases: list[tuple[list[object], str]] = [
        (["--out", tmp_path / "m.xyz"], "m.xyz has no ending that Pillow writes"),
        (["--out", tmp_path / "m"], "has no ending"),
        (["--overlay", tmp_path / "m.xyz"], "m.xyz has no ending"),
        (["--overlay", tmp_path / "m.fli"], "has no ending"),  # read, never written
        (["--out", picture / "m.png"], "picture.png is a file, not a folder"),
        (["--out", picture], "must be different files"),
        (["--overlay", tmp_path / "." / "picture.png"], "must be different files"),
        (["--out", tmp_path / "a.png", "--overlay", tmp_path / "a.png"], "must be different files"),
        (["--json", tmp_path], "is a folder; expected a file"),
        (["--json", picture / "a" / "b.json"], "picture.png is a file, not a folder"),
    ]
    for argv, words in cases:
        code, _, err = run("predict", picture, "the owl", *argv)
        assert code == 1 and words in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_convert_names_a_broken_file(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "etris.pth"
    torch.save({"state_dict": small("rn50")}, source)
    for content in (source.read_bytes()[:-9], b"hello"):
        source.write_bytes(content)
        code, _, err = run("convert", source, tmp_path / "adapter")
        assert code == 1 and f"{source} cannot be read as a checkpoint of tensors" in err
    assert not (tmp_path / "adapter").exists()


def test_convert_goes_both_ways(run: Run, tmp_path: Path) -> None:
    state = small("rn50")
    source, adapter, back = (tmp_path / name for name in ("etris.pth", "adapter", "back.pth"))
    torch.save({"state_dict": state, "epoch": 3}, source)
    code, out, err = run("convert", source, adapter)
    assert code == 0 and f"bridger predict IMAGE WORDS --adapter {adapter}\n" in out, err
    code, _, err = run("convert", adapter, back, "--to-etris")
    assert code == 0, err
    again = torch.load(back, weights_only=True)["state_dict"]
    assert list(again) == list(state)
    assert [name for name in state if not torch.equal(state[name], again[name])] == []


@pytest.mark.slow
def test_the_short_quickstart_goes_through(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "quick"
    code, said, err = run("quickstart", "--short", "--steps", 2, "--out", out)
    assert code == 0, err
    assert "try next:" in said and "testA" in said and "these scores say nothing" in said
    assert Image.open(out / "seen.png").size[0] >= 128
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["bytes"] < figures["tower_bytes"]
    code, again, _ = run("quickstart", "--short", "--steps", 2, "--out", out)
    assert code == 0 and "holds this run already" in again and "testB" in again
    code, _, err = run("quickstart", "--short", "--seed", "1", "--out", out)
    assert code == 1 and "another recipe" in err


# What the verbs stand on.


@pytest.mark.parametrize("expressions", [1, 3])
def test_a_schedule_shows_every_picture_once_an_epoch(scenes: Path, expressions: int) -> None:
    data = RefCOCO(scenes, "train")
    groups = len(data) if expressions == 1 else len(data.pictures())
    schedule = Schedule(data, 2 * groups, expressions, seed=4)

    def key(items: list[Sample]) -> int | str:
        return items[0].ref_id if expressions == 1 else str(items[0].image_path)

    epochs = [[key(schedule[e * groups + i]) for i in range(groups)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(set(epochs[0]))
    assert epochs[0] != epochs[1]
    for index in range(len(schedule)):
        items = schedule[index]
        assert 1 <= len(items) <= expressions
        assert all(len(sample.sentences) == 1 for sample in items)
        assert len({sample.image_path for sample in items}) == 1
        assert len({(s.ref_id, s.sentences) for s in items}) == len(items)
    # An item depends on its number alone.
    again = Schedule(data, 2 * groups, expressions, seed=4)
    last = 2 * groups - 1
    assert [(s.ref_id, s.sentences) for s in again[last]] == [
        (s.ref_id, s.sentences) for s in schedule[last]
    ]
