"""Mixed training: no picture that any data set in the folder validates or tests on."""

from __future__ import annotations

import json

import pytest
from helpers_coco import ref, write_pictures, write_prepared, write_refs
from helpers_words import word_tokenizer

from bridger.data import RefCollator, leaks, open_mixed, open_split
from bridger.processing import Processor

IMAGES = range(1, 13)
REFCOCO = [
    ref(0, "train", 1, 1),
    ref(1, "train", 2, 2),
    ref(2, "train", 3, 3),
    ref(3, "val", 4, 4),
    ref(4, "testA", 5, 5),
]
UMD = [
    ref(0, "train", 6, 31),  # as RefCOCO's first ref is called
    ref(1, "train", 4, 32),  # in RefCOCO's val
    ref(2, "val", 7, 33),
    ref(3, "test", 2, 34),  # in RefCOCO's train
    ref(4, "test", 2, 35),
]
GOOGLE = [
    ref(0, "train", 6, 31),
    ref(1, "train", 8, 36),  # in its own val
    ref(2, "train", 2, 34),  # in UMD's test
    ref(3, "val", 8, 37),
    ref(4, "train", 9, 38),
]


@pytest.fixture
def root(tmp_path):
    write_refs(tmp_path / "refcoco" / "refs(unc).p", REFCOCO)
    write_refs(tmp_path / "refcocog" / "refs(umd).p", UMD)
    write_pictures(tmp_path / "images" / "train2014", IMAGES)
    return tmp_path


def held_out(root, names, but=("train",)):
    """The pictures of all other splits, read one by one."""
    keys = set()
    for name, splits in names.items():
        for split in set(splits) - set(but):
            keys |= set(open_split(root, split, name).picture_keys())
    return keys


NAMES = {"refcoco": ("train", "val", "testA"), "refcocog": ("train", "val", "test")}


def test_held_out_pictures_are_left_out(root):
    mixed = open_mixed(root, "train", ["refcoco", "refcocog"])
    assert (mixed.name, mixed.split) == ("refcoco/unc + refcocog/umd", "train")
    assert [(s.source, s.ref_id) for s in mixed] == [
        ("refcoco/unc", 0),
        ("refcoco/unc", 2),
        ("refcocog/umd", 0),
    ]
    assert not set(mixed.picture_keys()) & held_out(root, NAMES)
    assert mixed.left_out == {
        "refcoco/unc val": 1,
        "refcoco/unc testA": 0,
        "refcocog/umd val": 0,
        "refcocog/umd test": 1,
    }
    parts = [open_split(root, "train", name) for name in NAMES]
    assert len(mixed) + sum(mixed.left_out.values()) == sum(map(len, parts))
    assert mixed.sentence_counts() == [len(s.sentences) for s in mixed]
    assert "3 refs, 3 expressions" in repr(mixed)
    assert mixed[-1].ref_id == 0 and mixed.pictures() == [[0], [1], [2]]
    assert mixed.sentence_of(2, epoch=1) == mixed[2].sentences[0]


def test_refs_of_one_id_are_told_apart(root):
    words = [f"sentence {i}" for i in range(5)]
    write_refs(root / "refcoco" / "refs(unc).p", [ref(0, "train", 1, 1, *words)])
    write_refs(root / "refcocog" / "refs(umd).p", [ref(0, "train", 6, 1, *words)])
    mixed = open_mixed(root, "train", ["refcoco", "refcocog"])
    first, second = mixed
    assert first.ref_id == second.ref_id and first.key != second.key
    collate = RefCollator(Processor(16, (0.5,) * 3, (0.2,) * 3, word_tokenizer(), 8), seed=3)
    drawn = [(collate.sentence(first), collate.sentence(second)) for _ in range(20)]
    # Each has visits of its own: the draws are those of its epochs, none left out.
    own = [mixed.sentence_of(0, epoch, seed=3) for epoch in range(20)]
    assert drawn == list(zip(own, own, strict=True)) and len(set(own)) > 2


def test_data_sets_that_are_not_trained_on_count_too(root):
    write_refs(root / "refcoco+" / "refs(unc).p", [ref(0, "testB", 1, 1), ref(1, "train", 3, 3)])
    write_prepared(root, "refcocog_g", [ref(0, "val", 6, 31)])
    mixed = open_mixed(root, "train", ["refcoco", "refcocog"])
    assert [(s.source, s.ref_id) for s in mixed] == [("refcoco/unc", 2)]
    assert mixed.left_out["refcoco+/unc testB"] == mixed.left_out["refcocog/google val"] == 1


def test_g_ref_by_google_is_kept_out_of_the_tests_of_umd(root):
    write_refs(root / "refcocog" / "refs(google).p", GOOGLE)
    alone = open_split(root, "train", "refcocog/google")
    assert [s.ref_id for s in alone] == [0, 1, 2, 4]
    val = open_split(root, "val", "refcocog/google")
    tests = [open_split(root, split, "refcocog") for split in ("val", "test")]
    assert leaks(alone, [val, *tests]) == {"refcocog/google val": 1, "refcocog/umd test": 1}
    mixed = open_mixed(root, "train", ["refcocog/google", "refcoco"])
    assert [(s.source, s.ref_id) for s in mixed] == [
        ("refcocog/google", 0),
        ("refcocog/google", 4),
        ("refcoco/unc", 0),
        ("refcoco/unc", 2),
    ]
    assert leaks(mixed, [val, *tests]) == {}
    # Counted are refs, not pictures, nor pairs of refs: UMD's test has two of picture 2.
    assert leaks(alone, [alone]) == {"refcocog/google train": 4}


def test_a_mixed_val_is_without_the_tests(root):
    write_refs(root / "refcoco+" / "refs(unc).p", [ref(0, "testB", 7, 1), ref(1, "val", 9, 3)])
    mixed = open_mixed(root, "val", ["refcocog", "refcoco"])
    assert [(s.source, s.ref_id) for s in mixed] == [("refcoco/unc", 3)]
    assert mixed.left_out["refcoco+/unc testB"] == 1
    assert not any(name.endswith((" val", " train")) for name in mixed.left_out)


def test_mixing_that_makes_no_sense(root):
    for names in (["refcoco"], ["refcoco", "refcoco"], []):
        with pytest.raises(ValueError, match="two or more different data sets"):
            open_mixed(root, "train", names)
    with pytest.raises(ValueError, match="'testA' is not mixed"):
        open_mixed(root, "testA", ["refcoco", "refcocog"])
    with pytest.raises(ValueError, match="no data set 'refcoko'"):
        open_mixed(root, "train", ["refcoco", "refcoko"])
    write_refs(root / "refcoco+" / "refs(unc).p", [ref(i, "val", i, i) for i in IMAGES])
    with pytest.raises(ValueError, match="every picture of .* train is held out"):
        open_mixed(root, "train", ["refcoco", "refcocog"])


def test_own_lines_on_coco_s_pictures_share_them_with_the_published_sets(root):
    line = {"sentence": "a", "box": [0, 0, 2, 2]}
    names = [f"images/train2014/COCO_train2014_{image:012d}.jpg" for image in (4, 5, 12)]
    text = "".join(json.dumps({"image": name, **line}) + "\n" for name in names)
    (root / "train.jsonl").write_text(text)
    mixed = open_mixed(root, "train", ["refcoco", "folder"])
    assert [key for key in mixed.picture_keys() if key == "coco/12"] == ["coco/12"]
    assert mixed.left_out["refcoco/unc val"] == mixed.left_out["refcoco/unc testA"] == 1
