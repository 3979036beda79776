"""`bridger data`: scenes, pictures, checks and conversions from the shell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_own_data import read_lines, write_lines, write_own_data
from PIL import Image

from bridger.cli import data
from bridger.data import RefCOCO, open_boxed, open_classified, open_segmented, open_split
from bridger.data import scenes as scene_module

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    write_own_data(tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize("verb", sorted(data.VERBS))
def test_every_verb_explains_itself_with_examples(verb: str, run: Run, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("data", verb, "--help")
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert f"  bridger data {verb}" in text.split("examples:")[1]
    assert "--json FILE" in text and "--debug" in text


def test_the_group_lists_its_verbs(run: Run, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("data", "--help")
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and all(f"  bridger data {verb} " in text for verb in data.VERBS)
    with pytest.raises(SystemExit) as stopped:
        run("data")
    assert stopped.value.code == 2 and "WHAT" in capsys.readouterr().err


def test_errors_name_the_whole_verb_in_one_line(run: Run, tmp_path: Path) -> None:
    nothing = "--train 0 --val 0 --testA 0 --testB 0".split()
    cases: list[tuple[list[object], str]] = [
        (["scenes", tmp_path, *nothing], "every split is empty"),
        (["scenes", tmp_path, "--test", 3, "--classes", 8], "--test and --classes mean nothing"),
        (["scenes", tmp_path, "--task", "detection", "--testA", 0], "--testA means nothing with"),
        (["scenes", tmp_path, "--task", "classification", "--layout", "refcoco"], "--layout means"),
        (["scenes", tmp_path, "--task", "detection", "--classes", 3], "6 to 254 classes"),
        (["check", tmp_path / "missing"], "no folder"),
        (["check", tmp_path], "holds no data set"),
        (["check", tmp_path, "--sheet", tmp_path / "a.xyz"], "has no ending"),
        (["check", tmp_path, "--dataset", "refcoc"], "did you mean 'refcoco'"),
        (["convert", tmp_path, tmp_path / "out"], "holds no data set"),
    ]
    for argv, words in cases:
        code, _, err = run("data", *argv)
        assert code == 1 and words in err and len(err.splitlines()) == 1, err
        assert err.startswith(f"bridger data {argv[0]}: error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_sound_folder_passes_and_is_drawn(run: Run, own: Path, tmp_path: Path) -> None:
    sheet, report = tmp_path / "deep" / "sheet.png", tmp_path / "report.json"
    code, out, err = run("data", "check", own, "--sheet", sheet, "--json", report)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["data", "set", "split", "refs", "sentences", "pictures"]
    assert [line.split() for line in lines[1:3]] == [
        ["folder", "train", "10", "15", "10"],
        ["folder", "val", "1", "1", "1"],
    ]
    assert "nothing is wrong" in lines and "notes:" in lines and "wrong:" not in lines
    assert "pictures: 11/11" in err
    assert Image.open(sheet).width > 1000
    assert json.loads(report.read_text())["problems"] == []


def test_what_is_wrong_is_printed_written_and_fails(run: Run, own: Path, tmp_path: Path) -> None:
    (own / "Bilder" / "b.png").unlink()
    (own / "Bilder" / "c.png").unlink()
    rows = read_lines(own / "val.jsonl")
    write_lines(own / "val.jsonl", [*rows, {"sentence": "a"}])
    report, sheet = tmp_path / "report.json", tmp_path / "sheet.png"
    code, out, err = run("data", "check", own, "--json", report, "--sheet", sheet)
    assert code == 1
    assert err.splitlines()[-1] == (
        f"bridger data check: error: 2 kinds of problems in {own}: see above"
    )
    problems = json.loads(report.read_text())["problems"]
    assert {p["what"]: p["count"] for p in problems} == {"missing pictures": 2, "wrong lines": 1}
    assert "  missing pictures: 2\n    train ref 2: " in out and "val.jsonl, line 2: " in out
    assert "nothing is wrong" not in out and sheet.is_file()
    assert run("data", "check", own, "--quick", "--dataset", "refcoco")[0] == 1


def test_published_counts_stand_beside_the_found_ones(run: Run, tmp_path: Path) -> None:
    scene_module.write_scenes(tmp_path / "scenes", {"train": 1, "testA": 1}, size=64)
    code, out, _ = run("data", "check", tmp_path / "scenes")
    assert code == 0 and "published refs" in out.splitlines()[0]
    assert out.splitlines()[1].split()[-2:] == ["42404", "120624"]
    assert "missing splits: 2" in out


def test_convert_says_what_it_wrote(run: Run, tmp_path: Path) -> None:
    scene_module.write_scenes(tmp_path / "scenes", {"train": 2, "val": 1}, size=64)
    argv = ["data", "convert", tmp_path / "scenes", tmp_path / "lines"]
    code, out, err = run(*argv, "--json", tmp_path / "c.json")
    assert code == 0 and f"next: bridger data check {tmp_path / 'lines'}" in out, err
    refs = json.loads((tmp_path / "c.json").read_text())["refs"]
    assert refs == {split: len(open_split(tmp_path / "lines", split)) for split in ("train", "val")}
    code, _, err = run(*argv)
    assert code == 1 and "exists already: choose another folder" in err
    assert run("data", "check", tmp_path / "lines")[0] == 0


def test_data_scenes_writes_a_data_set_once(run: Run, tmp_path: Path) -> None:
    folder, figures = tmp_path / "scenes", tmp_path / "figures.json"
    counts = "--train 2 --val 1 --testA 0 --testB 0 --size 64".split()
    code, out, _ = run("data", "scenes", folder, *counts, "--json", figures)
    assert code == 0 and "train: 2 pictures" in out
    assert json.loads(figures.read_text())["pictures"]["train"] == 2
    assert len(RefCOCO(folder, "train").pictures()) == 2
    assert run("data", "scenes", folder)[0] == 1


@pytest.mark.parametrize(
    ("task", "opened"),
    [
        ("semantic_segmentation", open_segmented),
        ("detection", open_boxed),
        ("classification", open_classified),
    ],
)
def test_data_scenes_writes_what_a_task_learns_from(
    run: Run, tmp_path: Path, task: str, opened: Callable[[Path, str], Any]
) -> None:
    folder, figures = tmp_path / "scenes", tmp_path / "figures.json"
    argv = ["data", "scenes", folder, "--task", task, *"--size 64 --classes 12".split()]
    counts = "--train 12 --val 2 --test 0".split()
    code, out, err = run(*argv, *counts, "--json", figures)
    assert code == 0, err
    assert "train: 12 pictures, 10 classes\n" in out and "val: 2 pictures, 12 classes\n" in out
    found = json.loads(figures.read_text())
    assert (found["task"], found["classes"], found["pictures"]["test"]) == (task, 12, 0)
    assert [len(opened(folder, split)) for split in ("train", "val")] == [12, 2]
    code, _, err = run(*argv)
    assert code == 1 and "already holds a data set" in err


def test_sentences_serve_comprehension_as_they_serve_segmentation(run: Run, tmp_path: Path) -> None:
    argv = "--train 1 --val 1 --testA 0 --testB 0 --size 64 --task referring_comprehension".split()
    assert run("data", "scenes", tmp_path, *argv)[0] == 0
    assert len(RefCOCO(tmp_path, "val")) > 0


def test_interrupted_scenes_can_be_written_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["data", "scenes", tmp_path, *"--train 2 --val 1 --testA 0 --testB 0 --size 64".split()]
    made: list[int] = []
    whole = scene_module.make_scene

    def interrupted(split: str, index: int, *options: Any) -> Any:
        if made:
            raise KeyboardInterrupt
        made.append(index)
        return whole(split, index, *options)

    with monkeypatch.context() as patched:
        patched.setattr(scene_module, "make_scene", interrupted)
        assert run(*argv)[0] == 130
    assert run(*argv)[0] == 0
    assert len(RefCOCO(tmp_path, "train").pictures()) == 2


def test_a_picture_to_try_comes_with_words_that_fit_it(run: Run, tmp_path: Path) -> None:
    argv = ["data", "picture", tmp_path / "p.png", "--seed", 4]
    code, said, _ = run(*argv, "--json", tmp_path / "p.json")
    assert code == 0 and Image.open(tmp_path / "p.png").size == (128, 128)
    scene = scene_module.make_scene("val", 4)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "p.png")), scene.image)
    objects = json.loads((tmp_path / "p.json").read_text())["objects"]
    sentences = [sentence for thing in objects for sentence in thing["sentences"]]
    assert sorted(sentences) == sorted(e.sentence for e in scene.expressions)
    assert all(sentence in said for sentence in sentences)


def test_scenes_of_both_layouts_lie_in_one_folder(run: Run, tmp_path: Path) -> None:
    counts = "--train 2 --val 1 --testA 0 --testB 0 --size 64".split()
    for layout in ("refcoco", "grefcoco"):
        argv = ["data", "scenes", tmp_path, *counts, "--layout", layout]
        assert run(*argv)[0] == 0
        assert run(*argv)[0] == 1  # it is there already
    data_sets = {name: open_split(tmp_path, "train", name) for name in ("refcoco", "grefcoco")}
    assert all(sample.ann_ids for sample in data_sets["refcoco"])
    assert {min(2, len(sample.ann_ids)) for sample in data_sets["grefcoco"]} == {0, 1, 2}
    code, out, _ = run("data", "check", tmp_path)
    assert code == 0 and out.count("train") > 2
    for name in data_sets:
        assert (
            run("data", "convert", tmp_path, tmp_path / name / "lines", "--dataset", name)[0] == 0
        )
        lines = open_split(tmp_path / name / "lines", "train")
        for a, b in zip(data_sets[name], lines, strict=True):
            assert np.array_equal(a.mask, b.mask) and a.ann_ids == b.ann_ids
