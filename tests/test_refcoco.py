"""The reader of RefCOCO's format, and the collators."""

from __future__ import annotations

import json
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from helpers_coco import box_mask, runs
from PIL import Image

from bridger.data import RaggedRefCollator, RefCOCO, RefCollator
from bridger.data.masks import decode_mask

SIZE = 16
WORDS = ["[pad]", "[unk]", "[sos]", "[eos]", "the", "red", "dog", "left", "owl"]


def word_processor():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from bridger.processing import Processor

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[unk]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[sos] $A [eos]", special_tokens=[("[sos]", 2), ("[eos]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[pad]", unk_token="[unk]", eos_token="[eos]"
    )
    return Processor(SIZE, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), tokenizer, 8)


@pytest.fixture(scope="module")
def processor():
    return word_processor()


REFS = [
    # ref, annotation, image, split, sentences
    (0, 11, 1, "train", ["the red dog", "dog", "left dog", "the dog left"]),
    (1, 12, 1, "train", ["owl"]),
    (2, 13, 2, "train", ["the owl", "red owl"]),
    (3, 14, 2, "val", ["the dog"]),
]
IMAGES = {1: ("COCO_train2014_000000000001.jpg", 12, 20), 2: ("a.jpg", 30, 10)}
BOXES = {11: (2, 3, 8, 9), 12: (0, 10, 12, 20), 13: (5, 1, 20, 7), 14: (0, 0, 3, 3)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two pictures with four refs, in RefCOCO's layout."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "refcoco").mkdir()
    (folder / "images" / "train2014").mkdir(parents=True)
    images, annotations, refs, sent_id = [], [], [], 100
    rng = np.random.default_rng(0)
    for number, (name, height, width) in IMAGES.items():
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / "train2014" / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
    for ref_id, ann_id, image_id, split, sentences in REFS:
        name, height, width = IMAGES[image_id]
        mask = box_mask(height, width, *BOXES[ann_id])
        segmentation = {"size": [height, width], "counts": runs(mask)}
        annotations.append({"id": ann_id, "image_id": image_id, "segmentation": segmentation})
        said = [
            {"sent_id": sent_id + i, "sent": s, "raw": s, "tokens": s.split()}
            for i, s in enumerate(sentences)
        ]
        sent_id += len(sentences)
        refs.append(
            {
                "ref_id": ref_id,
                "ann_id": ann_id,
                "image_id": image_id,
                "split": split,
                "file_name": name.replace(".jpg", f"_{ann_id}.jpg"),
                "sentences": said,
                "sent_ids": [s["sent_id"] for s in said],
            }
        )
    with open(folder / "refcoco" / "refs(unc).p", "wb") as file:
        pickle.dump(refs, file, protocol=2)
    instances = {"images": images, "annotations": annotations}
    (folder / "refcoco" / "instances.json").write_text(json.dumps(instances))
    return folder


# The reader.


def test_refs_of_a_split(root):
    data = RefCOCO(root, "train")
    assert len(data) == 3 and len(RefCOCO(root, "val")) == 1
    assert "3 refs, 7 expressions" in repr(data)
    sample = data[0]
    assert sample.image_path == root / "images" / "train2014" / IMAGES[1][0]
    assert sample.image_path.is_file()
    assert sample.sentences == ("the red dog", "dog", "left dog", "the dog left")
    assert (sample.ref_id, sample.ann_ids, sample.source) == (0, (11,), "refcoco/unc")
    assert sample.sent_ids == (100, 101, 102, 103)
    assert sample.mask.dtype == np.uint8
    np.testing.assert_array_equal(sample.mask, box_mask(12, 20, *BOXES[11]))
    np.testing.assert_array_equal(data[-1].mask, box_mask(30, 10, *BOXES[13]))
    assert [s.ref_id for s in data] == [0, 1, 2]


def test_every_expression_is_listed(root):
    expected = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (2, 1)]
    assert RefCOCO(root, "train").expressions() == expected


def test_refs_are_grouped_by_picture(root):
    assert RefCOCO(root, "train").pictures() == [[0, 1], [2]]


def test_sentences_are_drawn_evenly_and_repeatably(root):
    data = RefCOCO(root, "train")
    drawn = [data.sentence_of(0, epoch, seed=3) for epoch in range(400)]
    assert drawn == [RefCOCO(root, "train").sentence_of(0, e, seed=3) for e in range(400)]
    counts = Counter(drawn)
    assert set(counts) == set(data[0].sentences) and min(counts.values()) > 60
    assert drawn != [data.sentence_of(0, epoch, seed=4) for epoch in range(400)]
    assert data.sentence_of(1, 17) == "owl"


def test_what_is_missing_is_named_with_the_places_looked_at(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"refcoco.refs\(unc\)\.p\n(.|\n)*anns.refcoco"):
        RefCOCO(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=r"refcocog.refs\(umd\)\.p"):
        RefCOCO(root, "train", dataset="refcocog", split_by="umd")
    with pytest.raises(ValueError, match="no split 'testC'; it has train, val"):
        RefCOCO(root, "testC")
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        RefCOCO(tmp_path / "nowhere", "train")


@pytest.mark.parametrize("kind", ["runs", "compressed text", "compressed bytes", "polygons"])
def test_every_kind_of_mask_is_decoded(kind):
    rle = pytest.importorskip("pycocotools.mask")
    mask = box_mask(9, 14, 2, 3, 6, 5) | box_mask(9, 14, 1, 8, 8, 13)
    if kind == "runs":
        segmentation = {"size": [9, 14], "counts": runs(mask)}
    elif kind == "polygons":
        # Corners between pixels; the line of two corners covers nothing.
        boxes = [(3, 2, 5, 6), (8, 1, 13, 8)]
        segmentation = [[a, b, c, b, c, d, a, d] for a, b, c, d in boxes] + [[0, 0, 14, 9]]
    else:
        segmentation = rle.encode(np.asfortranarray(mask))
        if kind == "compressed text":
            segmentation["counts"] = segmentation["counts"].decode()
    np.testing.assert_array_equal(decode_mask(segmentation, 9, 14), mask)


def test_masks_that_cannot_be():
    assert decode_mask([], 4, 5).shape == (4, 5) and not decode_mask([[1, 1, 2, 2]], 4, 5).any()
    with pytest.raises(ValueError, match=r"\[4, 5\] but its picture is \[5, 4\]"):
        decode_mask({"size": [4, 5], "counts": [20]}, 5, 4)


def test_scenes_are_read_back(tmp_path):
    scenes = pytest.importorskip("bridger.data.scenes")
    scenes.write_scenes(tmp_path, {"val": 2}, size=48, seed=5)
    data = RefCOCO(tmp_path, "val")
    original = [scenes.make_scene("val", i, seed=5, size=48) for i in range(2)]
    said = {e.sentence for scene in original for e in scene.expressions}
    assert {s for sample in data for s in sample.sentences} == said
    first = next(s for s in data if s.image_path == data[0].image_path)
    target = next(e.target for e in original[0].expressions if e.sentence == first.sentences[0])
    np.testing.assert_array_equal(first.mask, original[0].objects[target].mask)


# Collators.


def test_a_batch_is_what_the_processor_makes_of_each(root, processor):
    data = RefCOCO(root, "train")
    collate = RefCollator(processor, seed=1)
    for epoch in range(3):  # the second time from the cache
        collate.set_epoch(epoch)
        assert collate.epoch == epoch
        batch = collate(list(data))
        assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels"}
        words = processor.text([data.sentence_of(i, epoch, seed=1) for i in range(3)])
        for name, ids in words.items():
            torch.testing.assert_close(batch[name], ids)
        for i, sample in enumerate(data):
            pixels, placement = processor.image(sample.image_path)
            torch.testing.assert_close(batch["pixel_values"][i], pixels)
            expected = processor.target(sample.mask, placement)
            torch.testing.assert_close(batch["labels"][i], expected)


def test_pictures_are_read_once_with_a_cache(root, processor, monkeypatch):
    data = RefCOCO(root, "train")
    read = []
    fit = type(processor).fit
    monkeypatch.setattr(type(processor), "fit", lambda self, x: read.append(x) or fit(self, x))
    collators = {
        2: RefCollator(processor),
        6: RefCollator(processor, cache=False),
        # room for one picture and the mask of one ref
        3: RefCollator(processor, cache=4 * SIZE * SIZE),
    }
    for expected, collate in collators.items():
        read.clear()
        first = collate([data[0], data[1], data[2]])
        second = collate([data[0], data[1], data[2]])
        assert len(read) == expected, expected
        torch.testing.assert_close(first["pixel_values"], second["pixel_values"])
        torch.testing.assert_close(first["labels"], second["labels"])


def test_without_an_epoch_visits_are_counted(root, processor):
    data = RefCOCO(root, "train")
    collate = RefCollator(processor, seed=2)
    assert collate.epoch is None
    drawn = [collate.sentence(data[0]) for _ in range(30)]
    assert drawn == [data.sentence_of(0, epoch, seed=2) for epoch in range(30)]
    first = RefCollator(processor, draw_sentences=False)
    assert {first.sentence(data[0]) for _ in range(5)} == {"the red dog"}
    with pytest.raises(ValueError, match="from 0"):
        collate.set_epoch(-2)


@pytest.mark.slow
def test_workers_follow_the_epoch(root, processor):
    data = RefCOCO(root, "train")
    collate = RefCollator(processor)
    loader = torch.utils.data.DataLoader(
        data, batch_size=3, num_workers=1, persistent_workers=True, collate_fn=collate
    )
    for epoch in (5, 2, 9):
        collate.set_epoch(epoch)
        batch = next(iter(loader))
        expected = processor.text([data.sentence_of(i, epoch) for i in range(3)])
        torch.testing.assert_close(batch["input_ids"], expected["input_ids"])


def test_ragged_batches(root, processor):
    data = RefCOCO(root, "train")
    batch = RaggedRefCollator(processor)([data[0], data[2]])
    assert batch["pixel_values"].shape == (2, 3, SIZE, SIZE)
    assert batch["expression_mask"].tolist() == [[True] * 4, [True, True, False, False]]
    assert batch["labels"].shape == (2, 4, SIZE, SIZE)
    words = processor.text([*data[0].sentences, *data[2].sentences, "red owl", "red owl"])
    for name, ids in words.items():
        torch.testing.assert_close(batch[name].flatten(0, 1), ids)
    for i, sample in enumerate((data[0], data[2])):
        _, placement = processor.image(sample.image_path)
        for j in range(4):
            expected = processor.target(sample.mask, placement) * batch["expression_mask"][i, j]
            torch.testing.assert_close(batch["labels"][i, j], expected)


def test_ragged_batches_of_several_refs_of_a_picture(root, processor):
    data = RefCOCO(root, "train")
    batch = RaggedRefCollator(processor)([[data[0], data[1]], [data[2]]])
    assert batch["expression_mask"].sum(1).tolist() == [5, 2]
    _, placement = processor.image(data[1].image_path)
    torch.testing.assert_close(batch["labels"][0, 4], processor.target(data[1].mask, placement))
    with pytest.raises(ValueError, match="one picture"):
        RaggedRefCollator(processor)([[data[0], data[2]]])
    with pytest.raises(ValueError, match="one picture"):
        RaggedRefCollator(processor)([[]])


def test_ragged_batches_draw_the_most_they_may(root, processor):
    data = RefCOCO(root, "train")
    collate = RaggedRefCollator(processor, most=2)
    seen = Counter()
    whole = processor.text(list(data[0].sentences))["input_ids"]
    for _ in range(40):
        batch = collate([data[0]])
        assert batch["input_ids"].shape[:2] == (1, 2) and batch["expression_mask"].all()
        rows = [tuple(row[row != 0].tolist()) for row in batch["input_ids"][0]]
        assert len(set(rows)) == 2
        seen.update(rows)
    assert set(seen) == {tuple(row[row != 0].tolist()) for row in whole}
    with pytest.raises(ValueError, match="at least 1"):
        RaggedRefCollator(processor, most=0)
