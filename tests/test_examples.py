"""The examples run, and stay short."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_examples import EXAMPLES, run
from PIL import Image

from bridger.data.scenes import make_scene


@pytest.mark.slow
def test_the_training_loop_saves_an_adapter_that_segments_a_picture(tmp_path: Path) -> None:
    printed = run("quickstart.py", "--steps", "2", "--scenes", "4", folder=tmp_path)
    assert "saved my-adapter" in printed and "step 2: loss" in printed
    with Image.open(tmp_path / "quickstart.png") as seen:
        assert seen.width == 4 * 512
    Image.fromarray(np.full((60, 90, 3), 200, np.uint8)).save(tmp_path / "picture.png")
    words = ["the owl on the left", "drum"]
    printed = run("own_image.py", "picture.png", *words, "--adapter", "my-adapter", folder=tmp_path)
    assert all(f"{said}: score" in printed for said in words)
    with Image.open(tmp_path / "seen.png") as seen:
        assert abs(seen.size[1] - seen.size[0] * 60 / 90) < 1


@pytest.mark.parametrize("name", ["quickstart.py", "own_image.py"])
def test_the_first_examples_are_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 70


@pytest.mark.slow
def test_a_pair_that_nothing_ever_aligned_trains(tmp_path: Path) -> None:
    options = ("--steps", "1", "--size", "64", "--scenes", "1")
    printed = run("mdetr_pair.py", *options, folder=tmp_path)
    assert "layer4 (4 of 4)" in printed and "encoder.layer.11 (12 of 12)" in printed
    assert "step 1: loss" in printed and printed.count("IoU with the object") == 3
    with Image.open(tmp_path / "mdetr.png") as found:
        assert found.size == (512, 512)


@pytest.mark.slow
def test_several_heads_train_together_and_each_draws_what_it_found(tmp_path: Path) -> None:
    printed = run("several_heads.py", "--steps", "1", folder=tmp_path)
    assert "masks on expressions" in printed and "boxes on classes" in printed
    losses = dict(re.findall(r"(\w+) (\d+\.\d+)", printed.split("step 1: loss ")[1]))
    assert set(losses) == {"masks", "semantic", "boxes", "classes"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my-heads", "several_heads.png"]
    with Image.open(tmp_path / "several_heads.png") as seen:
        assert seen.width == 4 * 512


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "figure"),
    [
        ("semantic_segmentation", ("--scenes", "8"), "mIoU unseen"),
        ("detection", ("--scenes", "8"), "mAP50"),
        ("classification", ("--shots", "1"), "zero-shot"),
    ],
)
def test_a_task_is_trained_judged_and_drawn(
    name: str, options: tuple[str, ...], figure: str, tmp_path: Path
) -> None:
    printed = run(
        f"{name}.py", "--out", "run", "--steps", "2", "--test", "4", *options, folder=tmp_path
    )
    assert re.search(rf"^{figure}: \d+\.\d %$", printed, re.MULTILINE)
    (picture,) = (tmp_path / "run").glob("*.png")
    with Image.open(picture) as seen:
        assert min(seen.size) >= 1024


@pytest.mark.slow
def test_the_study_of_heads_runs_and_goes_on(tmp_path: Path) -> None:
    options = ("--out", "study", "--tasks", "referring_comprehension", "--seeds", "0", "--short")
    printed = run("heads_study.py", *options, folder=tmp_path)
    assert "| Bridgers | " in printed and "| head alone | " in printed
    assert "Bridgers, seed 0" in printed
    again = run("heads_study.py", *options, folder=tmp_path)
    assert "seed 0" not in again and again.splitlines()[-2:] == printed.splitlines()[-2:]


def test_the_gallery_refuses_kinds_that_no_scene_has(tmp_path: Path) -> None:
    argv = [sys.executable, str(EXAMPLES / "gallery.py"), "--kinds", "nonsense"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "invalid choice: 'nonsense'" in done.stderr
    kinds = runpy.run_path(str(EXAMPLES / "gallery.py"))["KINDS"]
    scenes = (make_scene("train", number) for number in range(60))
    assert {e.kind for scene in scenes for e in scene.expressions} == set(kinds)


@pytest.mark.slow
def test_the_gallery_asks_for_kinds_of_words_and_own_pictures(tmp_path: Path) -> None:
    run("gallery.py", "--kinds", "ordinal", "--columns", "1", folder=tmp_path)
    with Image.open(tmp_path / "seen.png") as sheet:
        assert sheet.width == 256 and sheet.height > 3 * 256
    Image.new("RGB", (90, 60), "green").save(tmp_path / "lawn.png")
    run("gallery.py", "--ask", "lawn.png", "the ball", "--out", "asked.png", folder=tmp_path)
    with Image.open(tmp_path / "asked.png") as sheet:
        assert sheet.getpixel((40, 20)) != (255, 255, 255)


@pytest.mark.slow
def test_the_benchmarks_of_loading_run(tmp_path: Path) -> None:
    options = ("--pictures", "4", "--sides", "64", "--workers", "0")
    printed = run("benchmarks/data_loading.py", *options, folder=tmp_path)
    assert "| warp |" in printed and "| and the letterbox |" in printed
    options = ("--steps", "2", "--batch", "2", "--workers", "0")
    printed = run("benchmarks/waiting_for_data.py", *options, folder=tmp_path)
    assert "| cold | 0 |" in printed and "| warm | 0 |" in printed
