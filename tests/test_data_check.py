"""Looking data sets through: every trap is found, counted and named, and nothing else is."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_own_data import SIZE, compressed, read_lines, rectangle, write_lines, write_own_data
from PIL import Image

from bridger.data import check_pictures, open_split
from bridger.data.check import check_data
from bridger.data.check_report import DataReport, Finding
from bridger.data.scenes import write_scenes
from bridger.data.sheet import contact_sheet


@pytest.fixture
def own(tmp_path: Path) -> Path:
    write_own_data(tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scenes(folder, {"train": 3, "val": 2, "testA": 1, "testB": 1}, size=64)
    return folder


@pytest.fixture
def copied(scenes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scenes, tmp_path / "copied"))


def change_refs(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    path = folder / "refcoco" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    change(refs)
    path.write_bytes(pickle.dumps(refs, protocol=2))


def change_line(folder: Path, number: int, **values: Any) -> None:
    """Give a line other values; None takes a key out."""
    rows = read_lines(folder / "train.jsonl")
    rows[number - 1] |= values
    write_lines(folder / "train.jsonl", rows)


def found(findings: tuple[Finding, ...]) -> dict[str, int]:
    return {finding.what: finding.count for finding in findings}


def the_problem(report: DataReport) -> Finding:
    """Return the only problem, which is there once."""
    assert len(report.problems) == 1 and report.problems[0].count == 1, report.problems
    return report.problems[0]


def test_a_sound_folder_has_no_problem(own: Path) -> None:
    report = check_data(own)
    assert report.problems == () and report.root == own
    train, val = report.splits
    assert (train.split, train.refs, train.sentences, train.pictures) == ("train", 10, 15, 10)
    assert (val.split, val.refs, val.sentences, val.pictures) == ("val", 1, 1, 1)
    # A picture of one pixel is worth a note.
    assert found(report.notes) == {check_pictures.TINY: 1}
    assert "train ref 9" in report.notes[0].examples[0]
    assert json.loads(json.dumps(report.to_dict()))["splits"][0]["pictures"] == 10


def test_scenes_have_no_problem_but_other_counts(scenes: Path) -> None:
    report = check_data(scenes)
    assert report.problems == ()
    assert found(report.notes) == {"splits with other counts than published": 4}
    data = open_split(scenes, "train")
    example = report.notes[0].examples[0]
    assert f"train: {len(data)} refs and {len(data.expressions())} sentences" in example
    assert "published are 42404 and 120624" in example


def missing(own: Path) -> None:
    (own / "Bilder" / "b.png").unlink()


def truncated(own: Path) -> None:
    path = own / "Bilder" / "turned.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def no_picture(own: Path) -> None:
    (own / "Bilder" / "c.png").write_text("<html>404</html>")


def other_size(own: Path) -> None:
    change_line(own, 3, size=[24, 37])


def empty_mask(own: Path) -> None:
    Image.new("L", SIZE[::-1]).save(own / "masks" / "größe.png")


def no_such_value(own: Path) -> None:
    change_line(own, 2, value=5)


def outside(own: Path) -> None:
    change_line(own, 4, box=[100, 100, 120, 130])


def missing_mask(own: Path) -> None:
    (own / "masks" / "turned.png").unlink()


def lying_mask(own: Path) -> None:
    Image.new("L", SIZE[::-1], 255).save(own / "masks" / "turned.png")


def other_run_lengths(own: Path) -> None:
    change_line(own, 5, segmentation=compressed(rectangle(1, 2, 3, 4, (20, 20))))


def too_few_runs(own: Path) -> None:
    change_line(own, 6, segmentation={"size": list(SIZE), "counts": [5, 7]})


def shared_id(own: Path) -> None:
    change_line(own, 2, ref_id=300)


def leak(own: Path) -> None:
    rows = read_lines(own / "val.jsonl")
    write_lines(own / "val.jsonl", [*rows, {**rows[0], "image": "Bilder/d.png"}])


def wrong_line(own: Path) -> None:
    change_line(own, 8, none="yes")


@pytest.mark.parametrize(
    ("damage", "what", "words"),
    [
        (missing, check_pictures.MISSING, ["train ref 2", "Bilder/b.png"]),
        (truncated, check_pictures.BROKEN, ["train ref 10", "turned.jpg", "truncated"]),
        (no_picture, check_pictures.BROKEN, ["train ref 3", "c.png"]),
        (other_size, check_pictures.OTHER_SIZE, ["c.png is 24 x 36, annotated is 24 x 37"]),
        (empty_mask, check_pictures.EMPTY_MASKS, ["train ref 1", "'the dog' of ", "größe.png"]),
        (no_such_value, check_pictures.EMPTY_MASKS, ["train ref 2"]),
        (outside, check_pictures.EMPTY_MASKS, ["train ref 300"]),
        (missing_mask, check_pictures.UNREADABLE_MASKS, ["train ref 10", "turned.png"]),
        (lying_mask, check_pictures.UNREADABLE_MASKS, ["(24, 36) but its picture is (36, 24)"]),
        (other_run_lengths, check_pictures.UNREADABLE_MASKS, ["[20, 20]", "[24, 36]"]),
        (too_few_runs, check_pictures.UNREADABLE_MASKS, ["cover 12 pixels of 864"]),
        (shared_id, check_pictures.DUPLICATED_IDS, ["train ref 300: 2 times"]),
        (leak, "pictures of train in other splits", ["val: ", "Bilder/d.png"]),
        (wrong_line, "wrong lines", ["train.jsonl, line 8: ", '"none": expected true']),
    ],
)
def test_each_trap_is_the_one_problem_that_is_found(
    own: Path, damage: Callable[[Path], None], what: str, words: list[str]
) -> None:
    damage(own)
    problem = the_problem(check_data(own))
    assert problem.what == what
    assert len(problem.examples) == 1 and all(word in problem.examples[0] for word in words)


def test_heads_alone_do_not_show_that_a_picture_is_cut_off(own: Path) -> None:
    truncated(own)
    assert check_data(own, decode=False).problems == ()
    no_picture(own)
    assert the_problem(check_data(own, decode=False)).what == check_pictures.BROKEN


def test_traps_of_all_kinds_at_once_are_all_found(own: Path) -> None:
    damages = [missing, truncated, other_size, empty_mask, too_few_runs, leak, wrong_line]
    for damage in damages:
        damage(own)
    (own / "test.jsonl").write_text("[]")
    problems = found(check_data(own).problems)
    assert problems.pop("wrong lines") == 2  # one of them the whole file of a split
    assert len(problems) == len(damages) - 1 and set(problems.values()) == {1}


def test_there_are_few_examples_of_many_problems(own: Path) -> None:
    rows = read_lines(own / "train.jsonl")
    write_lines(own / "train.jsonl", [{**row, "image": "Bilder/gone.png"} for row in rows])
    report = check_data(own)
    assert found(report.problems) == {check_pictures.MISSING: 1}  # one picture, of ten refs
    gone = [{**row, "image": f"Bilder/gone{i}.png"} for i, row in enumerate(rows)]
    write_lines(own / "train.jsonl", gone)
    finding = check_data(own).problems[0]
    assert finding.count == 10 and len(finding.examples) == 3


def test_long_words_and_doubled_ones_are_noted(copied: Path) -> None:
    def change(refs: list[dict[str, Any]]) -> None:
        refs[0]["sentences"][0]["sent"] = "dog " * 15  # 17 tokens with both ends
        refs[1]["sentences"][0]["sent"] = "dog " * 16
        refs[2]["sentences"][0]["sent"] = "dog " * 60
        refs[3]["sentences"] = [refs[3]["sentences"][0]] * 2

    change_refs(copied, change)
    report = check_data(copied)
    notes = found(report.notes)
    assert report.problems == () and notes[check_pictures.DUPLICATED_SENTENCES] == 1
    assert notes[check_pictures.LONG.format(limit=17)] == 2
    assert any("has 62" in e for f in report.notes for e in f.examples)
    notes = found(check_data(copied, max_length=30).notes)
    assert notes[check_pictures.LONG.format(limit=30)] == 1


def test_traps_in_the_original_files_are_found(copied: Path) -> None:
    def change(refs: list[dict[str, Any]]) -> None:
        refs[0]["sentences"][0]["sent"] = ""
        refs[1]["sentences"][0]["sent"] = "  "
        refs[1]["ref_id"] = refs[0]["ref_id"]
        assert refs[0]["split"] == refs[1]["split"] == "train"

    change_refs(copied, change)
    problems = found(check_data(copied).problems)
    assert problems == {check_pictures.EMPTY_SENTENCES: 2, check_pictures.DUPLICATED_IDS: 1}


def test_a_data_set_that_cannot_be_opened_hides_no_other(copied: Path, own: Path) -> None:
    shutil.copytree(own, copied, dirs_exist_ok=True)
    (copied / "refcoco" / "instances.json").write_text('{"images": [')
    report = check_data(copied)
    assert the_problem(report).what == "data sets that cannot be opened"
    assert {split.dataset for split in report.splits} == {"folder"}
    with pytest.raises(ValueError, match="no data set 'refcoc'.*mean 'refcoco'"):
        check_data(copied, ["refcoc"])
    with pytest.raises(FileNotFoundError, match="holds no data set"):
        check_data(copied / "images")


def test_google_shares_pictures_by_design_and_data_sets_share_them_too(tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    write_scenes(folder, {"train": 2, "val": 1}, size=64)
    (folder / "refcocog").mkdir()
    for source, target in (("refs(unc).p", "refs(google).p"), ("instances.json", "instances.json")):
        shutil.copy(folder / "refcoco" / source, folder / "refcocog" / target)
    refs = pickle.loads((folder / "refcocog" / "refs(google).p").read_bytes())
    for ref in refs:  # the first picture's refs go to both splits, the others to val
        ref["split"] = "train" if ref["ref_id"] == 0 else "val"
    (folder / "refcocog" / "refs(google).p").write_bytes(pickle.dumps(refs, protocol=2))
    report = check_data(folder)
    assert report.problems == ()
    notes = found(report.notes)
    assert notes["pictures of train in other splits, which is how Google split G-Ref"] == 1
    shared = [f for f in report.notes if f.what.startswith("trains with pictures of another")]
    assert shared[0].count == 1 and "refcocog/google val" in shared[0].examples[0]


def test_a_split_for_choosing_is_missed(own: Path) -> None:
    (own / "val.jsonl").unlink()
    report = check_data(own)
    assert report.problems == () and found(report.notes)["missing splits"] == 1


def test_lossy_masks_and_masks_of_everything_are_noted(own: Path) -> None:
    Image.new("L", SIZE[::-1], 255).save(own / "masks" / "a.jpg")
    change_line(own, 1, mask="masks/a.jpg")
    report = check_data(own)
    notes = found(report.notes)
    assert report.problems == () and notes[check_pictures.LOSSY] == notes[check_pictures.WHOLE] == 1


def test_pictures_are_read_once(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leak(own)
    change_line(own, 3, image="Bilder/d.png")
    read: list[Path] = []
    true = check_pictures.read_picture
    monkeypatch.setattr(check_pictures, "read_picture", lambda p: (read.append(p), true(p))[1])
    done: list[tuple[int, int]] = []
    check_data(own, report=lambda *so_far: done.append(so_far))
    assert len(read) == len(set(read)) == 10
    assert done == [(i, 11) for i in range(1, 12)]  # d.png counts in each split


def test_a_sheet_shows_refs_of_every_split(own: Path) -> None:
    splits = [open_split(own, "train"), open_split(own, "val")]
    sheet = contact_sheet(splits, count=6, seed=1)
    assert np.array_equal(sheet, contact_sheet(splits, count=6, seed=1))
    assert not np.array_equal(sheet, contact_sheet(splits, count=6, seed=2))
    columns = [contact_sheet(splits, count=n).width for n in (1, 2, 6, 12)]
    assert columns[0] < columns[1] < columns[2] == columns[3]
    # val has one ref only: train gets what is left of its share.
    assert np.array_equal(contact_sheet(splits), contact_sheet(splits, count=11))
    for broken in (own / "Bilder").iterdir():
        broken.unlink()
    assert contact_sheet(splits, count=6, seed=1).size == sheet.size


def test_boxes_that_stick_out_are_noted(own: Path) -> None:
    lines = read_lines(own / "train.jsonl")
    lines.append({"image": lines[0]["image"], "sentence": "far out", "box": [10, 5, 90, 20]})
    write_lines(own / "train.jsonl", lines)
    report = check_data(own)
    assert report.problems == () and found(report.notes)[check_pictures.OUTSIDE] == 1
