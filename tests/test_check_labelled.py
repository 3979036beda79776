"""Looking pictures with labels through: every trap is found, counted and named, nothing else is."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_judging import model_with
from helpers_labelled import write_json, write_map, write_text
from PIL import ExifTags, Image

from bridger.data import (
    boxed,
    check_labelled,
    check_labels,
    check_pictures,
    check_report,
    classified,
    open_boxed,
    open_classified,
    open_segmented,
    segmented_layouts,
)
from bridger.data.check_labelled import LabelledCounts
from bridger.data.check_labels import KINDS, labelled_task
from bridger.data.check_report import DataReport, Finding
from bridger.data.class_collate import ClassItem, DetectionCollator
from bridger.data.class_questions import ClassQuestions
from bridger.data.scenes import write_scenes
from bridger.data.sheet import contact_sheet
from bridger.data.sheet_tiles import draw_tile
from bridger.evaluation import evaluate_detection
from bridger.tasks import get_task

Change = Callable[[Path], object]
Run = Callable[..., tuple[int, str, str]]

SEGMENTED, BOXED, CLASSIFIED = "semantic_segmentation", "detection", "classification"
LAYOUTS = {SEGMENTED: "segmented", BOXED: "boxed", CLASSIFIED: "classified"}


def picture(path: Path, seed: int, orientation: int | None = None) -> None:
    """A picture that no other seed gives, large enough for no note."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=exif)


def numbers(*columns: int) -> Any:
    return np.broadcast_to(np.repeat(columns, 24 // len(columns)), (20, 24)).astype(np.uint8)


def write_segmented(root: Path) -> None:
    write_text(root / "classes.txt", "background", "owl", "bus, coach", "pill")
    for number, (split, name, columns) in enumerate(
        [
            ("train", "a", (0, 1, 2)),
            ("train", "b", (1, 255)),
            ("train", "c", (3,)),
            ("val", "a", (1, 2, 3)),
        ]
    ):
        picture(root / "images" / split / f"{name}.png", number)
        write_map(root / "labels" / split / f"{name}.png", numbers(*columns))


def coco(pictures: int, *boxes: tuple[int, int, list[float]]) -> dict[str, Any]:
    return {
        "images": [
            {"id": n, "file_name": f"{n}.png", "height": 20, "width": 24} for n in range(pictures)
        ],
        "categories": [{"id": 5, "name": "owl"}, {"id": 3, "name": "bus"}],
        "annotations": [
            {"id": id, "image_id": image, "category_id": category, "bbox": box}
            for id, (image, category, box) in enumerate(boxes, 1)
        ],
    }


def write_boxed(root: Path) -> None:
    owl, bus = (0, 5, [1, 2, 10, 12]), (1, 3, [0, 0, 24, 20])
    write_json(root / "annotations" / "train.json", coco(3, owl, bus, (2, 5, [3, 3, 4, 4]), owl))
    write_json(root / "annotations" / "val.json", coco(2, owl, bus))
    for split, count in (("train", 3), ("val", 2)):
        for n in range(count):
            picture(root / "images" / split / f"{n}.png", n + 10 * (split == "val"))


def write_classified(root: Path) -> None:
    for n, name in enumerate(
        ("train/owl/a", "train/owl/b", "train/bus/a", "val/owl/a", "val/bus/z")
    ):
        picture(root / f"{name}.png", n)
    write_text(root / "classes.txt", "owl", "bus")


def write_table(root: Path) -> None:
    write_text(root / "train.csv", "image,labels", "p/a.png,owl;bus", "p/b.png,bus")
    write_text(root / "val.csv", "image,labels", "p/c.png,owl;bus")
    for n, name in enumerate("abc"):
        picture(root / "p" / f"{name}.png", n)


WRITERS = {
    "segmented": (SEGMENTED, write_segmented),
    "boxed": (BOXED, write_boxed),
    "classified": (CLASSIFIED, write_classified),
    "table": (CLASSIFIED, write_table),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sound")
    for name, (_, write) in WRITERS.items():
        write(root / name)
    return {name: root / name for name in WRITERS}


@pytest.fixture
def copied(sound: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(sound[name], tmp_path / name))


def check(root: Path, name: str, **options: Any) -> DataReport:
    return check_labelled.check_labelled(root, WRITERS[name][0], **options)


def found(findings: tuple[Finding, ...]) -> dict[str, int]:
    return {finding.what: finding.count for finding in findings}


def counts(report: DataReport) -> dict[str, LabelledCounts]:
    assert all(isinstance(split, LabelledCounts) for split in report.splits)
    return {split.split: split for split in report.splits}  # type: ignore[misc]


# Sound data.


@pytest.mark.parametrize(
    ("name", "pictures", "labels"),
    [
        ("segmented", (3, 1), ({"owl": 2, "bus": 1, "pill": 1}, {"owl": 1, "bus": 1, "pill": 1})),
        ("boxed", (3, 2), ({"owl": 3, "bus": 1}, {"owl": 1, "bus": 1})),
        ("classified", (3, 2), ({"owl": 2, "bus": 1}, {"owl": 1, "bus": 1})),
        ("table", (2, 1), ({"bus": 2, "owl": 1}, {"bus": 1, "owl": 1})),
    ],
)
def test_sound_data_have_no_problem_and_are_counted(
    sound: dict[str, Path], name: str, pictures: tuple[int, int], labels: tuple[Any, Any]
) -> None:
    done: list[tuple[int, int]] = []
    report = check(sound[name], name, report=lambda *so_far: done.append(so_far))
    assert report.problems == report.notes == () and report.root == sound[name]
    for split, count, expected in zip(("train", "val"), pictures, labels, strict=True):
        seen = counts(report)[split]
        assert (seen.pictures, seen.per_class, seen.classes) == (count, expected, len(expected))
        assert seen.labels == sum(expected.values())
    assert done == [(n, sum(pictures)) for n in range(1, sum(pictures) + 1)]
    assert json.loads(json.dumps(report.to_dict()))["splits"][0]["per_class"] == labels[0]
    assert check(sound[name], name, decode=False).problems == ()


@pytest.mark.parametrize("task", LAYOUTS)
def test_scenes_have_no_problem_but_unseen_classes(tmp_path: Path, task: str) -> None:
    write_scenes(tmp_path, {"train": 12, "val": 6}, size=64, layout=LAYOUTS[task], classes=6)
    report = check_labelled.check_labelled(tmp_path, task)
    assert report.problems == ()
    assert found(report.notes)[check_labelled.UNSEEN] == 1
    train, val = (set(counts(report)[split].per_class) for split in ("train", "val"))
    (note,) = [f for f in report.notes if f.what == check_labelled.UNSEEN]
    assert note.examples == (f"val: {(val - train).pop()}",) and len(val - train) == 1
    assert labelled_task(tmp_path) == task


# Traps.


def remove(name: str) -> Change:
    return lambda root: (root / name).unlink()


def cut(name: str, count: int = 200) -> Change:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-count])


def copy(source: str, target: str) -> Change:
    return lambda root: shutil.copy(root / source, root / target)


def lines(name: str, *text: str) -> Change:
    return lambda root: write_text(root / name, *text)


def label_map(values: Any) -> Change:
    return lambda root: write_map(root / "labels/train/b.png", values)


def turned(root: Path) -> None:
    picture(root / "images/train/1.png", 1, orientation=6)


def in_json(key: str, index: int, **values: Any) -> Change:
    def change(root: Path) -> None:
        path = root / "annotations" / "train.json"
        whole = json.loads(path.read_text())
        whole[key][index] |= values
        write_json(path, whole)

    return change


def in_colours(root: Path) -> None:
    Image.new("RGB", (24, 20)).save(root / "labels/train/b.png")


def lonely(root: Path) -> None:
    write_map(root / "labels/val/lonely.png", numbers(1))


def hollow(root: Path) -> None:
    (root / "val" / "pill").mkdir()
    write_text(root / "classes.txt", "owl", "bus", "pill")


UNPAIRED, OUTSIDE, FLAT = segmented_layouts.UNPAIRED, boxed.OUTSIDE, boxed.FLAT
UNOPENED, LEAKS = check_labelled.UNREADABLE_SPLITS, check_report.LEAKS
TRAPS: list[tuple[str, Change, str, int, list[str]]] = [
    ("segmented", remove("images/train/a.png"), UNPAIRED, 1, ["train: ", "not in"]),
    ("segmented", remove("labels/train/a.png"), UNPAIRED, 1, ["train: ", "no label map"]),
    ("segmented", lonely, UNPAIRED, 1, ["val: ", "lonely.png is the label map of"]),
    ("segmented", cut("images/train/a.png"), check_pictures.BROKEN, 1, ["train: ", "a.png"]),
    ("segmented", cut("labels/val/a.png", 40), check_labels.UNREADABLE_MAPS, 1, ["val: "]),
    ("segmented", in_colours, check_labels.UNREADABLE_MAPS, 1, ["mode RGB"]),
    ("segmented", label_map(numbers(1)[1:]), check_labels.OTHER_MAPS, 1, ["(19, 24)", "(20, 24)"]),
    ("segmented", label_map(numbers(1, 4)), check_labels.UNKNOWN_NUMBERS, 1, ["b.png holds [4]"]),
    ("segmented", lines("classes.txt", "background", "owl", "Owl"), UNOPENED, 2, ["stands twice"]),
    ("segmented", lines("classes.txt", "background", "", "bus"), UNOPENED, 2, ["empty name"]),
    ("segmented", lines("classes_val.txt", "owl", "gull"), UNOPENED, 1, ["val: ", "'gull'"]),
    (
        "segmented",
        copy("images/train/b.png", "images/val/a.png"),
        LEAKS,
        1,
        ["val: ", "val/a.png is the same as", "train/b.png"],
    ),
    ("boxed", remove("images/train/0.png"), check_pictures.MISSING, 1, ["train: ", "0.png"]),
    ("boxed", cut("images/val/1.png"), check_pictures.BROKEN, 1, ["val: ", "1.png"]),
    ("boxed", in_json("annotations", 1, bbox=[3, 3, 0, 2]), FLAT, 1, ["train: annotation 2 of"]),
    ("boxed", in_json("annotations", 1, bbox=[9, 3, 20, 2]), OUTSIDE, 1, ["[9, 3, 20, 2]"]),
    ("boxed", in_json("annotations", 3, category_id=4), boxed.UNKNOWN_IDS, 1, ["category_id 4"]),
    ("boxed", in_json("annotations", 1, bbox=[9, 3, 2]), boxed.ODD, 1, ["train: annotation 2 of"]),
    ("boxed", in_json("annotations", 3, image_id=9), boxed.UNKNOWN_IDS, 1, ["image_id 9"]),
    ("boxed", in_json("images", 1, width=25), check_pictures.OTHER_SIZE, 1, ["20 x 24", "20 x 25"]),
    ("boxed", turned, check_pictures.OTHER_SIZE, 1, ["1.png is 24 x 20", "EXIF turns"]),
    ("boxed", in_json("categories", 1, name="OWL"), UNOPENED, 1, ["train: ", "stands twice"]),
    ("boxed", in_json("categories", 1, name=" "), UNOPENED, 1, ["train: ", "empty name"]),
    ("boxed", cut("annotations/val.json", 30), UNOPENED, 1, ["val: ", "not a whole JSON file"]),
    ("boxed", copy("images/train/2.png", "images/val/0.png"), LEAKS, 1, ["train/2.png"]),
    ("classified", cut("train/owl/b.png"), check_pictures.BROKEN, 1, ["owl/b.png"]),
    (
        "classified",
        lines("classes.txt", "owl"),
        classified.UNKNOWN_CLASSES,
        2,
        ["train: ", "'bus'"],
    ),
    ("classified", lines("classes.txt", "owl", "bus", "bus"), UNOPENED, 2, ["stands twice"]),
    ("classified", hollow, classified.EMPTY_FOLDERS, 1, ["val: ", "pill: fill the folder"]),
    ("classified", copy("train/bus/a.png", "val/owl/b.png"), LEAKS, 1, ["train/bus/a.png"]),
    ("table", remove("p/b.png"), check_pictures.MISSING, 1, ["train: ", "b.png"]),
    (
        "table",
        lines("train.csv", "image,labels", "p/a.png,owl;bus", "p/a.png,bus", "p/b.png,owl", ",owl"),
        classified.WRONG_ROWS,
        2,
        ["train: ", "line 3: p/a.png was in line 2"],
    ),
    ("table", lines("classes.txt", "owl"), classified.UNKNOWN_CLASSES, 2, ["line 2: found 'bus'"]),
    ("table", lines("val.csv", "image,labels", "p/a.png,owl;bus"), LEAKS, 1, ["val: ", "p/a.png"]),
    ("table", lines("val.csv", "image,labels"), check_labelled.EMPTY_SPLITS, 1, ["val"]),
]


@pytest.mark.parametrize(("name", "damage", "what", "count", "words"), TRAPS)
def test_each_trap_is_the_one_kind_of_problem_that_is_found(
    copied: Callable[[str], Path],
    name: str,
    damage: Change,
    what: str,
    count: int,
    words: list[str],
) -> None:
    root = copied(name)
    damage(root)
    report = check(root, name)
    problems = found(report.problems)
    if what == classified.UNKNOWN_CLASSES and name == "table":
        # No row of the tables is left without the class.
        assert problems.pop(check_labelled.EMPTY_SPLITS) == 2
    assert problems == {what: count}
    example = next(f for f in report.problems if f.what == what).examples[0]
    assert all(word in example for word in words), example


def test_traps_of_all_kinds_at_once_are_all_found(copied: Callable[[str], Path]) -> None:
    root = copied("boxed")
    for damage in (
        remove("images/train/0.png"),
        cut("images/val/1.png"),
        in_json("images", 2, width=25),
        in_json("annotations", 0, bbox=[3, 3, 0, 2]),
        in_json("annotations", 1, bbox=[9, 3, 20, 2]),
        in_json("annotations", 3, category_id=4),
        copy("images/train/1.png", "images/val/0.png"),
    ):
        damage(root)
    problems = found(check(root, "boxed").problems)
    assert len(problems) == 7 and set(problems.values()) == {1}


def test_there_are_few_examples_of_many_problems(copied: Callable[[str], Path]) -> None:
    root = copied("boxed")
    write_json(
        root / "annotations" / "train.json", coco(3, *((n % 3, 5, [n, 3, 0, 2]) for n in range(9)))
    )
    (finding,) = check(root, "boxed").problems
    assert finding.count == 9 and len(finding.examples) == 3


def test_pictures_that_exif_turns_may_be_annotated_as_they_are_shown(
    copied: Callable[[str], Path],
) -> None:
    root = copied("boxed")
    turned(root)
    in_json("images", 1, height=24, width=20)(root)
    in_json("annotations", 1, bbox=[0, 0, 20, 24])(root)
    assert check(root, "boxed").problems == ()


def test_heads_of_files_show_neither_what_is_cut_off_nor_copies(
    copied: Callable[[str], Path],
) -> None:
    root = copied("classified")
    picture(root / "train/owl/c.jpg", 9)
    cut("train/owl/c.jpg")(root)
    copy("train/bus/a.png", "val/owl/b.png")(root)
    assert check(root, "classified", decode=False).problems == ()
    assert len(check(root, "classified").problems) == 2


def test_a_list_of_train_and_val_together_is_no_leak(tmp_path: Path) -> None:
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    for number, name in enumerate("abc"):
        picture(voc / "JPEGImages" / f"{name}.jpg", number)
        write_map(voc / "SegmentationClass" / f"{name}.png", numbers(0, number + 1, 255))
    for split, names in (("train", "ab"), ("val", "c"), ("trainval", "abc")):
        write_text(voc / "ImageSets" / "Segmentation" / f"{split}.txt", *names)
    report = check(tmp_path, "segmented")
    assert report.problems == ()
    assert [split.pictures for split in report.splits] == [2, 1, 3]
    write_text(voc / "ImageSets" / "Segmentation" / "val.txt", "c", "b", "d")
    assert found(check(tmp_path, "segmented").problems) == {LEAKS: 1, UNPAIRED: 1}


# Notes.


def test_classes_that_are_not_shown_or_not_trained_on_are_noted(
    copied: Callable[[str], Path],
) -> None:
    root = copied("segmented")
    write_text(root / "classes_train.txt", "owl", "bus")
    write_map(root / "labels/train/c.png", numbers(255, 0))
    write_map(root / "labels/val/a.png", numbers(1))
    report = check(root, "segmented")
    assert report.problems == ()
    notes = {finding.what: finding for finding in report.notes}
    assert notes[check_labelled.UNSEEN].examples == ("val: pill",)
    assert notes[check_labelled.UNSHOWN].examples == ("val: bus", "val: pill")
    (example,) = notes[check_labelled.UNLABELLED].examples
    assert "train: " in example and "c.png" in example and len(notes) == 3


def test_folders_that_train_lacks_are_noted_as_unseen(copied: Callable[[str], Path]) -> None:
    root = copied("classified")
    (root / "classes.txt").unlink()
    picture(root / "val/gull/a.png", 7)
    report = check(root, "classified")
    assert report.problems == ()
    (note,) = [f for f in report.notes if f.what == check_labelled.UNSEEN]
    assert note.examples == ("val: gull",)


def test_pictures_without_boxes_and_missing_splits_are_noted(copied: Callable[[str], Path]) -> None:
    root = copied("boxed")
    write_json(root / "annotations" / "train.json", coco(3, (0, 5, [1, 1, 2, 2])))
    (root / "annotations" / "val.json").unlink()
    report = check(root, "boxed")
    assert report.problems == ()
    assert found(report.notes) == {
        check_report.MISSING_SPLITS: 1,
        check_labelled.UNLABELLED: 2,
        check_labelled.UNSHOWN: 1,
    }


# Which data a folder holds.


def test_the_task_of_a_folder_is_recognised(
    sound: dict[str, Path], copied: Callable[[str], Path], tmp_path: Path
) -> None:
    for name, (task, _) in WRITERS.items():
        assert labelled_task(sound[name]) == task
    root = copied("boxed")
    shutil.copytree(sound["classified"], root, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="several tasks: say which of detection, classification"):
        labelled_task(root)
    write_text(root / "train.jsonl", "{}")
    assert labelled_task(root) is None
    with pytest.raises(FileNotFoundError, match="no folder"):
        labelled_task(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no data set") as raised:
        labelled_task(tmp_path / "empty")
    assert all(word in str(raised.value) for word in (*KINDS, "referring expressions"))
    for task in KINDS:
        with pytest.raises(FileNotFoundError, match="expected one of these layouts"):
            check_labelled.check_labelled(tmp_path / "empty", task)


def test_two_folders_of_one_split_are_of_the_task_all_the_same(
    copied: Callable[[str], Path],
) -> None:
    root = copied("classified")
    shutil.copytree(root / "val", root / "valid")
    assert labelled_task(root) == CLASSIFIED
    with pytest.raises(ValueError, match="would be the split 'val'"):
        check(root, "classified")


# The command line.


@pytest.mark.parametrize("name", WRITERS)
def test_the_shell_checks_and_draws(
    run: Run, sound: dict[str, Path], tmp_path: Path, name: str
) -> None:
    sheet, report = tmp_path / "sheet.png", tmp_path / "report.json"
    code, out, err = run("data", "check", sound[name], "--sheet", sheet, "--json", report)
    assert code == 0, err
    head, train, val = (line.split("  ") for line in out.splitlines()[:3])
    assert [title.strip() for title in head if title] == [
        *("data set", "split", "pictures", "classes", "labels", "of a class")
    ]
    assert "train" in train and "val" in val and "nothing is wrong" in out
    assert f"next: bridger train --head {WRITERS[name][0]} --data {sound[name]}" in out
    assert Image.open(sheet).width > 700
    assert json.loads(report.read_text())["problems"] == []
    quick = run("data", "check", sound[name], "--task", WRITERS[name][0], "--quick")[1]
    assert quick.splitlines() == [*out.splitlines()[:5], out.splitlines()[-1]]


def test_the_shell_says_what_is_wrong(
    run: Run, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    root = copied("boxed")
    in_json("annotations", 1, bbox=[3, 3, 0, 2])(root)
    report = tmp_path / "report.json"
    code, out, err = run("data", "check", root, "--json", report)
    assert code == 1 and err.endswith(f"error: one kind of problem in {root}: see above\n")
    assert "wrong:\n  boxes without area: 1\n    train: annotation 2 of image 1 (1.png, 24" in out
    assert json.loads(report.read_text())["problems"][0]["what"] == FLAT
    cases: list[tuple[list[object], str]] = [
        ([root, "--max-length", 9], "--max-length means nothing with --task detection"),
        ([root, "--task", BOXED, "--dataset", "a", "--max-length", 9], "and --max-length mean not"),
        ([root, "--task", CLASSIFIED], "holds no pictures with classes"),
        ([root, "--task", "referring_comprehension"], "holds no data set"),
        ([tmp_path, "--task", SEGMENTED], "holds no pictures with label maps"),
        ([tmp_path], "detection: "),
    ]
    for argv, words in cases:
        code, _, err = run("data", "check", *argv)
        assert code == 1 and words in err and len(err.splitlines()) == 1, err


# Sheets.


@pytest.mark.parametrize("name", WRITERS)
def test_sheets_show_labels(copied: Callable[[str], Path], name: str) -> None:
    root = copied(name)
    opened = check(root, name).opened
    sheet = contact_sheet(opened, count=4, seed=1)
    assert np.array_equal(sheet, contact_sheet(opened, count=4, seed=1))
    for path in root.rglob("*.png"):
        path.unlink()
    assert contact_sheet(opened, count=4, seed=1).size == sheet.size


def test_sheets_paint_regions_and_boxes_where_they_are(sound: dict[str, Path]) -> None:
    dice = random.Random(0)
    data = open_segmented(sound["segmented"], "train")
    tile = draw_tile(data, 0, dice)
    names = [word for word, _ in tile.words]
    assert names == ["owl,", "bus"] and len({colour for _, colour in tile.words}) == 2
    ignored = draw_tile(data, 1, dice).words
    assert [word for word, _ in ignored] == ["owl", "(50%", "ignored)"]
    names_only = open_classified(sound["classified"], "train")
    plain = np.asarray(draw_tile(names_only, 0, dice).picture)
    assert plain.shape == (213, 256, 3) and np.asarray(tile.picture).shape == plain.shape
    boxes = open_boxed(sound["boxed"], "train")
    drawn = np.asarray(draw_tile(boxes, 2, dice).picture).astype(int)
    original = np.asarray(
        Image.open(sound["boxed"] / "images/train/2.png").resize((256, 213), 3)
    ).astype(int)
    changed = np.abs(drawn - original).max(axis=2) > 60
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    # The box is 3 to 7 of 24 columns and 20 rows; its name stands above it.
    assert abs(columns[0] - 32) <= 2 and rows[-1] <= 75 + 2 and rows[0] < 32


# What reads the data.


def test_readers_report_what_they_leave_out(copied: Callable[[str], Path]) -> None:
    told: list[tuple[str, str]] = []

    def tell(what: str, example: str) -> None:
        told.append((what, example))

    root = copied("segmented")
    remove("labels/train/a.png")(root)
    assert [p.key for p in open_segmented(root, "train", report=tell)] == ["b.png", "c.png"]
    root = copied("boxed")
    in_json("annotations", 0, bbox=[3, 3, 0, 2])(root)
    in_json("annotations", 1, category_id=8)(root)
    data = open_boxed(root, "train", report=tell)
    assert [data.annotation_ids(index) for index in range(3)] == [(4,), (), (3,)]
    root = copied("table")
    lines("train.csv", "image,label", "p/a.png,owl;bus", "p/b.png,bus")(root)
    assert [p.key for p in open_classified(root, "train", report=tell)] == ["p/b.png"]
    kinds = [UNPAIRED, boxed.UNKNOWN_IDS, FLAT, classified.WRONG_ROWS]
    assert [what for what, _ in told] == kinds


def test_detection_trains_and_is_judged_without_broken_boxes(
    copied: Callable[[str], Path],
) -> None:
    root, task = copied("boxed"), get_task(BOXED)
    in_json("annotations", 1, bbox=[3, 3, 0, 2])(root)
    with pytest.warns(UserWarning, match="1 of the 4 boxes in .*train.json are broken"):
        data = task.open(root, "train")
    assert data.annotation_ids(1) == () and len(data) == 3
    for index in (0, 2):
        in_json("annotations", index, bbox=[3, 3, 0, 2])(root)
    with pytest.raises(ValueError, match="3 of the 4 boxes .*has no area. Mend them"):
        task.open(root, "train")


def test_boxes_of_another_size_are_refused_by_name(copied: Callable[[str], Path]) -> None:
    root = copied("boxed")
    in_json("images", 1, width=30)(root)
    data = open_boxed(root, "train")
    model = model_with("boxes")
    processor = model.processor
    assert processor is not None
    questions = ClassQuestions(processor, data.classes, "separate", ("{}",), most=2, seed=0)
    collate = DetectionCollator(processor, questions, [0, 1])
    words = r"coco: .*1.png is 20 x 24, but its boxes are for 20 x 30 \(height x width\)"
    with pytest.raises(ValueError, match=words):
        collate([ClassItem(data[index], index) for index in range(3)])
    with pytest.raises(ValueError, match=words):
        evaluate_detection(model, data)


def test_a_table_says_whether_it_is_multi_label_and_not_its_rows(tmp_path: Path) -> None:
    task = get_task(CLASSIFIED)
    for column, several in (("label", False), ("labels", True)):
        write_text(tmp_path / "train.csv", f"image,{column}", "p/a.png,owl", "p/b.png,bus")
        assert task.head_options(task.open(tmp_path, "train"))["multi_label"] is several
