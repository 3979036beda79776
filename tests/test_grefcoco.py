"""gRefCOCO's reader: expressions that mean several objects, or none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers_coco import mask_of, ref, write_pictures, write_refs

from bridger.data import GRefCOCO, open_split, open_splits

REFS = [
    ref(0, "train", 1, [11, 12, 20], "the three of them", "all"),
    ref(1, "train", 1, [-1], "the unicorn"),
    ref(2, "train", 2, [13], "the dog"),
    ref(3, "train", 2, 14, "a number where a list is usual"),
    ref(4, "val", 2, [13, 14], "nothing at all", no_target=True),
    ref(5, "val", 1, [], "an empty list"),
    ref(6, "val", 1, [12, 15], "one of which is a crowd"),
    ref(7, "val", 1, [15], "the crowd"),
]
CROWD = 15


@pytest.fixture(params=["json", "p"])
def root(request, tmp_path):
    write_refs(tmp_path / "grefcoco" / f"grefs(unc).{request.param}", REFS)
    write_pictures(tmp_path / "images" / "train2014", (1, 2))
    path = tmp_path / "grefcoco" / "instances.json"
    whole = json.loads(path.read_text())
    for annotation in whole["annotations"]:
        annotation["iscrowd"] = int(annotation["id"] == CROWD)
    path.write_text(json.dumps(whole))
    return tmp_path


def union(*ann_ids):
    return np.maximum.reduce([np.zeros((6, 8), np.uint8), *map(mask_of, ann_ids)])


def test_masks_are_the_union_of_the_objects(root):
    data = GRefCOCO(root, "train")
    assert (data.name, data.split, len(data)) == ("grefcoco/unc", "train", 4)
    assert [s.ann_ids for s in data] == [(11, 12, 20), (), (13,), (14,)]
    for sample, ids in zip(data, [(11, 12, 20), (), (13,), (14,)], strict=True):
        np.testing.assert_array_equal(sample.mask, union(*ids))
    assert data[0].mask.sum() > union(11, 12).sum() > union(11).sum() > 0
    assert data[0].sentences == ("the three of them", "all") and data.sentence_counts()[0] == 2
    assert not data[1].mask.any() and data[1].mask.shape == (6, 8)
    assert data.picture_keys() == ["coco/1", "coco/1", "coco/2", "coco/2"]


def test_every_way_of_meaning_nothing(root):
    data = GRefCOCO(root, "val")
    for sample in list(data)[:2]:
        assert sample.ann_ids == () and sample.mask.shape == (6, 8) and not sample.mask.any()


def test_crowds_are_left_out_as_the_authors_do(root):
    mixed, alone = list(GRefCOCO(root, "val"))[2:]
    assert mixed.ann_ids == (12, CROWD)
    np.testing.assert_array_equal(mixed.mask, union(12))
    np.testing.assert_array_equal(alone.mask, union(CROWD))  # there would be nothing left
    refs = [ref(0, "val", 1, CROWD)]
    write_refs(root / "refcoco" / "refs(unc).p", refs)
    path = root / "refcoco" / "instances.json"
    path.write_text(path.read_text().replace('"iscrowd": 0', '"iscrowd": 1'))
    np.testing.assert_array_equal(open_split(root, "val", "refcoco")[0].mask, union(CROWD))


def test_it_is_opened_by_its_name(root):
    assert open_split(root, "val").name == "grefcoco/unc"
    splits = open_splits(root, dataset="grefcoco")
    assert {split: list(data) for split, data in splits.items()} == {
        split: list(GRefCOCO(root, split)) for split in ("train", "val")
    }
    with pytest.raises(ValueError, match="no split 'testA'; it has train, val"):
        GRefCOCO(root, "testA")


def test_files_that_are_not_what_they_should_be(tmp_path):
    write_pictures(tmp_path / "images" / "train2014", (1, 2))
    path = tmp_path / "grefcoco" / "grefs(unc).json"
    with pytest.raises(FileNotFoundError, match=r"grefs\(unc\)\.json\n(.|\n)*grefs\(unc\)\.p\n"):
        GRefCOCO(tmp_path, "train")
    write_refs(path, REFS)
    text = path.read_text()
    path.write_text(text[:-30])
    with pytest.raises(ValueError, match=r"grefs\(unc\)\.json is not a whole JSON file"):
        GRefCOCO(tmp_path, "train")
    path.write_text(text.replace('"ann_id"', '"annotation"'))
    with pytest.raises(ValueError, match=r"grefs\(unc\)\.json, entry 0: not a ref"):
        GRefCOCO(tmp_path, "train")
    path.write_text(text.replace("[13]", "[13, 77]"))
    with pytest.raises(ValueError, match=r"ref 2 needs image 2 with annotations \[13, 77\]"):
        GRefCOCO(tmp_path, "train")
