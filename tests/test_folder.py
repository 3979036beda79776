"""Referring data of one's own: JSON Lines to samples, what is refused, and converting to it."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_own_data import (
    SIZE,
    Mask,
    corners,
    read_lines,
    rectangle,
    write_lines,
    write_own_data,
)
from PIL import Image
from torch.utils.data import DataLoader

from bridger.data import ReferringDataset, convert, open_split, open_splits
from bridger.data.catalog import data_sets
from bridger.data.folder import ReferringFolder
from bridger.data.masks import MaskFile
from bridger.data.scenes import write_scenes

BOX = {"image": "a.png", "sentence": "the dog", "box": [0, 0, 4, 4]}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    write_own_data(tmp_path / "own")
    return tmp_path / "own"


def open_line(folder: Path, line: Any) -> ReferringFolder:
    text = line if isinstance(line, bytes) else json.dumps(line).encode()
    (folder / "train.jsonl").write_bytes(text)
    return ReferringFolder(folder, "train")


def test_every_kind_of_mask_is_the_one_that_was_meant(tmp_path: Path) -> None:
    rows = write_own_data(tmp_path / "own")
    data = open_split(tmp_path / "own", "train")
    assert isinstance(data, ReferringFolder) and (data.name, len(data)) == ("folder", 10)
    for number, (sample, (values, mask)) in enumerate(zip(data, rows, strict=True), 1):
        assert np.array_equal(sample.mask, mask), values
        assert sample.image_path == tmp_path / "own" / values["image"]
        assert list(sample.sentences) == values.get("sentences", [values.get("sentence")])
        assert sample.ref_id == values.get("ref_id", number)
    assert (data[3].ann_ids, data[3].sent_ids, data[3].kinds) == ((4, 5), (77,), ("colour",))
    assert (data[3].size, data[2].size) == (SIZE, None)
    assert data[2].kinds == ("", "") and data[2].ann_ids == (3,)
    # Without ids of their own, sentences are numbered through.
    assert [data[i].sent_ids for i in (0, 1, 2)] == [(0, 1), (2,), (3, 4)]
    assert data.sentence_counts() == [2, 1] * 5 and len(data.expressions()) == 15


def test_pictures_are_told_apart_by_what_paths_lead_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "other.png").symlink_to(tmp_path / "real" / "a.png")
    images = ["real/a.png", "linked/a.png", "other.png", "real/b.png", str(tmp_path / "real/a.png")]
    rows: list[dict[str, Any]] = [{**BOX, "image": image} for image in images]
    rows += [{**BOX, "picture": "coco/7"}, {**BOX, "image": "b.png", "picture": "coco/7"}]
    write_lines(tmp_path / "train.jsonl", rows)
    data = ReferringFolder(tmp_path, "train")
    real = (tmp_path / "real").resolve()
    assert data.picture_keys()[:2] == [str(real / "a.png")] * 2
    assert data.pictures() == [[0, 1, 2, 4], [3], [5, 6]]


def test_blank_lines_nulls_and_other_line_ends_do_no_harm(tmp_path: Path) -> None:
    line = json.dumps({**BOX, "mask": None, "none": False, "kinds": None}).encode()
    data = open_line(tmp_path, b"\r\n" + line + b"\r\n  \n" + line)
    assert [sample.ref_id for sample in data] == [2, 4]
    assert data[-1].ref_id == 4
    with pytest.raises(IndexError):
        data[2]


def test_splits_are_the_files(own: Path) -> None:
    (own / "testA.jsonl").write_bytes((own / "val.jsonl").read_bytes())
    (own / "._train.jsonl").touch()  # as macOS leaves them
    assert list(open_splits(own)) == ["train", "val", "testA"]
    with pytest.raises(ValueError, match=r"no split 'test' .*test.jsonl\), it has train, val, tes"):
        ReferringFolder(own, "test")
    (own / "test.json").write_text("[]")
    with pytest.raises(ValueError, match="test.json a list. Write it one object a line"):
        ReferringFolder(own, "test")
    with pytest.raises(FileNotFoundError, match="no folder"):
        ReferringFolder(own / "missing", "train")


WRONG: list[tuple[Any, str]] = [
    ({**BOX, "sentnce": "a"}, "no key 'sentnce': did you mean 'sentence'"),
    ({**BOX, "image": 3}, '"image": expected a file, found .3'),
    ({"sentence": "a", "box": [0, 0, 1, 1]}, '"image": expected a file, found no such key'),
    ({**BOX, "sentence": " "}, "expected a sentence such as 'the red car', found ' '"),
    ({"image": "a", "sentences": [], "none": True}, "a list of at least one sentence"),
    ({**BOX, "sentences": ["a"]}, 'either "sentence" or "sentences", found both'),
    ({"image": "a.png", "none": True}, "found neither"),
    ({"image": "a.png", "sentence": "a"}, 'found no one; where nothing is meant, write "none"'),
    ({**BOX, "mask": "a.png"}, "exactly one of mask, .*, found mask and box"),
    ({**BOX, "box": [4, 0, 4, 4]}, r"x0 < x1 .*write \[x, y, x \+ width, y \+ height\]"),
    ({**BOX, "box": [4, 0, 4]}, r"expected a box \[x0, y0, x1, y1\]"),
    ({**BOX, "box": [0.1, 0.2, 0.5, 0.9]}, "expected pixels, .*: shares of the width"),
    ({**BOX, "box": [0, 0, True, 1]}, "expected a box"),
    ({**BOX, "value": 3}, '"value" is the whole number that an object has in its "mask"'),
    ({"image": "a", "sentence": "a", "none": 1}, '"none": expected true'),
    ({"image": "a", "sentence": "a", "mask": ["b"]}, '"mask": expected a file'),
    ({**BOX, "kinds": ["a", "b"]}, '"kinds": expected a list of 1 strings'),
    ({**BOX, "ref_id": "7"}, '"ref_id": expected a whole number, found .*7'),
    ({**BOX, "sent_ids": [1, 2]}, '"sent_ids": expected a list of 1 whole numbers'),
    ({**BOX, "ann_ids": 3}, '"ann_ids": expected a list of whole numbers'),
    ({**BOX, "size": [0, 4]}, r'"size": expected \[height, width\]'),
    ({**BOX, "source": ""}, '"source": expected a name'),
    (["a"], "JSON array; write its objects one a line"),
    (b'\n [{"image": 1},\n', "JSON array; write its objects one a line"),
    (b'"a"', "expected a JSON object such as"),
    (b'{"image": "a.png",\n"sentence": "a"}', "may not be spread over several lines"),
    (b'{"image": "\xff"}', "not UTF-8"),
    (b"\xef\xbb\xbf{}", "byte order mark; save the file as UTF-8 without one"),
    ("a".encode("utf-16"), "byte order mark"),
    (b"[" * 100_000, "JSON array"),
    (b"", "is empty: expected a line for every ref"),
]
OUTLINES: list[tuple[str, Any, str]] = [
    ("polygons", [[0, 0, 4, 0, 4]], "an x and a y for each of three corners or more, found 5"),
    ("polygons", [[0, 0, 4, 0]], "three corners or more, found 4 numbers"),
    ("polygons", [0, 0, 4, 0, 4, 4], r"expected a polygon \[x0, y0, x1, y1, ...\], found '0'"),
    ("polygons", [], "expected .*x0, y0"),
    ("polygons", [corners(0, 0, 4, 4)[:-1] + [float("nan")]], "expected a polygon"),
    ("polygons", [corners(0, 0, 10**400, 4)], "expected a polygon"),
    ("segmentation", {"counts": [4]}, r"run lengths are {.size.: \[height, width\]"),
    ("segmentation", {"size": [2, 2], "counts": 4}, "a list or a string"),
    ("segmentation", [[[0, 0, 4, 0, 4]]], "found 5 numbers"),
    ("segmentation", "polygons", "COCO's polygons, run lengths, or a list"),
    ("segmentation", ["a"], "COCO's polygons, run lengths, or a list"),
]
WRONG += [
    ({"image": "a", "sentence": "a", kind: outline}, words) for kind, outline, words in OUTLINES
]


@pytest.mark.parametrize(("line", "words"), WRONG)
def test_what_is_wrong_with_a_line_is_said_with_its_place(
    tmp_path: Path, line: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        open_line(tmp_path, line)
    assert str(tmp_path / "train.jsonl") in str(raised.value)
    assert "line 1" in str(raised.value) or line == b""
    assert len(str(raised.value)) < 500


def test_the_number_of_a_wrong_line_counts_blank_ones(tmp_path: Path) -> None:
    good = json.dumps(BOX).encode()
    with pytest.raises(ValueError, match=r"train.jsonl, line 4: "):
        open_line(tmp_path, good + b"\n\n" + good + b"\n{}")
    said: list[ValueError] = []
    data = ReferringFolder(tmp_path, "train", report=said.append)
    assert len(data) == 2 and len(said) == 1


def test_workers_and_copies_read_the_same(own: Path) -> None:
    data = ReferringFolder(own, "train")
    copy = pickle.loads(pickle.dumps(data))
    assert [sample.key for sample in copy] == [sample.key for sample in data]
    loaded = list(DataLoader(data, batch_size=None, num_workers=2))
    assert [sample.key for sample in loaded] == [sample.key for sample in data]


@pytest.mark.slow
def test_lines_are_not_kept_in_memory(tmp_path: Path) -> None:
    long = json.dumps({"image": "a.png", "sentence": "a", "polygons": [list(range(20_000))]})
    path = tmp_path / "train.jsonl"
    path.write_text((long + "\n") * 100)
    ReferringFolder(tmp_path, "train")  # with what imports leave behind
    tracemalloc.start()
    data = ReferringFolder(tmp_path, "train")
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = path.stat().st_size
    assert len(data) == 100 and size > 10e6
    assert kept < size / 200 and peak < size / 5


def test_a_file_that_changes_under_the_reader_is_named(own: Path) -> None:
    data = ReferringFolder(own, "train")
    (own / "train.jsonl").write_bytes(b"x" + (own / "train.jsonl").read_bytes())
    with pytest.raises(ValueError, match="train.jsonl, line 3: .*was it changed while it was in"):
        data[2]


# Converting.


def assert_same(first: ReferringDataset, second: ReferringDataset) -> None:
    assert len(first) == len(second) > 0
    assert first.picture_keys() == second.picture_keys()
    assert first.sentence_counts() == second.sentence_counts()
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.mask, b.mask)
        assert os.path.samefile(a.image_path, b.image_path)
        for name in ("sentences", "ref_id", "ann_ids", "sent_ids", "kinds", "size", "source"):
            assert getattr(a, name) == getattr(b, name), name


def test_converted_scenes_read_as_the_same(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", {"train": 3, "val": 2, "testA": 1}, size=64)
    counts = convert.convert(tmp_path / "scenes", tmp_path / "deep" / "lines")
    assert list(counts) == ["train", "val", "testA"]
    for split in counts:
        lines = open_split(tmp_path / "deep" / "lines", split)
        assert_same(open_split(tmp_path / "scenes", split), lines)
        assert all(".." in str(sample.image_path) for sample in lines)  # the folders may move
    with pytest.raises(FileExistsError, match="train.jsonl exists|val.jsonl|testA.jsonl"):
        convert.convert(tmp_path / "scenes", tmp_path / "deep" / "lines")


def test_every_kind_of_mask_converts(own: Path, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    convert.convert(own, tmp_path / "lines", report=lambda *so_far: done.append(so_far))
    assert_same(ReferringFolder(own, "train"), ReferringFolder(tmp_path / "lines", "train"))
    assert done == [(i, 11) for i in range(1, 12)]
    first, second = read_lines(tmp_path / "lines" / "train.jsonl")[:2]
    assert (first["mask"], first["image"]) == ("../own/masks/größe.png", "../own/Bilder/größe.png")
    assert second["value"] == 7 and "picture" not in second


def test_masks_that_etris_prepared_are_converted_by_their_path(tmp_path: Path) -> None:
    rows = write_own_data(tmp_path / "images" / "train2014")
    mask: Mask = rows[0][1]
    for folder in ("anns", "masks"):
        (tmp_path / folder / "refcoco+").mkdir(parents=True)
    name = "images/train2014/masks/größe.png"
    (tmp_path / "masks" / "refcoco+" / "5.png").write_bytes((tmp_path / name).read_bytes())
    picture = tmp_path / "images" / "train2014" / "COCO_train2014_000000000042.jpg"
    picture.write_bytes((tmp_path / "images/train2014/Bilder/b.png").read_bytes())
    said = [{"idx": 0, "sent_id": 9, "sent": "the dog"}]
    ref = {"segment_id": 5, "img_name": picture.name, "sentences": said, "sentences_num": 1}
    (tmp_path / "anns" / "refcoco+" / "val.json").write_text(json.dumps([ref]))
    convert.convert(tmp_path, tmp_path / "lines", "refcoco+")
    lines = ReferringFolder(tmp_path / "lines", "val")
    assert_same(open_split(tmp_path, "val", "refcoco+"), lines)
    assert np.array_equal(lines[0].mask, mask) and lines.picture_keys() == ["coco/42"]


def test_an_interrupted_conversion_leaves_nothing(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 11:  # in the last of two splits
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.convert(own, tmp_path / "lines", report=interrupt)
    assert list((tmp_path / "lines").iterdir()) == []


def test_white_masks_with_a_palette_are_the_object_whatever_its_number(tmp_path: Path) -> None:
    write_own_data(tmp_path / "own")
    mask = Image.fromarray(255 * rectangle(4, 3, 20, 15)).convert("RGB")
    # Pillow numbers colours by how often they are there, or by how bright: black may be 0 or 1.
    for number, colours in enumerate((2, 16)):
        mask.quantize(colours).save(tmp_path / "own" / "masks" / f"palette-{number}.png")
        inverted = Image.eval(mask, lambda v: 255 - v).quantize(colours)
        inverted.save(tmp_path / "own" / "masks" / f"inverted-{number}.png")
        found = MaskFile(tmp_path / "own" / "masks" / f"palette-{number}.png").mask(SIZE)
        assert np.array_equal(found, rectangle(4, 3, 20, 15))
        found = MaskFile(tmp_path / "own" / "masks" / f"inverted-{number}.png").mask(SIZE)
        assert np.array_equal(found, 1 - rectangle(4, 3, 20, 15))


def test_masks_of_two_lines_are_never_taken_for_each_other(tmp_path: Path) -> None:
    write_own_data(tmp_path)
    line = {"image": "Bilder/b.png", "sentence": "a", "ref_id": 7}
    boxes = [[0, 0, 4, 4], [20, 0, 24, 4]]
    for split in ("train", "val"):
        rows = [{**line, "box": box} for box in (boxes if split == "train" else boxes[::-1])]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text)
    samples = [s for split in ("train", "val") for s in open_split(tmp_path, split)]
    assert len({sample.key for sample in samples}) == 4


def test_files_of_another_kind_are_no_data_set(tmp_path: Path) -> None:
    write_scenes(tmp_path, {"train": 1}, size=64)
    (tmp_path / "rows.jsonl").write_text('{"image": "a.jpg", "iou": 0.5}\n')
    assert data_sets(tmp_path) == ["refcoco"]


def test_a_conversion_keeps_its_data_set_s_name(tmp_path: Path) -> None:
    write_scenes(tmp_path / "raw", {"train": 2, "val": 1}, size=64)
    convert.convert(tmp_path / "raw", tmp_path / "lines")
    assert data_sets(tmp_path / "lines") == ["refcoco"]
    assert open_split(tmp_path / "lines", "train", "refcoco").name == "refcoco/unc"
    with pytest.raises(FileNotFoundError, match="refs of refcoco+"):
        open_split(tmp_path / "lines", "train", "refcoco+")


def test_broken_lines_can_be_left_behind(tmp_path: Path) -> None:
    write_own_data(tmp_path / "own")
    with (tmp_path / "own" / "train.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(ValueError, match="line "):
        convert.convert(tmp_path / "own", tmp_path / "lines")
    counts = convert.convert(tmp_path / "own", tmp_path / "lines", drop_broken=True)
    assert counts["train"] == (10, 1)


def test_of_a_cut_out_what_is_not_transparent_is_the_object(tmp_path: Path) -> None:
    mask = rectangle(4, 3, 20, 15)
    pixels = np.full((*SIZE, 4), 40, dtype=np.uint8)
    pixels[..., 3] = 255 * mask
    Image.fromarray(pixels).save(tmp_path / "cut.png")
    assert np.array_equal(MaskFile(tmp_path / "cut.png").mask(SIZE), mask)
    pixels[..., :3], pixels[..., 3] = 255 * mask[..., None], 255  # opaque: colours count
    Image.fromarray(pixels).save(tmp_path / "opaque.png")
    assert np.array_equal(MaskFile(tmp_path / "opaque.png").mask(SIZE), mask)
