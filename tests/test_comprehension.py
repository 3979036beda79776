"""Referring comprehension: one box for each expression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers_boxes import SIZE, boxes, make, named, small_processor
from helpers_heads import SPEC, features
from torchvision.ops import box_iou

import bridger
from bridger.answering import answer
from bridger.data.scenes import make_scene
from bridger.heads import ComprehensionHead, DetectionHead, get_head
from bridger.processing import Processor
from bridger.texts import Texts
from bridger.warp import Placement

NAMES = ("the owl on the left", "a bus", "the other owl")


def targets() -> list[Any]:
    return [
        boxes((3, 5, 30, 44), (3, 5, 30, 44), (50, 0, 96, 64)),  # two sentences for one object
        boxes((8, 8, 40, 40), (20, 10, 60, 60), (70, 30, 82, 44), labels=[2, 0, 1]),
    ]


@pytest.fixture(scope="module")
def processor() -> Processor:
    return small_processor()


def test_it_is_detection_with_a_class_for_each_expression() -> None:
    head = make(ComprehensionHead)
    detection = DetectionHead.from_spec(SPEC).eval()
    detection.load_state_dict(head.state_dict())
    given = features(expressions=3, image_size=SIZE)
    found, expected = head(given, targets()), detection(given, targets())
    torch.testing.assert_close(found.loss, expected.loss)
    assert torch.equal(found.logits, expected.logits) and found.logits.shape[:2] == (2, 3)
    assert get_head("referring_comprehension") is ComprehensionHead
    assert ComprehensionHead.text == "expressions" and DetectionHead.text == "classes"


@torch.no_grad()
def test_each_expression_gets_its_best_cell(processor: Processor) -> None:
    head, place = make(ComprehensionHead), Placement.fit((32, 48), SIZE)
    output = head(features(expressions=3, image_size=SIZE))
    found = head.results(output, processor, [place] * 2, named(*NAMES))
    squares = torch.cat(output.anchors)
    for b, prediction in enumerate(found):
        assert prediction.names == NAMES and prediction.labels.tolist() == [0, 1, 2]
        assert prediction.boxes.shape == (3, 4) and prediction.size == (32, 48)
        for n in range(3):
            scores = (output.logits[b, n].sigmoid() * output.centerness[b, n].sigmoid()).sqrt()
            left, up, right, down = (output.regression[b, n] * (squares[:, 2:3] - squares[:, :1])).T
            x, y = ((squares[:, :2] + squares[:, 2:]) / 2).T
            cells = torch.stack([x - left, y - up, x + right, y + down], dim=1)
            cells = cells.clamp(min=0).minimum(torch.tensor([96.0, 64, 96, 64]))
            expected = place.boxes_out_of_input(cells)
            empty = (expected[:, :2] >= expected[:, 2:]).any(dim=1)  # a fresh box may have no area
            best = int(scores.masked_fill(empty, -1).argmax())
            np.testing.assert_allclose(prediction.boxes[n], expected[best], atol=1e-3)
            assert prediction.scores[n] == pytest.approx(scores[best].item(), abs=1e-5)


@torch.no_grad()
def test_a_cell_in_the_border_wins_only_where_no_other_has_a_box(processor: Processor) -> None:
    head, place = make(ComprehensionHead), Placement.fit((32, 96), SIZE)  # 16 above and below
    output = head(features(batch=1, expressions=2, image_size=SIZE))
    output.logits.fill_(-20)
    output.centerness.fill_(20)
    output.regression.zero_()
    for n, cell, logit in ((0, 3, 3.0), (0, 4, 2.0), (0, 40, 1.0), (0, 41, 0.5), (1, 3, 3.0)):
        output.logits[0, n, cell] = logit
        output.regression[0, n, cell] = 0.5  # each box is its cell of 8 pixels
    (found,) = head.results(output, processor, [place], named(*NAMES[:2]))
    # Cells 3 and 4 lie in the first row, cell 40 is the fifth of the fourth row.
    np.testing.assert_allclose(found.boxes[0], [32, 8, 40, 16], atol=1e-4)
    assert found.scores[0] == pytest.approx(1 / (1 + np.exp(-1.0)) ** 0.5, abs=1e-4)
    # The other has no box in the picture at all: the best cell it is.
    assert found.scores[1] == pytest.approx(1 / (1 + np.exp(-3.0)) ** 0.5, abs=1e-4)
    assert found.boxes[1, 1] == found.boxes[1, 3] == 0
    assert found.labels.tolist() == [0, 1]


def test_padding_needs_no_box_and_costs_nothing() -> None:
    head, given = make(ComprehensionHead), features(expressions=3, image_size=SIZE)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    fewer = [targets()[0], boxes((8, 8, 40, 40), (20, 10, 60, 60), labels=[2, 0])]
    padded = head(given, fewer, mask)
    for m in given.maps:
        m[4] = 50 * torch.randn_like(m[4])
    torch.testing.assert_close(head(given, fewer, mask).loss, padded.loss)
    with pytest.raises(ValueError, match="picture 1: expression 1 must have exactly one box"):
        head(given, fewer)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (boxes((1, 1, 9, 9), (1, 1, 9, 9)), "picture 1: expression 2 must have exactly one box.*0"),
        (boxes(*[(1, 1, 9, 9)] * 4, labels=[0, 1, 2, 1]), "expression 1 must have exactly one.*2"),
        (boxes(*[(1, 1, 9, 9)] * 3, labels=[0, 1, 3]), "label 3, .*none of 0 to 2"),
    ],
)
def test_expressions_without_one_box_are_refused(bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(ComprehensionHead)(features(expressions=3, image_size=SIZE), [targets()[0], bad])


def test_predict_takes_sentences_and_chunks_agree() -> None:
    vision, text, processor = bridger.load_tiny_clip()
    model = bridger.attach_bridgers(vision, text).with_head(ComprehensionHead, width=32).eval()
    model.processor = processor
    scene = make_scene("train", 0)
    words = [e.sentence for e in scene.expressions]
    found = model.predict(scene.image, words)
    assert found.names == tuple(words) and len(found) == len(words) > 1
    one = model.predict(scene.image, words, rows_at_once=1)
    np.testing.assert_allclose(one.boxes, found.boxes, atol=1e-2)
    assert one.labels.tolist() == found.labels.tolist()
    pixels, _ = processor.images([scene.image])
    asked_once = Texts.of_sentences(processor, words)
    output = answer(model, "head", pixels, asked_once)
    assert output.logits.shape[:2] == (1, len(words))
    with pytest.raises(ValueError, match="say what to look for"):
        model.predict(scene.image)


@pytest.mark.slow
def test_sentences_about_two_scenes_are_learned_by_heart() -> None:
    vision, text, processor = bridger.load_tiny_clip()
    model = bridger.attach_bridgers(vision, text).with_head(ComprehensionHead, width=64)
    model.processor = processor
    scenes = [make_scene("train", i) for i in range(2)]
    said = [list({e.target: e for e in scene.expressions}.values())[:3] for scene in scenes]
    assert all(len(sentences) == 3 for sentences in said)  # about three objects each
    corners = [
        [[x, y, x + w, y + h] for x, y, w, h in (scene.objects[e.target].box for e in sentences)]
        for scene, sentences in zip(scenes, said, strict=True)
    ]
    words = processor.text([e.sentence for sentences in said for e in sentences])
    given = {name: tensor.unflatten(0, (2, 3)) for name, tensor in words.items()}
    pixels, _ = processor.images([scene.image for scene in scenes])
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=1e-3)
    model.train()
    for _ in range(60):
        model(pixels, **given, labels=[boxes(*rows) for rows in corners]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.trainable_parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    for scene, sentences, rows in zip(scenes, said, corners, strict=True):
        found = model.predict(scene.image, [e.sentence for e in sentences])
        overlaps = box_iou(torch.tensor(rows).float(), torch.from_numpy(found.boxes))
        assert (overlaps.diag() > 0.5).all()
