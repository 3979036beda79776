"""Pictures with boxes, from JSON files as COCO has them."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_labelled import write_json, write_picture

from bridger.data.boxed import boxed_splits, open_boxed
from bridger.data.scenes import write_scenes

IMAGES = [
    {"id": 139, "file_name": "größe.jpg", "height": 12, "width": 16},
    {"id": 7, "file_name": "empty.jpg", "height": 12, "width": 16},
    {"id": 285, "file_name": "c.jpg", "height": 12, "width": 16},
]


def box(id: int, image: int, category: int, xywh: list[float], **more: Any) -> dict[str, Any]:
    area = xywh[2] * xywh[3] / 2
    return {
        "id": id,
        "image_id": image,
        "category_id": category,
        "bbox": xywh,
        "area": area,
        "iscrowd": 0,
        "segmentation": [[1, 1, 5, 1, 5, 5]],
        **more,
    }


def content() -> dict[str, Any]:
    """Ids with gaps in no order, a crowd, a picture without boxes, a tiny box, roundings."""
    return {
        "info": {"description": "größe"},
        "images": copy.deepcopy(IMAGES),
        "annotations": [
            box(51, 285, 90, [2, 3, 4.5, 5]),
            box(9, 139, 3, [0, 0, 16.4, 12]),
            box(50, 285, 3, [-0.5, 0, 3, 2]),
            box(8, 139, 90, [1, 2, 0.25, 0.5], iscrowd=1, area=None),
        ],
        "categories": [{"id": 90, "name": "old_owl"}, {"id": 3, "name": "Käuzchen"}],
    }


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    for split in ("train", "val"):
        write_json(root / "annotations" / f"instances_{split}2017.json", content())
        write_json(root / "annotations" / f"captions_{split}2017.json", {"annotations": []})
        for image in IMAGES:
            write_picture(root / f"{split}2017" / str(image["file_name"]))
    return root


def test_coco_as_it_unpacks(coco: Path) -> None:
    assert boxed_splits(coco) == ["train", "val"]
    data = open_boxed(coco, "val")
    assert data.classes == ("old owl", "Käuzchen") and data.category_ids == (90, 3)
    assert data.image_ids == (139, 7, 285) and len(data) == 3
    assert data.path == coco / "annotations" / "instances_val2017.json"
    first, empty, third = data
    np.testing.assert_array_equal(first.boxes, [[0, 0, 16, 12], [1, 2, 1.25, 2.5]])
    assert first.labels.tolist() == [1, 0] and first.crowd.tolist() == [False, True]
    np.testing.assert_allclose(first.areas, [16.4 * 12 / 2, 0.125])
    np.testing.assert_array_equal(third.boxes, [[2, 3, 6.5, 8], [0, 0, 2.5, 2]])
    assert third.labels.tolist() == [0, 1] and data.annotation_ids(2) == (51, 50)
    assert empty.boxes.shape == (0, 4) and data.annotation_ids(1) == ()
    assert data[-1].labels.tolist() == [0, 1]
    assert all(p.picture.is_file() and p.size == (12, 16) for p in data)
    assert (first.boxes.dtype, first.labels.dtype, first.crowd.dtype) == (
        np.float32,
        np.int64,
        np.bool_,
    )


def test_boxes_are_those_of_pycocotools(coco: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    write_scenes(tmp_path, {"val": 6}, size=64, layout="boxed", classes=12)
    for root in (coco, tmp_path):
        data = open_boxed(root, "val")
        with contextlib.redirect_stdout(io.StringIO()):
            reference = COCO(str(data.path))
        for index, picture in enumerate(data):
            entries = reference.loadAnns(reference.getAnnIds([data.image_ids[index]]))
            assert [entry["id"] for entry in entries] == list(data.annotation_ids(index))
            names = [reference.loadCats(e["category_id"])[0]["name"] for e in entries]
            found = [str(data.classes[label]) for label in picture.labels]
            assert [name.replace("_", " ") for name in names] == found
            xywh = np.array([e["bbox"] for e in entries]).reshape(-1, 4)
            xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
            np.testing.assert_allclose(picture.boxes, xyxy, atol=1)


@pytest.mark.parametrize(
    ("annotations", "pictures"),
    [
        ("annotations/instances_train2014.json", "images/train2014"),
        ("annotations/train.json", "images/train"),
        ("annotations/train.json", "images"),
        ("annotations/train.json", "train"),
        ("annotations/training.json", "training"),
        ("annotations/instances_train.json", ""),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_layouts(tmp_path: Path, annotations: str, pictures: str) -> None:
    write_json(tmp_path / annotations, content())
    for image in IMAGES:
        write_picture(tmp_path / pictures / str(image["file_name"]))
    assert boxed_splits(tmp_path) == ["train"]
    data = open_boxed(tmp_path, "train")
    assert data[0].picture == tmp_path / pictures / "größe.jpg"
    data.require_pictures()
    with pytest.raises(ValueError, match="no split 'val', it has train"):
        open_boxed(tmp_path, "val")


def test_several_years_of_a_split_are_told_apart(coco: Path) -> None:
    for split in ("train", "val"):
        write_json(coco / "annotations" / f"instances_{split}2014.json", content())
    assert boxed_splits(coco) == ["train2014", "train2017", "val2014", "val2017"]
    assert open_boxed(coco, "train2017")[0].picture == coco / "train2017" / "größe.jpg"
    with pytest.raises(FileNotFoundError, match="looked for the first one as:\n.*train2014"):
        open_boxed(coco, "train2014")


BROKEN = [
    ([2, 3, 0, 5], r"\[2, 3, 0, 5\], which has no area"),
    ([2, 3, 4, -1], "has no area"),
    ([16.5, 3, 0.4, 4], "reaches out"),
    ([12, 3, 5.5, 4], r"image 285 \(c.jpg, 16 x 12 pixels\) .*, which reaches out of the picture"),
    ([-1.5, 3, 5, 4], "reaches out"),
    ([2, 3, 4, 11], "reaches out"),
    ([1e200, 3, 1e200, 4], "reaches out"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("xywh", "words"), BROKEN)
def test_broken_boxes_are_named_or_left_out(coco: Path, xywh: list[float], words: str) -> None:
    values = content()
    values["annotations"][0]["bbox"] = xywh
    write_json(coco / "annotations" / "instances_train2017.json", values)
    with pytest.raises(ValueError, match=words):
        open_boxed(coco, "train")
    with pytest.raises(ValueError, match="1 of the 4 boxes in .*: annotation 51 of image 285"):
        open_boxed(coco, "train")
    with pytest.raises(ValueError, match=r"leave out a few with open_boxed\(..., broken='drop'\)$"):
        open_boxed(coco, "train")
    with pytest.warns(UserWarning, match="1 of the 4 boxes .* are broken; they are left out"):
        data = open_boxed(coco, "train", broken="drop")
    assert data.annotation_ids(2) == (50,) and len(data[2].boxes) == 1
    assert data.annotation_ids(0) == (9, 8)
    with pytest.raises(ValueError, match="broken='keep' is unknown: expected raise or drop"):
        open_boxed(coco, "train", broken="keep")


def corners() -> dict[str, Any]:
    """Boxes as x0 y0 x1 y1, of which all but the first would reach out of 16 x 12 pixels."""
    boxes = [[0, 0, 16, 12], [9, 2, 15, 7], [3, 8, 9, 11], [10, 1, 16, 12]]
    found = [box(i, 139, 3, [float(v) for v in b]) for i, b in enumerate(boxes, 1)]
    return {**content(), "annotations": found}


@pytest.mark.parametrize("broken", ["raise", "drop"])
def test_most_boxes_broken_says_what_they_look_like(coco: Path, broken: str) -> None:
    path = coco / "annotations" / "instances_train2017.json"
    write_json(path, corners())
    look = "look like x0 y0 x1 y1; COCO's are x y width height"
    with pytest.raises(ValueError, match=f"3 of the 4 boxes .*: annotation 2 .*They {look}$"):
        open_boxed(coco, "train", broken)
    said: list[tuple[str, str]] = []
    open_boxed(coco, "train", broken, report=lambda *each: said.append(each))
    assert [what for what, _ in said] == [f"boxes that {look}"] * 3
    values = corners()
    for entry in values["annotations"][1:]:
        entry["bbox"][2] = 0.0
    write_json(path, values)
    with pytest.raises(ValueError, match=r"3 of the 4 .*has no area. Mend them \(.*says which\)$"):
        open_boxed(coco, "train", broken)


def test_odd_annotations_are_told_and_left_out(coco: Path) -> None:
    values = changed("annotations", 0, bbox=[1, 2, 3])
    del values["annotations"][1]["bbox"]
    write_json(coco / "annotations" / "instances_train2017.json", values)
    said: list[tuple[str, str]] = []
    data = open_boxed(coco, "train", report=lambda *each: said.append(each))
    assert [data.annotation_ids(i) for i in range(3)] == [(8,), (), (50,)]
    assert {what for what, _ in said} == {"annotations that are not like COCO's"}
    first, second = (where for _, where in said)
    assert "annotation 51 of image 285 (c.jpg) has the bbox [1, 2, 3]" in first
    assert "annotation 9 of image 139 (größe.jpg) has the bbox None" in second


def changed(key: str, index: int, **values: Any) -> Any:
    whole = content()
    whole[key][index] |= values
    return whole


def without(key: str) -> Any:
    return {name: value for name, value in content().items() if name != key}


WRONG: list[tuple[Any, str]] = [
    (changed("annotations", 2, category_id=4), "annotation 50 has the category_id 4, .* 2 categ"),
    (changed("annotations", 2, image_id=8), "annotation 50 has the image_id 8, .* 3 images"),
    (changed("annotations", 2, id=51), "the id 51 stands twice in its annotations"),
    (
        changed("annotations", 0, bbox=[1, 2, 3]),
        r"annotation 51 of image 285 \(c.jpg\) has the bbox \[1, 2, 3\]: expected .* four numbers",
    ),
    (changed("annotations", 0, bbox=["1", 2, 3, 4]), r"51 .* has the bbox \['1', 2, 3, 4\]: exp"),
    (changed("annotations", 0, bbox=[1, 2, 3, None]), "annotation 51 of image 285 .*, None]: exp"),
    (changed("annotations", 0, bbox=None), "annotation 51 of image 285 .* has the bbox None: exp"),
    (changed("annotations", 0, area="6"), "51 of image 285 .* has the area '6': expected a number"),
    (changed("annotations", 0, id=None), "expected annotations with an id, a whole number, found"),
    (changed("annotations", 0, image_id=[1]), r"annotation 51 has the image_id \[1\], .* 3 images"),
    ({**content(), "annotations": [3]}, "expected annotations with an id, a whole number, found 3"),
    (changed("images", 1, id=139), "the id 139 stands twice in its images"),
    (changed("images", 1, height=None), "is not like COCO's"),
    (changed("categories", 1, id=90), "the id 90 stands twice in its categories"),
    (changed("categories", 1, name="old owl"), "'old owl' stands twice"),
    (changed("categories", 1, name=""), "class number 1 has an empty name"),
    (changed("categories", 1, name=3), "is not like COCO's"),
    (without("annotations"), 'it has no "annotations"'),
    (without("images"), 'it has no "images"'),
    (without("categories"), 'it has no "categories"'),
    ([1, 2], 'it has no "categories"'),
]


@pytest.mark.parametrize(("values", "words"), WRONG)
def test_what_is_wrong_with_a_file_is_said_with_its_place(
    coco: Path, values: Any, words: str
) -> None:
    path = write_json(coco / "annotations" / "instances_train2017.json", values)
    with pytest.raises(ValueError, match=words) as raised:
        open_boxed(coco, "train")
    assert str(path) in str(raised.value)


def test_files_that_end_too_early_and_folders_without_any(coco: Path) -> None:
    path = coco / "annotations" / "instances_train2017.json"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="instances_train2017.json is not a whole JSON file"):
        open_boxed(coco, "train")
    for opening in (boxed_splits, lambda root: open_boxed(root, "train")):
        with pytest.raises(FileNotFoundError, match="expected one of these layouts"):
            opening(coco / "val2017")
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            opening(coco / "val2018")


def test_missing_pictures_are_counted_before_training(coco: Path) -> None:
    (coco / "val2017" / "c.jpg").unlink()
    data = open_boxed(coco, "val")
    with pytest.raises(FileNotFoundError, match="1 of the 3 pictures .*c.jpg"):
        data.require_pictures()
    with pytest.raises(FileNotFoundError, match="coco: there is no picture .*c.jpg"):
        _ = data[2].picture


def test_synonyms_as_lvis_has_them(coco: Path) -> None:
    values = changed("categories", 0, name="aerosol_can", synonyms=["aerosol_can", "spray_can"])
    write_json(coco / "annotations" / "instances_val2017.json", values)
    assert open_boxed(coco, "val").classes[0] == ("aerosol can", "spray can")


def test_workers_get_the_same_boxes(coco: Path) -> None:
    data = open_boxed(coco, "val")
    for a, b in zip(data, pickle.loads(pickle.dumps(data)), strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        assert (a.key, a.image_path) == (b.key, b.image_path)


def test_segmentations_are_not_kept_in_memory(coco: Path) -> None:
    values = content()
    long = [[i % 12 for i in range(20_000)]]
    values["annotations"] = [box(i, 139, 3, [1, 1, 2, 2], segmentation=long) for i in range(1, 101)]
    path = write_json(coco / "annotations" / "instances_train2017.json", values)
    open_boxed(coco, "val")  # with what imports leave behind
    tracemalloc.start()
    data = open_boxed(coco, "train")
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = path.stat().st_size
    assert len(data[0].boxes) == 100 and json.loads(path.read_text()).keys() == values.keys()
    assert kept < size / 50 and peak < size / 2
