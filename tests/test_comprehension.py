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
            best = int(scores.argmax())
            x0, y0, x1, y1 = squares[best]
            left, up, right, down = output.regression[b, n, best] * (x1 - x0)
            middle = ((x0 + x1) / 2, (y0 + y1) / 2)
            box = torch.stack(
                [middle[0] - left, middle[1] - up, middle[0] + right, middle[1] + down]
            )
            box = box.clamp(min=0).minimum(torch.tensor([96.0, 64, 96, 64]))
            expected = place.boxes_out_of_input(box)
            np.testing.assert_allclose(prediction.boxes[n], expected, atol=1e-3)
            assert prediction.scores[n] == pytest.approx(scores[best].item(), abs=1e-5)


def test_there_is_one_box_even_where_nothing_is_likely(processor: Processor) -> None:
    head = make(ComprehensionHead)
    with torch.no_grad():
        head.bias.fill_(-1e3)
        output = head(features(batch=1, expressions=2, image_size=SIZE))
        (found,) = head.results(
            output, processor, [Placement.fit((9, 200), SIZE)], named(*NAMES[:2])
        )
    assert len(found) == 2 and found.labels.tolist() == [0, 1]
    assert (found.boxes[:, 2:] <= [200, 9]).all() and (found.boxes >= 0).all()


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
