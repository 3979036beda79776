"""Where the published data sets are found, and which of them a folder is said to hold."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from helpers_coco import file_name, mask_of, ref, write_pictures, write_prepared, write_refs

from bridger.data import PUBLISHED, RefCOCO, open_split, open_splits
from bridger.data.catalog import data_sets

REFS = [
    ref(0, "train", 3, 11, "the dog", " dog"),
    ref(1, "train", 4, 12),
    ref(2, "val", 5, 13),
    ref(3, "testA", 6, 14),
]
IMAGES = (3, 4, 5, 6)
# Where the annotations lie, and where the pictures do.
ORIGINALS = {
    "etris": ("refcoco", "images/train2014"),
    "refer": ("refcoco", "images/mscoco/images/train2014"),
    "flat": ("", ""),
    "flat with images": ("", "images"),
    "flat with train2014": ("", "train2014"),
}


def checked(data, refs, folder):
    """Compare a split with the entries that it was written from."""
    assert len(data) == len(refs)
    for sample, entry in zip(data, refs, strict=True):
        assert sample.image_path == folder / file_name(entry["image_id"])
        assert sample.picture == sample.image_path
        assert sample.sentences == tuple(s["sent"].strip() for s in entry["sentences"])
        assert sample.sent_ids == tuple(entry["sent_ids"])
        assert (sample.ref_id, sample.source) == (entry["ref_id"], "refcoco/unc")
        np.testing.assert_array_equal(sample.mask, mask_of(entry["ann_id"]))
    assert data.picture_keys() == [f"coco/{entry['image_id']}" for entry in refs]
    assert data.sentence_counts() == [len(entry["sentences"]) for entry in refs]


def strip(entry):
    said = [{**s, "sent": s["sent"].strip()} for s in entry["sentences"]]
    return {**entry, "sentences": said}


@pytest.mark.parametrize("layout", ORIGINALS)
def test_original_files_are_found(tmp_path, layout):
    annotations, pictures = ORIGINALS[layout]
    refs = [strip(entry) for entry in REFS]
    write_refs(tmp_path / annotations / "refs(unc).p", refs)
    write_pictures(tmp_path / pictures, IMAGES)
    assert data_sets(tmp_path) == ["refcoco"]
    splits = open_splits(tmp_path)
    assert set(splits) == {"train", "val", "testA"}
    for split, data in splits.items():
        assert (data.name, data.split) == ("refcoco/unc", split)
        checked(data, [r for r in refs if r["split"] == split], tmp_path / pictures)
    for data in (open_split(tmp_path, "train"), RefCOCO(tmp_path, "train")):
        checked(data, refs[:2], tmp_path / pictures)
        assert data[0].ann_ids == (11,) and data[0].size == (6, 8)


def test_what_etris_preparation_leaves_is_read(tmp_path):
    write_prepared(tmp_path, "refcoco", REFS)
    write_pictures(tmp_path / "images" / "train2014", IMAGES)
    assert data_sets(tmp_path) == ["refcoco"]
    splits = open_splits(tmp_path, None, "refcoco")
    assert set(splits) == {"train", "val", "testA"}
    for split, data in splits.items():
        wanted = [r for r in REFS if r["split"] == split]
        checked(data, wanted, tmp_path / "images" / "train2014")
    with pytest.raises(ValueError, match="no split 'testB'; it has testA, train, val"):
        open_split(tmp_path, "testB")
    (tmp_path / "masks" / "refcoco" / "1.png").unlink()
    data = open_split(tmp_path, "train")
    assert data[0].mask.any()
    with pytest.raises(FileNotFoundError, match=r"ref 1 of refcoco/unc: .*1\.png"):
        _ = data[1].mask
    (tmp_path / "anns" / "refcoco" / "train.json").write_text('[{"img_name": "a.jpg"}]')
    with pytest.raises(ValueError, match=r"train\.json is not what ETRIS' preparation writes"):
        open_split(tmp_path, "train")
    shutil.rmtree(tmp_path / "masks")
    with pytest.raises(FileNotFoundError, match=r"the masks are missing(.|\n)*masks.refcoco"):
        open_split(tmp_path, "val")


def test_the_original_files_come_before_the_prepared_ones(tmp_path):
    write_prepared(tmp_path, "refcoco", REFS[:1])
    write_refs(tmp_path / "refcoco" / "refs(unc).p", REFS)
    write_pictures(tmp_path / "images" / "train2014", IMAGES)
    assert len(open_split(tmp_path, "train")) == 2


def test_both_splits_of_g_ref_are_told_apart(tmp_path):
    google = [ref(0, "train", 3, 21), ref(1, "val", 3, 22)]
    write_refs(tmp_path / "refcocog" / "refs(umd).p", [ref(0, "train", 3, 11), REFS[1]])
    write_pictures(tmp_path / "images" / "train2014", IMAGES)
    assert open_split(tmp_path, "train").name == "refcocog/umd"
    write_refs(tmp_path / "refcocog" / "refs(google).p", google)
    umd = open_split(tmp_path, "train", "refcocog")
    assert umd.name == "refcocog/umd" and umd[0].ann_ids == (11,)
    data = open_split(tmp_path, "train", "refcocog/google")
    assert data.name == "refcocog/google" and data[0].ann_ids == (21,)
    with pytest.raises(ValueError, match="several data sets: .*refcocog, refcocog/google"):
        open_split(tmp_path, "train")
    (tmp_path / "refcocog" / "refs(umd).p").unlink()
    assert open_split(tmp_path, "val").name == "refcocog/google"


def test_prepared_g_ref_has_names_of_its_own(tmp_path):
    write_prepared(tmp_path, "refcocog_u", REFS[:2])
    write_prepared(tmp_path, "refcocog_g", REFS[1:2])
    write_pictures(tmp_path / "images" / "train2014", IMAGES)
    assert data_sets(tmp_path) == ["refcocog", "refcocog/google"]
    assert len(open_split(tmp_path, "train", "refcocog")) == 2
    assert len(open_split(tmp_path, "train", "refcocog/google")) == 1


def test_refs_in_the_root_are_what_the_folder_is_called(tmp_path):
    for name in ("refcoco", "refcoco+", "data"):
        write_refs(tmp_path / name / "refs(unc).p", REFS)
        write_pictures(tmp_path / name, IMAGES)
    assert data_sets(tmp_path / "data") == ["refcoco"]
    assert open_split(tmp_path / "refcoco+", "val").name == "refcoco+/unc"
    assert open_split(tmp_path / "data", "val", "refcoco+").name == "refcoco+/unc"
    # The folder above holds both of those that have their names.
    assert data_sets(tmp_path) == ["refcoco", "refcoco+"]


def test_a_folder_of_ones_own_is_recognised(tmp_path):
    write_pictures(tmp_path, (3,))
    line = {"image": file_name(3), "sentence": "the dog", "box": [0, 0, 2, 2]}
    (tmp_path / "train.jsonl").write_text(json.dumps(line) + "\n")
    assert data_sets(tmp_path) == ["folder"]
    for data in (open_split(tmp_path, "train"), open_splits(tmp_path)["train"]):
        assert data[0].sentences == ("the dog",) and data[0].mask.sum() == 4
    write_refs(tmp_path / "refcoco" / "refs(unc).p", REFS)
    with pytest.raises(ValueError, match="several data sets: say which of refcoco, folder"):
        open_split(tmp_path, "train")
    assert len(open_split(tmp_path, "train", "folder")) == 1


def test_what_is_missing_is_said_with_every_place(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no data set(.|\n)*refs\(unc\)\.p"):
        open_split(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        open_split(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError) as raised:
        open_split(tmp_path, "train", "refcocog")
    for place in ("refcocog/refs(umd).p", "refs(umd).p", "anns/refcocog_u/<split>.json"):
        assert str(tmp_path / place) in str(raised.value)
    write_refs(tmp_path / "refcoco" / "refs(unc).p", REFS)
    with pytest.raises(FileNotFoundError) as raised:
        open_split(tmp_path, "train")
    for place in ("images/train2014", "images/mscoco/images/train2014", "train2014", "images", ""):
        assert f"  {tmp_path / place}\n" in f"{raised.value}\n"
    (tmp_path / "refcoco" / "instances.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"refcoco.instances\.json"):
        open_split(tmp_path, "train")
    with pytest.raises(ValueError, match="no data set 'refcocog/umd': did you mean"):
        open_split(tmp_path, "train", "refcocog/umd")


def test_published_counts_add_up():
    counts = {name: known.splits for name, known in PUBLISHED.items()}
    # The same refs and sentences of G-Ref, split twice; totals that papers quote.
    umd, google = counts["refcocog"].values(), counts["refcocog/google"].values()
    assert [sum(column) for column in zip(*umd, strict=True)] == [49822, 95010]
    assert [sum(column) for column in zip(*google, strict=True)] == [49822, 95010]
    assert sum(sentences for _, sentences in counts["refcoco+"].values()) == 141564
    assert sum(sentences for _, sentences in counts["refcoco"].values()) == 142210
    assert set(counts["grefcoco"].values()) == {(None, None)}


def test_an_empty_list_that_etris_leaves_for_google_s_test_is_no_split(tmp_path):
    refs = [ref(0, "train", 3, 11), ref(1, "val", 4, 12)]
    write_prepared(tmp_path, "refcocog_g", refs)
    write_pictures(tmp_path / "images" / "train2014", (3, 4))
    (tmp_path / "anns" / "refcocog_g" / "test.json").write_text("[]")
    assert set(open_splits(tmp_path, dataset="refcocog/google")) == {"train", "val"}


def test_the_name_of_a_folder_is_known_from_inside(tmp_path, monkeypatch):
    folder = tmp_path / "refcoco+"
    write_refs(folder / "refs(unc).p", REFS)
    write_pictures(folder, IMAGES)
    monkeypatch.chdir(folder)
    assert data_sets(".") == ["refcoco+"]


@pytest.mark.parametrize("split", ["../../escaped", "/etc/x", "", "a b"])
def test_splits_cannot_be_paths(tmp_path, split):
    write_refs(tmp_path / "refcoco" / "refs(unc).p", [ref(0, split, 3, 11)])
    write_pictures(tmp_path / "images" / "train2014", (3,))
    with pytest.raises(ValueError, match="no name of a split"):
        open_splits(tmp_path)
