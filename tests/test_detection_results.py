"""Detection: results in the pictures' own pixels, chunks and templates."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers_boxes import (
    CLASSES,
    SIZE,
    asked,
    make,
    named,
    results,
    shaken,
    small_processor,
)
from PIL import Image

import bridger
from bridger.answering import answer
from bridger.heads import BoxOutput, DetectionHead
from bridger.heads.pairs import Pairs
from bridger.predictions import DetectionPrediction, Prediction
from bridger.processing import Processor
from bridger.warp import Placement


@pytest.fixture(scope="module")
def processor() -> Processor:
    return small_processor()


def planted(head: DetectionHead, *found: tuple[int, int, list[float], float]) -> BoxOutput:
    """An output of one picture, one row a class, that holds (class, cell, edges, logit)."""
    output = head(asked([0, 1, 2], [0, 1, 2], batch=1))
    output.logits.fill_(-20)
    output.centerness.fill_(20)
    output.regression.zero_()
    for label, cell, edges, logit in found:
        output.logits[0, label, cell] = logit
        output.regression[0, label, cell] = torch.tensor(edges) / 8
    return output


@torch.no_grad()
def test_boxes_come_back_in_the_pictures_own_pixels(processor: Processor) -> None:
    # Cell 27 is the fourth of the third row: its middle is at 28, 20.
    output = planted(make(DetectionHead), (1, 27, [10, 4, 20, 8], 1.0), (2, 3, [0, 4, 2, 1], 3.0))
    place = Placement.fit((160, 300), SIZE)  # 96 x 51.2 of it: borders above and below
    head = make(DetectionHead)
    (found,) = head.results(output, processor, [place], named(*CLASSES), threshold=0.0, most=1)
    assert found.names == CLASSES and found.size == (160, 300)
    # The better one lies in the border above the picture.
    assert found.labels.tolist() == [1]
    score = math.sqrt(1 / (1 + math.exp(-1.0)) / (1 + math.exp(-20)))
    assert found.scores[0] == pytest.approx(score, abs=1e-5)
    expected = place.boxes_into_input(torch.from_numpy(found.boxes))
    torch.testing.assert_close(expected, torch.tensor([[18.0, 16, 48, 28]]), atol=1e-3, rtol=0)


@torch.no_grad()
def test_boxes_are_cut_at_the_picture_and_ordered_by_score(processor: Processor) -> None:
    head = make(DetectionHead)
    output = planted(
        head, (0, 0, [90, 90, 9, 9], 0.5), (0, 30, [5, 5, 5, 5], 2.0), (2, 30, [6, 5, 5, 5], 1.0)
    )
    (found,) = results(head, output, processor, threshold=0.3)
    assert found.labels.tolist() == [0, 2, 0]  # boxes of two classes may lie on each other
    assert found.boxes[2].tolist() == [0, 0, 13, 13]
    (named_once,) = results(head, output, processor, threshold=0.3, agnostic=True)
    assert named_once.labels.tolist() == [0, 0]
    assert len(results(head, output, processor, threshold=0.9)[0]) == 1
    nothing = results(head, output, processor, threshold=1.0)[0]
    assert len(nothing) == 0 and nothing.found() == [] and nothing.boxes.shape == (0, 4)


@torch.no_grad()
def test_what_several_templates_find_is_merged(processor: Processor) -> None:
    head, given = make(DetectionHead), asked([0, 1, 2, 3], [0, 0, 1, 1], batch=1)
    output = head(given)
    assert output.logits.shape[:2] == (1, 4) and output.regression.shape[:2] == (1, 4)
    output.logits.fill_(-20)
    output.centerness.fill_(20)
    output.regression.zero_()
    for pair, (logit, width) in enumerate([(1.0, 2.0), (2.0, 2.1), (0.0, 2.0), (0.5, 2.0)]):
        cell = 30 if pair < 3 else 60  # the second class is found in two places
        output.logits[0, pair, cell] = logit
        output.regression[0, pair, cell] = width
    (found,) = results(head, output, processor)
    assert found.labels.tolist() == [0, 1, 1]
    assert found.scores[0] == pytest.approx(math.sqrt(1 / (1 + math.exp(-2))), abs=1e-4)


@torch.no_grad()
def test_chunks_of_classes_are_merged(processor: Processor) -> None:
    head, given = make(DetectionHead), asked([0, 0, 1, 2], [0, 1, 2, 2])
    whole = head(given)

    def chunk(rows: list[int], first: int) -> BoxOutput:
        mentions = given.mentions
        own = torch.isin(mentions.rows, torch.tensor(rows))
        every = torch.tensor([b * 3 + row for b in range(2) for row in rows])
        part: BoxOutput = head(
            replace(
                given,
                maps=tuple(m[every] for m in given.maps),
                tokens=given.tokens[every],
                token_mask=given.token_mask[every],
                sentence=given.sentence[every],
                num_expressions=len(rows),
                mentions=type(mentions)(
                    mentions.rows[own] - rows[0],
                    mentions.classes[own] - first,
                    mentions.tokens[:, own],
                    int(mentions.classes[own].max()) - first + 1,
                ),
            )
        )
        return part

    merged = head.merge([chunk([0], 0), chunk([1, 2], 2)])
    torch.testing.assert_close(merged.logits, whole.logits)
    for a, b in zip(
        *(results(head, o, processor, threshold=0.0) for o in (merged, whole)), strict=True
    ):
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-4)
        np.testing.assert_array_equal(a.labels, b.labels)
    assert merged.pairs.num_classes == 3 and set(a.labels) == {0, 1, 2}


def test_a_long_fixed_list_is_asked_in_chunks() -> None:
    vision, text, processor = bridger.load_tiny_clip()
    names = tuple(f"thing {i}" for i in range(80))  # more than `ROWS_AT_ONCE`
    model = bridger.attach_bridgers(vision, text).with_head(
        DetectionHead, width=32, num_convs=1, classes=names, scores="fixed"
    )
    model.processor = processor
    head = shaken(model.heads["head"])
    with torch.no_grad():
        head.parts.classification_head.cls_logits.bias.copy_(torch.randn(80))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8))
    asked_at_once = head.texts(processor, None)
    pixels, _ = processor.images([picture])
    chunked, whole = (
        answer(model.eval(), "head", pixels, asked_at_once, rows_at_once=n) for n in (64, 100)
    )
    torch.testing.assert_close(chunked.logits, whole.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(chunked.regression, whole.regression, atol=1e-4, rtol=1e-4)
    assert chunked.pairs.classes.tolist() == list(range(80)) == chunked.pairs.rows.tolist()
    options = {"threshold": 0.0, "agnostic": False, "most": 1000}
    first, second = (model.predict(picture, rows_at_once=n, **options) for n in (64, 100))
    assert first.names == names and first.labels.max() >= 64
    assert len(first) == len(second)
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-4)


def test_pairs_find_their_slots_and_join() -> None:
    mentions = asked([1, 0, 1, 1, 2], [0, 1, 1, 1, 0]).mentions
    assert mentions is not None
    pairs, pair_of = Pairs.of(mentions, 3)
    assert list(zip(pairs.classes.tolist(), pairs.rows.tolist(), strict=True)) == [
        (0, 1), (0, 2), (1, 0), (1, 1)
    ]  # fmt: skip
    assert pair_of.tolist() == [0, 2, 3, 3, 1]
    assert pairs.class_of.tolist() == [[1, -1], [0, 1], [0, -1]]
    assert pairs.slot_of.tolist() == [[-1, 0], [0, 1], [0, -1]]
    values = torch.randn(2, 4, 5)
    assert torch.equal(pairs.per_pair(pairs.per_row(values, 7)), values)
    joined = Pairs.join([pairs, pairs])
    assert joined.classes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert joined.rows.tolist() == [1, 2, 0, 1, 4, 5, 3, 4] and joined.num_rows == 6


# The prediction.


def prediction() -> DetectionPrediction:
    return DetectionPrediction(
        np.array([[10, 30, 40, 60], [50, 0, 90.5, 22]], np.float32),
        np.array([0.75, 0.5], np.float32),
        np.array([1, 0]),
        ("owl", "bus"),
        (64, 96),
    )


def test_a_prediction_is_plain_numbers_and_cocos_format() -> None:
    found = json.loads(json.dumps(prediction().found()))
    assert found[0] == {"words": "bus", "score": 0.75, "box": [10, 30, 40, 60]}
    coco = json.loads(json.dumps(prediction().to_coco(7, [11, 22])))
    assert coco[1] == {"image_id": 7, "category_id": 11, "bbox": [50, 0, 40.5, 22], "score": 0.5}
    with pytest.raises(ValueError, match="2 names need as many category_ids, got 1"):
        prediction().to_coco(7, [11])


def test_an_overlay_shows_boxes_and_names() -> None:
    picture = Image.new("RGB", (96, 64), (10, 60, 10))
    drawn = prediction().overlay(picture, least_side=480)
    assert drawn.size == (480, 320)
    pixels = np.asarray(drawn).astype(int)
    for index, colour in ((0, bridger.predictions.COLOURS[1]), (1, bridger.predictions.COLOURS[0])):
        x0, y0, x1, y1 = (prediction().boxes[index] * 5).round().astype(int)
        same = abs(pixels - colour).sum(axis=2) < 30
        assert same[y0 + 30 : y1 - 8, x0 : x0 + 3].mean() > 0.5  # the left edge
        plate = same[max(0, y0 - 30) : y0 + 30, x0:x1]
        assert plate.sum() > 400  # and the plate with the name
        assert not same[y0 + 40 : y1 - 8, x0 + 10 : x1 - 10].any()  # the inside stays as it was
    with pytest.raises(ValueError, match="96 x 64 pixels, this one has 64 x 96"):
        prediction().overlay(picture.rotate(90, expand=True))


def test_scores_of_1_are_written_like_others_and_left_out_when_asked() -> None:
    picture, one = Image.new("RGB", (96, 64)), np.ones(1, np.float32)
    box = np.array([[10, 30, 90, 60]], np.float32)
    mask = np.zeros((1, 64, 96), np.float32)
    mask[:, 20:40] = 1
    detected = DetectionPrediction(box, one, np.zeros(1, np.int64), ("owl",), (64, 96))
    masked = Prediction.from_probabilities(mask, 0.5)
    assert masked.scores.tolist() == [1]
    for overlay in (detected.overlay, partial(masked.overlay, words="owl")):
        usual, shown, plain = (
            np.asarray(overlay(picture, **options))
            for options in ({}, {"scores": True}, {"scores": False})
        )
        assert np.array_equal(usual, shown) and not np.array_equal(shown, plain)
    plain, worse = (
        np.asarray(replace(detected, scores=score * one).overlay(picture, scores=False))
        for score in (1, 0.5)
    )
    assert np.array_equal(plain, worse)


def test_names_of_boxes_in_one_place_stand_below_each_other() -> None:
    several = DetectionPrediction(
        np.array([[30, 30, 60, 60]] * 3, np.float32),
        np.array([0.5, 0.9, 0.7], np.float32),
        np.arange(3),
        CLASSES,
        SIZE,
    )
    pixels = np.asarray(several.overlay(Image.new("RGB", SIZE[::-1]), least_side=480)).astype(int)
    tops = []
    for colour in bridger.predictions.COLOURS[:3]:
        plate = (abs(pixels - colour).sum(axis=2) < 30)[:, 155:].sum(axis=1) > 30
        rows = np.flatnonzero(plate[: 5 * 50])
        assert len(rows) > 15
        tops.append(rows[0])
    assert tops[1] < tops[2] < tops[0]  # the best one's first
