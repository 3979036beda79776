"""Detection: torchvision's losses and boxes on bridged maps, texts of classes, what counts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_boxes import (
    CLASSES,
    FIXED,
    SIZE,
    asked,
    boxes,
    joint,
    labels,
    make,
    results,
    small_processor,
    torchvision_fcos,
)
from helpers_heads import SPEC
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou, sigmoid_focal_loss

import bridger
from bridger.answering import answer
from bridger.data.scenes import Scene, make_scene
from bridger.heads import BoxOutput, DetectionHead
from bridger.heads.box_labels import NEVER
from bridger.processing import Processor
from bridger.texts import Texts


@pytest.fixture(scope="module")
def processor() -> Processor:
    return small_processor()


def summed(output: BoxOutput) -> dict[str, float]:
    assert output.loss is not None
    assert output.loss.item() == pytest.approx(sum(x.item() for x in output.losses.values()))
    return {name: loss.item() for name, loss in output.losses.items()}


# The same numbers as torchvision's.


def test_losses_are_those_of_torchvisions_fcos() -> None:
    head, given = make(DetectionHead, **FIXED), joint()
    fcos = torchvision_fcos(head, given).train()
    expected = fcos([torch.rand(3, *SIZE)] * 2, labels())
    found = summed(head(given, labels()))
    assert found["classification"] == pytest.approx(expected["classification"].item(), rel=1e-5)
    assert found["boxes"] == pytest.approx(expected["bbox_regression"].item(), rel=1e-5)
    assert found["centerness"] == pytest.approx(expected["bbox_ctrness"].item(), rel=1e-5)
    assert min(found.values()) > 0.01


@pytest.mark.parametrize(("threshold", "nms", "most"), [(0.0, 0.6, 100), (0.05, 0.3, 7)])
def test_boxes_are_those_of_torchvisions_fcos(
    processor: Processor, threshold: float, nms: float, most: int
) -> None:
    head, given = make(DetectionHead, **FIXED), joint()
    options = {"score_thresh": threshold, "nms_thresh": nms, "detections_per_img": most}
    expected = torchvision_fcos(head, given, **options).eval()([torch.rand(3, *SIZE)] * 2)
    found = results(head, head(given), processor, threshold=threshold, nms=nms, most=most)
    for ours, theirs in zip(found, expected, strict=True):
        area = (theirs["boxes"][:, :2] < theirs["boxes"][:, 2:]).all(dim=1)
        assert 3 < len(ours) <= most
        np.testing.assert_allclose(ours.boxes, theirs["boxes"][area].detach(), atol=1e-4)
        np.testing.assert_allclose(ours.scores, theirs["scores"][area].detach(), atol=1e-6)
        np.testing.assert_array_equal(ours.labels, theirs["labels"][area])


# Scores by text.


def test_a_cell_is_compared_with_the_mean_text_of_the_class_in_its_row() -> None:
    rows, classes = [0, 0, 0, 1], [1, 0, 1, 1]  # class 1 twice in row 0 and once in row 1
    head, given = make(DetectionHead), asked(rows, classes, batch=1)
    output = head(given)
    assert output.pairs.classes.tolist() == [0, 1, 1] and output.pairs.rows.tolist() == [0, 0, 1]
    texts = []
    for mention, row in enumerate(rows):
        token = given.tokens[row, mention % 3]
        layer = head.text_embedding
        texts.append(layer.sentence(given.sentence[row]) + layer.tokens(token))
    cells = head.parts(head.pyramid(list(given.maps), given.sentence))["cls_logits"]
    pairs = [(0, texts[1]), (0, (texts[0] + texts[2]) / 2), (1, texts[3])]
    for found, (row, text) in zip(output.logits[0], pairs, strict=True):
        cosines = torch.stack(
            [torch.dot(F.normalize(c, dim=0), text / text.norm()) for c in cells[row]]
        )
        torch.testing.assert_close(found, head.log_scale.exp() * cosines + head.bias)


def test_a_fresh_head_starts_from_the_prior_of_focal_loss() -> None:
    output = DetectionHead.from_spec(SPEC)(joint())
    assert output.logits.sigmoid().median().item() == pytest.approx(0.01, abs=0.01)
    # FCOS's strides 8, 16 and 32 on 64 x 96 pixels.
    assert output.logits.shape == (2, 3, 8 * 12 + 4 * 6 + 2 * 3)


def test_the_words_of_a_row_move_its_boxes_without_any_bridger() -> None:
    head, given = make(DetectionHead), asked([0, 1], [0, 1], batch=1)
    same = replace(given, maps=tuple(m[:1].repeat(2, 1, 1, 1) for m in given.maps))
    first, second = head(same).regression[0]
    assert not torch.allclose(first, second)
    head.pyramid.gate[1].weight.data.zero_()
    first, second = head(same).regression[0]
    assert torch.allclose(first, second)


def test_one_class_is_the_same_packed_and_apart() -> None:
    model = bridger.attach_bridgers(*bridger.load_tiny_clip()[:2]).with_head(
        DetectionHead, width=32
    )
    model.processor = bridger.load_tiny_clip()[2]
    head, scene = model.heads["head"], make_scene("train", 0)
    pixels, place = model.processor.images([scene.image])
    found = []
    for mode in ("separate", "joint"):
        texts = Texts.of_classes(model.processor, ["owl"], mode)
        output = answer(model.eval(), "head", pixels, texts)
        found.append(head.results(output, model.processor, place, texts, threshold=0.0)[0])
    np.testing.assert_allclose(found[0].boxes, found[1].boxes, atol=1e-3)
    np.testing.assert_allclose(found[0].scores, found[1].scores, atol=1e-5)
    assert len(found[0]) > 3


# What must not count, does not.


def test_the_logit_of_what_is_not_asked_costs_nothing() -> None:
    logit = torch.tensor([NEVER], requires_grad=True)
    loss = sigmoid_focal_loss(logit, torch.zeros(1), reduction="sum")
    loss.backward()
    assert loss.item() == 0 and logit.grad is not None and logit.grad.item() == 0
    assert logit.sigmoid().item() == 0


def test_pictures_without_objects_cost_the_focal_loss_of_what_is_asked() -> None:
    head, given = make(DetectionHead), asked([0, 0, 1], [0, 2, 1])  # one row has an empty slot
    output = head(given, [boxes(), boxes()])
    zeros = torch.zeros_like(output.logits)
    expected = sigmoid_focal_loss(output.logits, zeros, reduction="sum").item()
    assert summed(output) == pytest.approx(
        {"classification": expected, "boxes": 0, "centerness": 0}, rel=1e-5
    )
    output.loss.backward()
    gradients = [p.grad for p in head.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_each_row_is_compared_with_the_boxes_of_its_own_classes() -> None:
    """Rows are independent: sums over rows, once the cells that are matched are multiplied out."""
    head, given = make(DetectionHead), asked([0, 0, 1], [0, 2, 1], batch=1)
    whole = summed(head(given, labels()[:1]))
    parts, cells = [], []
    for row, kept in ((0, [0, 2]), (1, [1])):
        one = replace(
            given,
            maps=tuple(m[row : row + 1] for m in given.maps),
            tokens=given.tokens[row : row + 1],
            sentence=given.sentence[row : row + 1],
            num_expressions=1,
            mentions=replace(
                given.mentions,
                rows=torch.zeros(len(kept), dtype=torch.int64),
                classes=torch.arange(len(kept)),
                tokens=given.mentions.tokens[:, [0, 1] if row == 0 else [2]],
                num_classes=len(kept),
            ),
        )
        given_boxes = labels()[0]
        mine = torch.isin(given_boxes["labels"], torch.tensor(kept))
        target = {
            "boxes": given_boxes["boxes"][mine],
            "labels": torch.tensor([kept.index(k) for k in given_boxes["labels"][mine].tolist()]),
        }
        output = head(one, [target])
        parts.append(summed(output))
        cells.append(_matched(output, target["boxes"]))
    for name, value in whole.items():
        mean = sum(p[name] * n for p, n in zip(parts, cells, strict=True)) / sum(cells)
        assert value == pytest.approx(mean, rel=1e-4)


def _matched(output: BoxOutput, objects: Tensor) -> int:
    """Count the cells that FCOS's rules give to some box, written out."""
    count = 0
    for level, squares in enumerate(output.anchors):
        side = squares[0, 2] - squares[0, 0]
        x, y = ((squares[:, :2] + squares[:, 2:]) / 2).T[:, :, None]
        x0, y0, x1, y1 = objects.T
        edges = torch.stack([x - x0, y - y0, x1 - x, y1 - y])
        middle = torch.maximum((x - (x0 + x1) / 2).abs(), (y - (y0 + y1) / 2).abs())
        low = 0 if level == 0 else 4 * side
        high = math.inf if level == len(output.anchors) - 1 else 8 * side
        far = edges.amax(0)
        fits = (edges.amin(0) > 0) & (middle < 1.5 * side) & (far > low) & (far < high)
        count += int(fits.any(dim=1).sum())
    return count


def test_padding_takes_no_part_and_finds_nothing(processor: Processor) -> None:
    head, given = make(DetectionHead), asked([0, 1, 2], [0, 1, 2])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    nowhere = replace(given, maps=tuple(m.clone() for m in given.maps))
    for m in nowhere.maps:
        m[5] = 100 * torch.randn_like(m[5])  # the row that is padding
    first, second = head(given, labels(), mask), head(nowhere, labels(), mask)
    torch.testing.assert_close(first.loss, second.loss)
    assert not torch.allclose(first.loss, head(given, labels()).loss)
    assert (first.logits[1, 2] == NEVER).all() and (first.logits[1, :2] != NEVER).all()
    found = results(head, first, processor, threshold=0.0)
    assert set(found[0].labels) == {0, 1, 2} and set(found[1].labels) == {0, 1}
    with pytest.raises(ValueError, match="picture 1: box 0 has label 2.*expression_mask is false"):
        head(given, [labels()[0], boxes((1, 1, 9, 9), labels=[2])], mask)


@pytest.mark.parametrize("scores", ["fixed", "text"])
def test_a_crowd_is_neither_object_nor_background_for_its_class(scores: str) -> None:
    head = make(DetectionHead, classes=CLASSES, scores=scores)
    given, crowd = joint(batch=1), boxes((0, 0, 48, 64), labels=[1])
    output = head(given, [{**crowd, "crowd": torch.tensor([True])}])
    middles = torch.cat([(a[:, :2] + a[:, 2:]) / 2 for a in output.anchors])
    counted = torch.ones_like(output.logits)
    counted[:, 1, middles[:, 0] < 48] = 0
    focal = sigmoid_focal_loss(output.logits, torch.zeros_like(output.logits))
    assert summed(output) == pytest.approx(
        {"classification": (focal * counted).sum().item(), "boxes": 0, "centerness": 0}, rel=1e-5
    )


def test_an_object_within_a_crowd_still_counts() -> None:
    head, given = make(DetectionHead), joint(batch=1)
    both = boxes((8, 8, 40, 40), (0, 0, 96, 64), labels=[1, 1])
    output = head(given, [{**both, "crowd": torch.tensor([False, True])}])
    plain = head(given, [boxes((8, 8, 40, 40), labels=[1])])
    for name in ("boxes", "centerness"):
        assert output.losses[name].item() == pytest.approx(plain.losses[name].item())
    # Of class 1 only the object's own cells are left, as objects; of the others all, as ground.
    cells = _matched(output, both["boxes"][:1])
    focal = sigmoid_focal_loss(output.logits, torch.zeros_like(output.logits))
    others = focal[:, [0, 2]].sum()
    own = output.losses["classification"] * cells - others
    squares = torch.cat(output.anchors)
    x, y = ((squares[:, :2] + squares[:, 2:]) / 2).T
    near = torch.maximum((x - 24).abs(), (y - 24).abs()) < 1.5 * 8
    near[len(output.anchors[0]) :] = False  # farther edges than 32 are the next level's
    assert int(near.sum()) == cells > 3
    hits = sigmoid_focal_loss(output.logits[0, 1, near], torch.ones(cells), reduction="sum")
    assert own.item() == pytest.approx(hits.item(), rel=1e-3)


def test_boxes_smaller_than_a_cell_train_without_harm() -> None:
    head = make(DetectionHead)
    tiny = boxes((0, 0, 1, 1), (3.5, 3.5, 4.5, 4.5), (95, 63, 96, 64))
    output = head(joint(), [tiny, boxes((10, 10, 10.01, 60), labels=[0])])
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)
    assert output.losses["centerness"].item() > 0  # the middle of cell 0, 0 lies in the second


# Half precision, saving, learning.


@pytest.mark.parametrize("options", [FIXED, {}])
def test_autocast_comes_near(options: dict[str, Any]) -> None:
    head, given = make(DetectionHead, **options), joint()
    exact = head(given, labels())
    with torch.autocast("cpu", torch.bfloat16):
        rough = head(given, labels())
    assert rough.logits.dtype == rough.regression.dtype == torch.float32
    assert rough.loss.item() == pytest.approx(exact.loss.item(), rel=0.05)
    rough.loss.backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("scores", ["text", "fixed"])
def test_saved_and_loaded_it_finds_the_same(scores: str, tmp_path: Path) -> None:
    vision, text, processor = bridger.load_tiny_clip()
    classes = (("owl", "bird of the night"), "bus")
    model = bridger.attach_bridgers(vision, text).with_head(
        DetectionHead, width=32, classes=classes, scores=scores
    )
    model.processor = processor
    with torch.no_grad():
        for parameter in model.heads["head"].parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "adapter")
    again = bridger.BridgedModel.from_pretrained(
        tmp_path / "adapter", *bridger.load_tiny_clip()[:2]
    )
    assert again.heads["head"].config == model.heads["head"].config
    again.processor = processor
    image = make_scene("train", 0).image
    first, second = (m.predict(image, threshold=0.0) for m in (model, again))
    assert first.names == ("owl", "bus") and len(first) > 3
    np.testing.assert_array_equal(first.boxes, second.boxes)
    np.testing.assert_array_equal(first.scores, second.scores)


def scene_labels(scene: Scene, names: list[str]) -> dict[str, Tensor]:
    rows = [(x, y, x + w, y + h) for x, y, w, h in (o.box for o in scene.objects)]
    return boxes(*rows, labels=[names.index(o.kind.name) for o in scene.objects])


@pytest.mark.slow
def test_four_scenes_are_learned_by_heart() -> None:
    vision, text, processor = bridger.load_tiny_clip()
    model = bridger.attach_bridgers(vision, text).with_head(
        DetectionHead, width=64, text_mode="joint"
    )
    model.processor = processor
    scenes = [make_scene("train", i) for i in range(4)]
    names = sorted({thing.kind.name for scene in scenes for thing in scene.objects})
    pixels, _ = processor.images([scene.image for scene in scenes])
    given = model.heads["head"].texts(processor, names).batch(len(scenes))
    targets = [scene_labels(scene, names) for scene in scenes]
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=60)
    model.train()
    for _ in range(60):
        model(pixels, labels=targets, **given).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.trainable_parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    for scene, target in zip(scenes, targets, strict=True):
        found = model.predict(scene.image, names)
        overlaps = box_iou(target["boxes"], torch.from_numpy(found.boxes))
        same = target["labels"][:, None] == torch.from_numpy(found.labels)
        assert (torch.where(same, overlaps, 0).amax(dim=1) > 0.5).all()
        assert len(found) == len(target["boxes"])
