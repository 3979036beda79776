"""`bridger evaluate` and `bridger predict` with all kinds of heads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_judging import HEADS, model_with
from PIL import Image

from bridger.cli.adapters import head_in
from bridger.data.scenes import write_scenes
from bridger.labels import BACKGROUND
from bridger.model import BridgedModel
from bridger.tasks import get_task

Run = Callable[..., tuple[int, str, str]]

LAYOUTS = {
    "regions": "segmented",
    "boxes": "boxed",
    "label": "classified",
    "phrases": "refcoco",
    "masks": "refcoco",
}
OTHERS = [head for head in LAYOUTS if head != "masks"]
"""Heads of which `tests/test_evaluate.py` says nothing."""


@pytest.fixture(scope="module")
def model() -> BridgedModel:
    torch.manual_seed(0)
    return model_with(*HEADS)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, model: BridgedModel) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A few scenes in the layout of a head."""
    root = tmp_path_factory.mktemp("data")

    def folder(head: str) -> Path:
        layout = LAYOUTS[head]
        if not (root / layout).exists():
            counts = {"train": 2, "val": 3}
            write_scenes(root / layout, counts, size=64, layout=layout, classes=12)
        return root / layout

    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "wide.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 90, 3))
    Image.fromarray(noise.astype(np.uint8)).save(path)
    return path


# Which head.


def test_a_head_is_known_by_its_name_or_by_what_it_is(adapter: Path, tmp_path: Path) -> None:
    assert head_in(adapter, "boxes") == head_in(adapter, "detection") == ("boxes", "detection")
    with pytest.raises(ValueError, match="several heads .* --head: regions .semantic_segment"):
        head_in(adapter, None)
    with pytest.raises(ValueError, match="does not have a head 'depth': it has regions"):
        head_in(adapter, "depth")
    two = model_with("boxes")
    two.add_head("more", type(two.heads["boxes"]), **HEADS["boxes"][1])
    two.save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match=r"several heads .*: boxes \(detection\), more"):
        head_in(tmp_path / "two", "detection")
    assert head_in(tmp_path / "two", "more") == ("more", "detection")


# Evaluating.


@pytest.mark.parametrize("head", OTHERS)
def test_a_split_is_judged_by_the_figures_of_the_heads_task(
    head: str, run: Run, adapter: Path, model: BridgedModel, data: Any, tmp_path: Path
) -> None:
    files = {name: tmp_path / f"out/{name}" for name in ("json", "rows")}
    options = [word for name, path in files.items() for word in (f"--{name}", path)]
    command = ["evaluate", adapter, "--data", data(head), "--head", head, "--batch-size", "2"]
    code, said, err = run(*command, *options)
    assert code == 0, err
    task = get_task(HEADS[head][0])
    split = task.open(data(head), "val")
    expected: Any = task.evaluate(model, split, head)
    whole = json.loads(files["json"].read_text())
    (result,) = whole["results"]
    assert (whole["head"], whole["task"], result["split"]) == (head, task.name, "val")
    assert result["metrics"] == pytest.approx(expected.metrics(), abs=1e-3)
    rows = [json.loads(line) for line in files["rows"].read_text().splitlines()]
    assert len(rows) == len(expected)
    assert [row["image"] for row in rows] == [case.image for case in expected.cases]
    assert "figures in percent" in said and all(name in said for name in expected.metrics())
    assert f"{len(expected)} {'sentences' if head == 'phrases' else 'pictures'} in" in said
    if head == "phrases":
        assert result["expressions"] == len(split.expressions()) and "Acc@0.5 so far" in err
    else:
        assert result["pictures"] == len(split) == 3
        assert set(result["per_class"]) == set(expected.per_class())
        assert "trained on" in said and "classes" in said


def test_splits_to_train_on_are_judged_only_where_they_are_named(
    run: Run, adapter: Path, data: Any, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(data("label"), root)
    shutil.copytree(root / "train", root / "trainval")
    command = [
        "evaluate",
        adapter,
        "--data",
        root,
        "--head",
        "label",
        "--json",
        tmp_path / "a.json",
    ]

    def judged(*options: str) -> list[str]:
        code, _, err = run(*command, *options)
        assert code == 0, err
        results = json.loads((tmp_path / "a.json").read_text())["results"]
        return [result["split"] for result in results]

    assert judged() == ["val"]
    assert judged("--split", "trainval", "val") == ["trainval", "val"]
    shutil.rmtree(root / "val")
    code, _, err = run(*command)
    assert code == 1 and "has splits to train on alone (train, trainval): name --split" in err


def test_first_sentences_alone_can_be_judged_by_their_boxes(
    run: Run, adapter: Path, data: Any, tmp_path: Path
) -> None:
    options = ["--head", "phrases", "--sentences", "first", "--json", tmp_path / "a.json"]
    code, said, _ = run("evaluate", adapter, "--data", data("phrases"), *options)
    (result,) = json.loads((tmp_path / "a.json").read_text())["results"]
    split = get_task("referring_comprehension").open(data("phrases"), "val")
    assert code == 0 and "first sentences" in said
    assert (result["sentences"], result["expressions"]) == ("first", len(split))


@pytest.mark.parametrize("head", OTHERS)
def test_a_page_shows_the_tables_and_the_cases(
    head: str, run: Run, adapter: Path, data: Any, tmp_path: Path
) -> None:
    command = ["evaluate", adapter, "--data", data(head), "--head", head]
    code, _, err = run(*command, "--report", tmp_path / "page")
    assert code == 0, err
    text = (tmp_path / "page/report.html").read_text()
    pictures = sorted(path.name for path in (tmp_path / "page/report_pictures").iterdir())
    assert pictures and all(f"report_pictures/{name}" in text for name in pictures)
    assert "figures in percent" in text and "the worst cases" in text
    # Of each case the picture, the truth, and what was found.
    assert len(pictures) % 3 == 0 and text.count('class="case"') == len(pictures) / 3
    with Image.open(tmp_path / "page/report_pictures" / pictures[0]) as drawn:
        assert max(drawn.size) > 200


def test_what_means_nothing_for_a_head_is_refused_before_anything_is_loaded(
    run: Run, adapter: Path, data: Any, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for verb in ("evaluate", "predict"):
        monkeypatch.setattr(f"bridger.cli.{verb}.load_model", lambda *_: pytest.fail("too late"))
    evaluations: list[tuple[str, list[object], str]] = [
        ("boxes", ["--threshold", "0.5"], "--threshold means nothing for detection"),
        ("label", ["--sentences", "first"], "--sentences means nothing for classification"),
        ("phrases", ["--threshold", "0.5"], "--threshold means nothing for referring_compre"),
        ("regions", ["--dataset", "ade"], "--dataset means nothing for semantic_segmentation"),
        ("regions", ["--split", "test"], "test"),
    ]
    for head, options, words in evaluations:
        code, _, err = run("evaluate", adapter, "--data", data(head), "--head", head, *options)
        assert code == 1 and words in err, err
    code, _, err = run("evaluate", adapter, "--data", data("label"), "--head", "boxes")
    assert (
        code == 1 and "holds no data for detection, but for another task: classification" in err
    ), err
    names = picture.with_name("classes.txt")
    names.write_text("owl\ncar\n")
    predictions: list[tuple[str, list[object], str]] = [
        ("boxes", ["owl", "--out", "a.png"], "--out means nothing for detection"),
        ("boxes", ["owl", "--window", "64"], "--window means nothing for detection"),
        ("phrases", ["the owl", "--threshold", "0.5"], "--threshold means nothing for referring_"),
        ("phrases", ["--classes", names], "--classes means nothing for referring_compre"),
        ("phrases", [], "say what to look for"),
        ("label", ["owl", "--classes", names], "either in words or with --classes"),
        ("label", ["--classes", names.with_name("none.txt")], "none.txt"),
    ]
    for head, options, words in predictions:
        code, _, err = run("predict", picture, *options, "--adapter", adapter, "--head", head)
        assert code == 1 and words in err, err


# Predicting.


def predict(
    run: Run, picture: Path, adapter: Path, head: str, folder: Path, *options: object
) -> tuple[dict[str, Any], str]:
    """What the command says and writes as JSON, with an overlay."""
    files = ["--overlay", folder / "seen.png", "--json", folder / "found.json"]
    command = ["predict", picture, *options, "--adapter", adapter, "--head", head, *files]
    code, said, err = run(*command)
    assert code == 0, err
    with Image.open(folder / "seen.png") as seen:
        assert max(seen.size) >= 90
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    assert all(part["words"] in said for part in found["found"])
    return found, said


def test_masks_of_sentences(
    run: Run, picture: Path, adapter: Path, model: BridgedModel, tmp_path: Path
) -> None:
    words = ["the owl", "the red car"]
    options = ["--out", tmp_path / "m.png", "--threshold", "0"]
    found, _ = predict(run, picture, adapter, "masks", tmp_path, *words, *options)
    expected: Any = model.predict(picture, words, 0.0, "masks")
    assert found["found"] == expected.found()
    assert [part["words"] for part in found["found"]] == words
    for part, mask in zip(found["found"], expected.masks, strict=True):
        rows, columns = np.nonzero(mask)
        assert part["share"] == pytest.approx(len(rows) / (40 * 90))
        corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert tuple(part["box"]) == corners
    masks = [np.asarray(Image.open(tmp_path / f"m-{i}.png")) for i in (1, 2)]
    assert (np.stack(masks) == 255 * expected.masks).all()


def test_a_class_for_every_pixel(
    run: Run, picture: Path, adapter: Path, model: BridgedModel, tmp_path: Path
) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("owl, night bird\ndrum\ncar\n")
    options = ["--classes", names, "--out", tmp_path / "labels.png", "--window", "40"]
    found, said = predict(run, picture, adapter, "regions", tmp_path, *options)
    classes = [("owl", "night bird"), "drum", "car"]
    expected: Any = model.predict(picture, classes, head="regions", window=40)
    labels = np.asarray(Image.open(tmp_path / "labels.png"))
    assert labels.dtype == np.uint8 and labels.shape == (40, 90)
    shown = np.where(expected.labels == BACKGROUND, found["background"], expected.labels)
    assert (labels == shown).all() and found["background"] == 255
    assert found["classes"] == ["owl", "drum", "car"] and found["found"] == expected.found()
    assert "% of the picture" in said


def test_many_classes_need_16_bits(run: Run, picture: Path, adapter: Path, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("".join(f"thing {'abcdefghij'[i // 30]} {i % 30}\n" for i in range(256)))
    out = tmp_path / "labels.png"
    options = ["--classes", names, "--out", out]
    found, _ = predict(run, picture, adapter, "regions", tmp_path, *options)
    assert found["background"] == 65535 and len(found["classes"]) == 256
    assert np.asarray(Image.open(out)).max() < 256  # this head knows no background


@pytest.mark.parametrize(
    ("head", "words"), [("boxes", ["drum", "owl"]), ("phrases", ["the owl"]), ("label", ["drum"])]
)
def test_boxes_and_classes_need_no_file(
    head: str,
    words: list[str],
    run: Run,
    picture: Path,
    adapter: Path,
    model: BridgedModel,
    tmp_path: Path,
) -> None:
    options = ["--threshold", "0"] if head == "boxes" else []
    found, _ = predict(run, picture, adapter, head, tmp_path, *words, *options)
    threshold = 0.0 if head == "boxes" else None
    expected: Any = model.predict(picture, words, threshold, head)
    assert found["found"] == expected.found() and found["found"]
    assert found["files"] == [str(tmp_path / "seen.png")]


def test_without_words_the_heads_own_classes_are_meant(
    run: Run, picture: Path, adapter: Path, tmp_path: Path
) -> None:
    found, _ = predict(run, picture, adapter, "label", tmp_path)
    assert {part["words"] for part in found["found"]} <= {"owl", "car"} and found["found"]
    found, said = predict(run, picture, adapter, "boxes", tmp_path, "--threshold", "1")
    assert found["found"] == [] and "nothing found" in said


# Several processes.


@pytest.mark.slow
def test_two_processes_under_a_launcher_say_the_same_once(
    run: Run, adapter: Path, data: Any, tmp_path: Path
) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--head", "boxes", "--batch-size", "1"]
    results = []
    for name in ("alone", "together"):
        files = ["--json", tmp_path / f"{name}.json", "--rows", tmp_path / f"{name}.jsonl"]
        command = ["evaluate", adapter, "--data", data("boxes"), *options, *files]
        if name == "alone":
            assert run(*command)[0] == 0
        else:
            argv = [sys.executable, *launcher, "-m", "bridger", *map(str, command)]
            done = subprocess.run(
                argv, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("figures in percent") == 1
        rows = (tmp_path / f"{name}.jsonl").read_text()
        results.append((json.loads((tmp_path / f"{name}.json").read_text()), rows))
    assert results[0] == results[1]
