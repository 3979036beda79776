"""`bridger predict --batch`: a line of JSON for every picture of a folder, and its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_terminal import in_pipe, on_terminal
from PIL import Image

from bridger import BridgedModel
from bridger.cli import predict_folder
from bridger.data import RefCOCO

Run = Callable[..., tuple[int, str, str]]
WORDS = ("the owl", "the red car")
NAMES = ["a.png", "b.jpg", "inner/a.webp", "inner/c.png"]


@pytest.fixture(scope="module")
def pictures(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of several sizes, and what is none."""
    folder = tmp_path_factory.mktemp("pictures")
    split = RefCOCO(scenes, "train")
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(exist_ok=True)
        with Image.open(split[number].image_path) as picture:
            picture.resize((60 + 10 * number, 48)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"no picture")
    return folder


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_picture_is_answered_as_if_it_was_alone(
    run: Run, adapter: Path, pictures: Path, tmp_path: Path
) -> None:
    out, seen = tmp_path / "masks", tmp_path / "seen"
    options = ["--adapter", adapter, "--threshold", "0", "--out", out, "--overlay", seen]
    code, said, err = run("predict", "--batch", pictures, *WORDS, *options)
    assert code == 0 and err.splitlines()[-1] == "pictures: 4/4", err
    model = BridgedModel.from_pretrained(adapter)
    found = lines(said)
    assert [line["image"] for line in found] == [str(pictures / name) for name in NAMES]
    for line, name in zip(found, NAMES, strict=True):
        alone = model.predict(pictures / name, WORDS, threshold=0)
        assert [part["words"] for part in line["found"]] == list(WORDS)
        scores = [part["score"] for part in line["found"]]
        assert scores == pytest.approx([part["score"] for part in alone.found()], abs=1e-5)
        stem = name.rpartition(".")[0]
        files = [out / f"{stem}-1.png", out / f"{stem}-2.png", seen / f"{stem}.png"]
        assert line["files"] == list(map(str, files))
        for path, mask in zip(files[:2], alone.masks, strict=True):
            assert np.array_equal(np.asarray(Image.open(path)) > 0, mask)
        assert Image.open(files[2]).width >= 512
    assert len([*tmp_path.rglob("*.png")]) == 12


def test_what_was_written_below_the_folder_is_not_asked_about(
    run: Run, adapter: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    argv = ["predict", "--batch", folder, "the owl", "--adapter", adapter, "--out", folder / "m"]
    for _ in range(2):
        code, said, _ = run(*argv, "--json", tmp_path / "found.jsonl")
        assert code == 0 and said == f"wrote {tmp_path / 'found.jsonl'}, {folder / 'm'}\n"
        assert len(lines((tmp_path / "found.jsonl").read_text())) == 4
    masks = {path.relative_to(folder / "m").as_posix() for path in (folder / "m").rglob("*.png")}
    assert masks == {"a.png", "b.png", "inner/a.png", "inner/c.png"}


def test_broken_pictures_are_named_and_skipped(
    run: Run, adapter: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    (folder / "aa.png").write_bytes((folder / "a.png").read_bytes()[:300])
    (folder / "z.jpg").write_bytes(b"")
    code, said, err = run("predict", "--batch", folder, "the owl", "--adapter", adapter)
    told = [line for line in err.splitlines() if line.startswith("bridger")]
    assert code == 1 and len(lines(said)) == 4
    assert [line.partition(": skipped: ")[0] for line in told[:2]] == ["bridger: warning"] * 2
    assert "aa.png" in told[0] and "z.jpg is empty" in told[1].replace(str(folder) + "/", "")
    assert told[2:] == [
        "bridger predict: error: 2 of 6 pictures could not be read, aa.png among them"
    ]


def test_other_heads_say_what_they_found(run: Run, pictures: Path, tmp_path: Path) -> None:
    argv = ["predict", "--batch", pictures, "--adapter", "tiny-heads", "--head"]
    code, said, err = run(*argv, "classification")
    assert code == 0, err
    for line in lines(said):
        ranked = [one["score"] for one in line["ranked"]]
        assert line["files"] == [] and line["found"] == line["ranked"][:1]
        assert len(ranked) == 5 and ranked == sorted(ranked, reverse=True)
    code, said, err = run(*argv, "semantic_segmentation", "owl", "car", "--out", tmp_path / "maps")
    assert code == 0, err
    for line in lines(said):
        assert line["classes"] == ["owl", "car"] and line["background"] == 255
        with Image.open(line["files"][0]) as numbers, Image.open(line["image"]) as picture:
            assert numbers.size == picture.size and set(np.unique(numbers)) <= {0, 1, 255}
    code, _, err = run(*argv, "detection", "owl", "--out", tmp_path / "boxes")
    assert code == 1 and "--out means nothing for detection" in err


def test_few_large_pictures_are_read_at_once(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [Path(name) for name in NAMES]
    sizes = [48 * (60 + 10 * number) for number in range(4)]

    def batches(most: int, maps: int) -> list[list[Path]]:
        monkeypatch.setattr(predict_folder, "MOST_CELLS", most)
        found = predict_folder._batches(pictures, names, [], maps)
        return [[item.name for item in batch] for batch in found]

    assert batches(sum(sizes), 1) == [names]
    assert batches(2 * sum(sizes[:2]), 2) == [names[:2], *([name] for name in names[2:])]
    assert batches(1, 1) == [[name] for name in names]


def test_what_is_wrong_is_said_before_the_model_runs(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_folder, "load_model", lambda *_: pytest.fail("too late"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a.png", "a.jpg"):
        shutil.copy(pictures / "a.png", twice / name)
    file = pictures / "a.png"
    cases: list[tuple[list[object], str]] = [
        (["--batch", "nothing", "owl"], "there is no folder nothing"),
        (["--batch", file, "owl"], "there is no folder"),
        (["--batch", "empty", "owl"], "empty holds no pictures"),
        ([pictures, "owl"], "is a folder: say --batch"),
        (["--batch", pictures], f'bridger predict --batch {pictures} "the dog on the left"'),
        (["--batch", pictures, "owl", "--out", pictures], "must be different folders"),
        (["--batch", pictures, "owl", "--overlay", pictures.parent], "must be different folders"),
        (["--batch", pictures, "owl", "--out", "m", "--overlay", "m"], "must be different folders"),
        (["--batch", pictures, "owl", "--out", file], "a.png is a file, not a folder"),
        (["--batch", twice, "owl", "--out", "m"], "a.jpg and a.png would have the same name"),
    ]
    for argv, words in cases:
        code, said, err = run("predict", *argv)
        assert (code, said) == (1, "") and words in err, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "twice"]


# Processes of their own.


@pytest.mark.slow
def test_lines_come_out_of_a_pipe_alone(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    (folder / "z.jpg").write_bytes(b"no picture")
    for extra in ([], ["--json", "-"]):
        done = in_pipe(["predict", "--batch", "pictures", "the owl", *extra], tmp_path)
        assert done.returncode == 1 and len(lines(done.stdout)) == 4, done.stderr
        assert "z.jpg cannot be read" in done.stderr and "\r" not in done.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_whole_lines_and_files(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(200):
        shutil.copy(pictures / "a.png", folder / f"{number:03d}.png")
    argv = ["predict", "--batch", "pictures", "the owl", "--out", "m", "--json", "found.jsonl"]
    shown = on_terminal(argv, tmp_path, interrupt_at="16/200")
    assert shown.code == 130 and shown.lines[-2] == "bridger: interrupted", shown.text
    found = lines((tmp_path / "found.jsonl").read_text())
    assert 16 <= len(found) < 200
    written = sorted((tmp_path / "m").iterdir())
    assert 0 <= len(written) - len(found) <= 1  # a file comes before its line
    assert all(np.asarray(Image.open(path)).shape == (48, 60) for path in written)

    shown = on_terminal(argv, tmp_path, columns=60)
    assert shown.code == 0, shown.text
    (bar,) = (line for line in shown.lines if line.startswith("pictures: "))
    assert "200/200" in bar and len(bar) < 60
    assert len(lines((tmp_path / "found.jsonl").read_text())) == 200
