"""The classification head's losses, bad input, training, saving, and what it predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_classification import (
    ANIMALS,
    APART,
    POOLED,
    SMALL,
    given,
    head_of,
    tiny,
)
from helpers_heads import SPEC
from helpers_towers import PAIRS, ids, images
from torch import Tensor, nn

import bridger
from bridger import BridgedModel, attach_bridgers
from bridger.class_phrases import ClassPhrases
from bridger.data.scenes import make_scene
from bridger.heads import ClassificationConfig, ClassificationHead, HeadOutput
from bridger.heads.class_losses import multi_label_loss, one_label_loss
from bridger.labels import IGNORE
from bridger.predictions import ClassificationPrediction
from bridger.texts import Texts

# Losses.


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_torchs(smoothing: float) -> None:
    seen = given(batch=3)
    head = head_of(label_smoothing=smoothing)
    labels = torch.tensor([2, IGNORE, 0])
    out = head(seen, labels)
    expected = F.cross_entropy(out.logits, labels, ignore_index=IGNORE, label_smoothing=smoothing)
    torch.testing.assert_close(out.loss, expected)
    assert head(seen, torch.full((3,), IGNORE)).loss == 0
    many = head_of(multi_label=True, label_smoothing=smoothing)
    target = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0.3, 1, 0]])
    out = many(seen, target)
    softened = target + smoothing * (0.5 - target)
    expected = F.binary_cross_entropy_with_logits(out.logits, softened)
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize("multi_label", [False, True])
def test_classes_that_are_padding_never_win_nor_count(multi_label: bool) -> None:
    head = head_of(multi_label=multi_label, label_smoothing=0.1)
    seen, mask = given(batch=1), torch.tensor([[True, True, False]])
    row = replace(
        seen,
        maps=tuple(m[:2] for m in seen.maps),
        tokens=seen.tokens[:2],
        token_mask=seen.token_mask[:2],
        sentence=seen.sentence[:2],
        pooled=None if seen.pooled is None else seen.pooled[:2],
        num_expressions=2,
    )
    labels = torch.tensor([[0.0, 1.0, 0.0]]) if multi_label else torch.tensor([1])
    out, short = head(seen, labels, mask), head(row, labels[..., :2])
    torch.testing.assert_close(out.logits[:, :2], short.logits)
    assert head.probabilities(out.logits)[0, 2] == 0
    torch.testing.assert_close(out.loss, short.loss)
    out.loss.backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_every_picture_may_be_asked_about_classes_of_its_own() -> None:
    model, pixels = tiny(noise=0.05), images(2, 128)
    assert model.processor is not None
    phrases = ClassPhrases(model.processor, ANIMALS)
    own = phrases.batch([[(2, 0), (0, 0)], [(1, 0), (2, 0), (0, 0)]])
    with torch.no_grad():
        logits = model(pixels, **own, labels=torch.tensor([1, 2])).logits
        every = asked_logits(model, pixels, phrases)
    expected = torch.stack([every[0, [2, 0, 0]], every[1, [1, 2, 0]]])
    expected[0, 2] = -math.inf
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def asked_logits(model: BridgedModel, pixels: Tensor, phrases: ClassPhrases) -> Tensor:
    """Scores of all classes in their order."""
    words, mentions = phrases.separate()
    return model(pixels, words["input_ids"].expand(2, -1, -1), mentions=mentions).logits


@pytest.mark.parametrize(
    ("options", "labels", "error", "words"),
    [
        ({}, torch.tensor([0, 3]), ValueError, r"between 0 and 2.*\[0, 3\]"),
        ({}, torch.tensor([0, -1]), ValueError, "between 0 and 2"),
        ({}, torch.tensor([0]), ValueError, r"\(2,\), found \(1,\)"),
        ({}, torch.tensor([[0], [1]]), ValueError, r"found \(2, 1\)"),
        ({}, torch.tensor([0.0, 1.0]), TypeError, "float32.*multi_label=True"),
        ({}, torch.tensor([2, 0]), ValueError, "only padding"),
        ({"multi_label": True}, torch.tensor([0, 1]), TypeError, "float from 0 to 1.*int64"),
        ({}, [0, 1], TypeError, "tensor of class numbers.*got list"),
        ({"multi_label": True}, np.ones((2, 3)), TypeError, "tensor of numbers.*got ndarray"),
        ({"multi_label": True}, torch.zeros(2, 4), ValueError, r"\(2, 3\).*found \(2, 4\)"),
        ({"multi_label": True}, torch.full((2, 3), 1.5), ValueError, "between 0 and 1"),
        ({"multi_label": True}, torch.full((2, 3), math.nan), ValueError, "between 0 and 1"),
        ({"multi_label": True}, torch.ones(2, 3), ValueError, "only padding"),
    ],
)
def test_bad_labels(
    options: Mapping[str, Any], labels: Any, error: type[Exception], words: str
) -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    with pytest.raises(error, match=words):
        head_of(**options)(given(), labels, mask)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"scores": "txt"}, ValueError, "did you mean 'text'"),
        ({"scores": "fixed"}, ValueError, "say which, classes="),
        ({"classes": ("owl", "owl")}, ValueError, "stands twice"),
        ({"classes": ("owl", "")}, ValueError, "empty name"),
        ({"classes": "owl"}, TypeError, "list of class names"),
        ({"templates": ("a picture",)}, ValueError, "must hold {} once"),
        ({"text_mode": "together"}, ValueError, "text_mode='together' is unknown"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing"),
        ({"logit_scale": 0.0}, ValueError, "logit_scale must be a positive number"),
        ({"logit_scale": "a"}, ValueError, "logit_scale must be a number"),
        ({"label_smoothing": "a"}, ValueError, "label_smoothing must be at least 0 and below 1"),
        ({"multi_label": "no"}, ValueError, "multi_label must be True or False, got 'no'"),
        ({"templates": None}, TypeError, "expected a list of templates.*None"),
        ({"width": 0}, ValueError, "width must be a positive integer, got 0"),
        ({"width": 3.5}, ValueError, "width must be a positive integer, got 3.5"),
        ({"temperature": 1.0}, ValueError, "no option 'temperature'"),
    ],
)
def test_bad_options(options: Mapping[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ClassificationHead.from_spec(POOLED, **options)


def test_labels_of_several_classes_may_be_bool() -> None:
    head, seen = head_of(multi_label=True), given()
    shown = torch.tensor([[True, False, True], [False, False, True]])
    found, expected = head(seen, shown).loss, head(seen, shown.float()).loss
    assert torch.equal(found, expected) and expected > 0


@pytest.mark.parametrize("multi_label", [False, True])
def test_compiled_code_does_not_look_at_labels(multi_label: bool) -> None:
    loss = multi_label_loss if multi_label else one_label_loss
    labels = (
        torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 1.0]]) if multi_label else torch.tensor([2, 0])
    )
    logits = torch.randn(2, 3)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    assert torch.equal(compiled(logits, labels, None, 0.1), loss(logits, labels, None, 0.1))


def test_features_of_other_towers_are_refused() -> None:
    with pytest.raises(ValueError, match="pooled feature of 12 channels, but got None"):
        head_of()(given(SPEC))
    with pytest.raises(ValueError, match="pooled feature of 12 channels, but got 18"):
        head_of()(given(replace(POOLED, pooled_width=18)))


# Training, saving, results.


@pytest.mark.parametrize("pair", ["open_clip_resnet", "hf_clip_plain", "hf_clip_whole"])
def test_a_step_moves_bridgers_and_head_alone(pair: str) -> None:
    bridged = attach_bridgers(*PAIRS[pair](), 2, SMALL)
    model = bridged.with_head(ClassificationHead, logit_scale=5.0)
    optimizer = torch.optim.SGD(model.trainable_parameters(), lr=0.1)
    model.train()
    pixels, words = images(2, 64 if "resnet" in pair else 32), ids(6).reshape(2, 3, -1)
    for _ in range(2):  # what lies behind zeros takes part from the second step on
        optimizer.zero_grad()
        model(pixels, words, labels=torch.tensor([0, 2])).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert (parameter.grad != 0).any() or "bridgers" in name, name
    bridgers: Any = model.encoder.bridgers
    assert sum((p.grad != 0).any().item() for p in bridgers.parameters()) > 10
    assert all(p.grad is None for p in model.frozen_towers().parameters())


@pytest.mark.parametrize("scores", ["text", "fixed"])
def test_bfloat16_autocast_gives_nearly_the_same_in_float32(scores: str) -> None:
    model = tiny(noise=0.02, classes=ANIMALS, scores=scores)
    assert model.processor is not None
    batch = model.heads["head"].texts(model.processor, None).batch(2)
    batch["pixel_values"], batch["labels"] = images(2, 128), torch.tensor([0, 2])
    plain = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**batch)
    assert out.logits.dtype == out.loss.dtype == torch.float32
    torch.testing.assert_close(
        out.logits.softmax(dim=-1), plain.logits.softmax(dim=-1), atol=0.1, rtol=0.1
    )
    out.loss.backward()


@pytest.mark.parametrize(
    "options",
    [
        {"classes": (("owl", "night bird"), "drum"), "multi_label": True},
        {"classes": ("owl", "drum"), "scores": "fixed", "text_mode": "joint"},
    ],
    ids=["text", "fixed"],
)
def test_saved_and_loaded_it_says_the_same(options: Mapping[str, Any], tmp_path: Path) -> None:
    model, picture = tiny(noise=0.05, **options), make_scene("val", 1).image
    expected = model.predict(picture)
    model.save_pretrained(tmp_path / "adapter")
    again = BridgedModel.from_pretrained(tmp_path / "adapter", *bridger.load_tiny_clip()[:2])
    assert again.heads["head"].config == model.heads["head"].config
    found = again.predict(picture)
    assert found.names == expected.names == ("owl", "drum")
    assert np.array_equal(found.probabilities, expected.probabilities)


def test_a_threshold_says_what_is_found() -> None:
    values = np.array([0.2, 0.7, 0.1, 0.7], np.float32)
    names = ("owl", "cat", "drum", "bee")
    one = ClassificationPrediction(names, values)
    assert one.label == "cat" and len(one) == 4
    assert [name for name, _ in one.top(3)] == ["cat", "bee", "owl"]
    assert len(one.top(9)) == 4
    assert one.found() == [{"words": "cat", "score": pytest.approx(0.7)}]
    many = ClassificationPrediction(names, values, threshold=0.2)
    assert [entry["words"] for entry in many.found()] == ["cat", "bee", "owl"]
    assert ClassificationPrediction(names, values, threshold=0.9).found() == []
    with pytest.raises(ValueError, match="k must be positive"):
        one.top(0)


def test_results_take_the_heads_threshold() -> None:
    texts = Texts(("owl", "cat"), torch.zeros(2, 3), torch.ones(2, 3))
    output = HeadOutput(torch.tensor([[2.0, -1.0], [0.1, 3.0]]))
    processor: Any = None
    single, many = head_of(), head_of(multi_label=True)
    first, second = single.results(output, processor, [], texts)
    assert (first.label, second.label) == ("owl", "cat") and first.threshold is None
    np.testing.assert_allclose(first.probabilities, output.logits[0].softmax(-1), rtol=1e-6)
    first, second = many.results(output, processor, [], texts)
    assert [entry["words"] for entry in first.found()] == ["owl"]
    assert [entry["words"] for entry in second.found()] == ["cat", "owl"]
    strict = many.results(output, processor, [], texts, threshold=0.9)
    assert [entry["words"] for entry in strict[1].found()] == ["cat"]


def test_the_overlay_shows_bars_as_long_as_probabilities() -> None:
    values = np.array([0.75, 0.25, 0.0], np.float32)
    said = ClassificationPrediction(
        ("owl", "a name that is far too long for its column", "x"), values
    )
    picture = np.full((60, 90, 3), 200, np.uint8)
    drawn = np.asarray(said.overlay(picture, top=2))
    height = round(512 * 60 / 90)
    assert drawn.shape[1] == 512 and drawn.shape[0] > height
    assert (drawn[: height - 2] == 200).all()
    rows = drawn.shape[0] - height
    middles = [height + rows // 4, height + 3 * rows // 4]
    orange = (drawn[middles[0]] == (255, 92, 57)).all(axis=1).sum()
    grey = (drawn[middles[1]] == (118, 124, 134)).all(axis=1).sum()
    assert orange == pytest.approx(3 * grey, abs=12) and orange > 100
    with pytest.raises(ValueError, match="k must be positive"):
        said.overlay(picture, top=0)


def test_the_config_comes_back_from_json() -> None:
    config = ClassificationConfig(classes=("owl", ("bee", "insect")), label_smoothing=0.1)
    assert ClassificationConfig.from_dict(config.to_dict()) == config
    assert isinstance(ClassificationHead.from_spec(APART).scores.image, nn.Linear)
