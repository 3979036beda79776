"""RefCOCO's files with traps in them, and files that are not what they should be."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from helpers_coco import box_mask, file_name, mask_of, ref, runs, write_pictures, write_refs
from helpers_words import word_tokenizer
from PIL import Image

from bridger.data import RefCOCO, RefCollator
from bridger.data.masks import decode_mask
from bridger.processing import Processor

REFS = [ref(0, "train", 1, 11), ref(1, "train", 2, 12, "owl"), ref(2, "val", 2, 13, "the dog")]
MASK = box_mask(9, 14, 2, 3, 6, 5) | box_mask(9, 14, 1, 8, 8, 13)
TRAPS = [
    ref(0, "val", 1, 11, " ".join(f"word{i}" for i in range(60))),
    ref(1, "val", 1, 12, "der Bär", "黄色い犬"),
    ref(1, "val", 1, 13, "an id that is there twice"),
    ref(3, "val", 2, 14, "a pixel"),
    ref(4, "val", 3, 15, "on a picture that is missing"),
]
SIZES = {1: (9, 14), 2: (1, 1)}


@pytest.fixture
def root(tmp_path):
    write_refs(tmp_path / "refcoco" / "refs(unc).p", REFS)
    write_pictures(tmp_path / "images" / "train2014", (1, 2))
    return tmp_path


@pytest.fixture
def traps(tmp_path):
    """Files that are odd, but what they should be: every form of mask among them, and a crowd."""
    rle = pytest.importorskip("pycocotools.mask")
    write_refs(tmp_path / "refcoco" / "refs(unc).p", TRAPS)
    forms = {
        11: {"size": [9, 14], "counts": runs(MASK)},
        12: {"size": [9, 14], "counts": rle.encode(np.asfortranarray(MASK))["counts"].decode()},
        13: [[3, 2, 5, 2, 5, 6, 3, 6], [8, 1, 13, 1, 13, 8, 8, 8], [0, 0, 14, 9]],
        14: {"size": [1, 1], "counts": [0, 1]},
    }

    def change(whole):
        for annotation in whole["annotations"]:
            annotation["segmentation"] = forms.get(annotation["id"], annotation["segmentation"])
            annotation["iscrowd"] = int(annotation["id"] == 11)
        for image in whole["images"]:
            image["height"], image["width"] = SIZES.get(image["id"], (6, 8))

    change_instances(tmp_path, change)
    pictures = tmp_path / "images" / "train2014"
    pictures.mkdir(parents=True)
    for number, (height, width) in SIZES.items():
        Image.new("RGB", (width, height)).save(pictures / file_name(number))
    return tmp_path


def change_instances(root, change):
    path = root / "refcoco" / "instances.json"
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))


def test_files_with_traps_are_read(traps):
    data = RefCOCO(traps, "val")
    samples = list(data)
    assert [len(s.sentences) for s in samples] == [1, 2, 1, 1, 1] == data.sentence_counts()
    assert len(samples[0].sentences[0].split()) == 60
    assert samples[1].sentences == ("der Bär", "黄色い犬")
    for sample in samples[:3]:
        np.testing.assert_array_equal(sample.mask, MASK)
    assert samples[1].key != samples[2].key and samples[1].ref_id == samples[2].ref_id
    assert samples[3].mask.tolist() == [[1]]
    np.testing.assert_array_equal(samples[4].mask, mask_of(15))  # only its picture is missing


def test_traps_are_collated(traps):
    samples = list(RefCOCO(traps, "val"))
    collate = RefCollator(Processor(16, (0.5,) * 3, (0.2,) * 3, word_tokenizer(), 8))
    batch = collate(samples[:4])
    assert batch["pixel_values"].isfinite().all() and batch["input_ids"].shape == (4, 8)
    assert batch["labels"][3, 0, 0] == 1  # one pixel, blended with the border all around
    with pytest.raises(FileNotFoundError, match=r"ref 4 of refcoco/unc: .*00000000003\.jpg"):
        collate(samples[4:])


@pytest.mark.slow
def test_reading_does_not_depend_on_the_locale(traps):
    words = ascii(TRAPS[1]["sentences"][1]["sent"])
    code = (
        "import locale, sys; from bridger.data import RefCOCO\n"
        "assert locale.getpreferredencoding(False).upper() not in ('UTF-8', 'UTF8')\n"
        f"assert RefCOCO(sys.argv[1], 'val')[1].sentences[1] == {words}\n"
    )
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-c", code, str(traps)]
    subprocess.run(command, env=plain, check=True, timeout=300)


def test_only_what_a_split_needs_is_kept(root):
    data = RefCOCO(root, "val")
    held = pickle.dumps(data)
    assert b"the dog" in held and b"owl" not in held
    assert pickle.loads(held)[0] == data[0]
    assert len(held) < len(pickle.dumps(RefCOCO(root, "train")))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [6, 9], "counts": [54]}, r"\[6, 9\] but its picture is \[6, 8\]"),
        ({"size": [6, 8], "counts": [10, 20]}, "cover 30 pixels of 48"),
        ({"size": [6, 8], "counts": [-1, 49]}, "run lengths from -1"),
        ({"size": [6, 8], "counts": [10, 38.0]}, "neither polygons nor run lengths"),
        ({"size": [6, 8], "counts": []}, "cover 0 pixels of 48"),
        ({"size": [6, 8], "counts": ""}, "cover 0 pixels of 48"),
        ({"size": [6, 8], "counts": ":d0"}, "cover 30 pixels of 48"),  # 10, 20
        ({"size": [6, 8], "counts": "Oa1"}, "run lengths from -1 cover 48"),  # -1, 49
        ({"size": [6, 8], "counts": "d"}, "cut off"),
        ({"size": [6, 8], "counts": "`1\u00e9"}, "foreign characters"),
        ({"size": [6, 8], "counts": "PPPPPPPP1"}, "longer than any picture"),
        ({"size": [6, 8]}, "neither polygons nor run lengths"),
        (None, "neither polygons nor run lengths"),
        (7, "neither polygons nor run lengths"),
    ],
)
def test_a_broken_mask_is_told_with_its_ref(root, segmentation, message):
    def change(whole):
        for annotation in whole["annotations"]:
            if annotation["id"] == 12:
                annotation["segmentation"] = segmentation

    change_instances(root, change)
    data = RefCOCO(root, "train")
    assert data[0].mask.any()
    with pytest.raises(ValueError, match=rf"ref 1 of refcoco/unc: .*{message}"):
        _ = data[1].mask


def test_compressed_run_lengths_are_read_as_pycocotools_writes_them():
    rle = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    longest = 0
    for height, width in [(1, 1), (1, 40), (40, 1), *rng.integers(2, 60, (60, 2)), (700, 900)]:
        height, width = int(height), int(width)
        coarse = rng.random((height // 5 + 1, width // 7 + 1)) < rng.random()
        noise = rng.random((height, width)) < 0.01
        blocks = np.kron(coarse, np.ones((5, 7), bool))[:height, :width]
        for pixels in (blocks, blocks ^ noise, noise, noise | True, noise & False):
            mask = pixels.astype(np.uint8)
            counts = rle.encode(np.asfortranarray(mask))["counts"]
            for form in (counts, counts.decode()):
                found = decode_mask({"size": [height, width], "counts": form}, height, width)
                assert found.dtype == np.uint8 and found.flags.c_contiguous
                np.testing.assert_array_equal(found, mask)
            for end in rng.integers(0, len(counts), 3):
                cut = {"size": [height, width], "counts": counts[:end]}
                with pytest.raises(ValueError, match=r"cover \d+ pixels of|cut off"):
                    decode_mask(cut, height, width)
            longest = max(longest, len(counts))
    assert longest > 10_000


def lose(key):
    return lambda whole: whole.update({key: []})


def move(whole):
    for annotation in whole["annotations"]:
        annotation["image_id"] = 3 - annotation["image_id"]


@pytest.mark.parametrize("change", [lose("images"), lose("annotations"), move])
def test_annotations_that_do_not_fit_the_refs_are_refused(root, change):
    change_instances(root, change)
    with pytest.raises(ValueError, match=r"ref 0 needs image 1 with annotations \[11\].*same rel"):
        RefCOCO(root, "train")


def test_broken_instances_are_refused(root):
    instances = root / "refcoco" / "instances.json"
    whole = instances.read_text()
    for text in (whole[: len(whole) // 2], "", "\x00"):
        instances.write_text(text)
        with pytest.raises(ValueError, match=r"instances\.json is not a whole JSON file"):
            RefCOCO(root, "train")
    instances.write_text('{"annotations": [{"no": "id"}], "images": []}')
    with pytest.raises(ValueError, match=r"instances\.json has an entry that is not like COCO's"):
        RefCOCO(root, "train")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": 1}, "holds a dict, expected a list"),
        ([{"split": "train"}], "entry 0: not a ref .*ann_id"),
        ([REFS[0], {**REFS[0], "sentences": []}], "entry 1: .*no sentence"),
        ([], "no split 'train'; it has none"),
        (REFS[2:], "no split 'train'; it has val"),
    ],
)
def test_refs_that_are_not_what_they_should_be(root, entries, message):
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(entries))
    with pytest.raises(ValueError, match=rf"refs\(unc\)\.p.*{message}"):
        RefCOCO(root, "train")
