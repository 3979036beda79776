"""What the semantic head predicts: labels, regions, in a saved model, and after learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_towers import PAIRS
from helpers_words import word_tokenizer
from torch import Tensor

from bridger import BridgedModel, BridgerConfig, Processor, attach_bridgers
from bridger.class_phrases import ClassPhrases
from bridger.data.scene_labels import make_labelled_scene, scene_classes
from bridger.heads import SemanticSegmentationHead
from bridger.labels import BACKGROUND
from bridger.predictions import SemanticPrediction
from bridger.predictions.maps import PictureMaps, Piece
from bridger.predictions.overlay import colours_of
from bridger.processing import Placement
from bridger.tiny_clip import load_tiny_clip

SMALL = {"width": 32, "num_heads": 4, "num_layers": 1, "dropout": 0.0}


def maps_of(probabilities: Tensor, size: tuple[int, int] = (4, 6)) -> PictureMaps:
    """Maps whose cells are the picture's pixels."""
    placement = Placement.fit(size, size)
    return PictureMaps((Piece(probabilities, placement),), size, lambda cells, _: cells.numpy())


def test_a_pixel_gets_its_most_probable_class_or_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = 2 * torch.randn(5, 4, 6) - 1
    p = torch.cat([logits, torch.zeros(1, 4, 6)]).softmax(dim=0)
    expected = p.argmax(dim=0).numpy()
    expected[expected == 5] = BACKGROUND
    names = list("abcde")
    whole = SemanticPrediction.single_label(maps_of(p[:5]), names, background=True)
    assert np.array_equal(whole.labels, expected) and (expected == BACKGROUND).any()
    monkeypatch.setattr("bridger.predictions.maps.CELLS_AT_ONCE", 2 * 24)
    chunked = SemanticPrediction.single_label(maps_of(p[:5]), names, background=True)
    assert np.array_equal(chunked.labels, expected)
    assert np.array_equal(chunked.scores, whole.scores)
    for entry in whole.found():
        inside = expected == names.index(entry["words"])
        assert entry["share"] == pytest.approx(inside.mean())
        score = p[names.index(entry["words"])].numpy()[inside].mean()
        assert entry["score"] == pytest.approx(score)
    assert len(whole.found()) == len(set(expected.flatten()) - {BACKGROUND})
    assert json.dumps(whole.found())

    none = SemanticPrediction.single_label(maps_of(p[:5]), names, background=False)
    assert np.array_equal(none.labels, p[:5].argmax(dim=0).numpy())
    sure = SemanticPrediction.single_label(maps_of(p[:5]), names, False, threshold=0.6)
    best = p[:5].amax(dim=0).numpy()
    assert np.array_equal(sure.labels, np.where(best > 0.6, none.labels, BACKGROUND))
    assert np.array_equal(whole.probabilities, p[:5].numpy())


def test_a_pixel_may_belong_to_several_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    p = torch.rand(3, 4, 6)
    p[2] *= 0.5
    monkeypatch.setattr("bridger.predictions.maps.CELLS_AT_ONCE", 24)
    found = SemanticPrediction.multi_label(maps_of(p), "abc", 0.5)
    assert np.array_equal(found.masks, p.numpy() > 0.5)
    best = np.where(p.amax(dim=0) > 0.5, p.argmax(dim=0), BACKGROUND)
    assert np.array_equal(found.labels, best)
    assert found.shares == pytest.approx((p.numpy() > 0.5).mean(axis=(1, 2)))
    assert found.scores[0] == pytest.approx(p[0][p[0] > 0.5].mean())
    assert found.scores[2] == 0
    assert [entry["words"] for entry in found.found()] in (["a", "b"], ["b", "a"])


def test_regions_of_many_classes_are_made_when_asked_for() -> None:
    made = []

    def restore(cells: Tensor, _: Placement) -> Any:
        made.append(len(cells))
        return cells.numpy()

    p = torch.rand(7, 4, 6)
    pieces = (Piece(p, Placement.fit((4, 6), (4, 6))),)
    found = SemanticPrediction.multi_label(PictureMaps(pieces, (4, 6), restore), "abcdefg", 0.5)
    assert all(np.ndim(part) < 3 for name, part in vars(found).items() if name != "maps")
    made.clear()
    assert np.array_equal(found.mask(4), p[4].numpy() > 0.5) and made == [1]
    assert np.array_equal(found.masks, p.numpy() > 0.5) and max(made) == 1
    # Where each pixel has one class at most, its label tells.
    p = torch.randn(8, 4, 6).softmax(dim=0)[:7]
    single = SemanticPrediction.single_label(maps_of(p), "abcdefg", background=True, threshold=0.4)
    assert np.array_equal(single.masks, single.labels == np.arange(7)[:, None, None])
    assert single.masks.any() and (single.labels == BACKGROUND).any()


def test_regions_are_drawn_and_named() -> None:
    p = torch.zeros(3, 40, 60)
    p[0, :20], p[2, 20:, 30:] = 0.9, 0.8
    found = SemanticPrediction.single_label(maps_of(p, (40, 60)), ["sky", "sea", "sand"], True)
    assert [entry["words"] for entry in found.found()] == ["sky", "sand"]
    picture = np.full((40, 60, 3), 128, np.uint8)
    drawn = found.overlay(picture, least_side=120)
    assert drawn.width == 120 and drawn.height > 80  # the legend is below
    colours = [drawn.getpixel(at) for at in ((60, 20), (90, 60), (30, 60))]
    assert len(set(colours)) == 3
    nothing = SemanticPrediction.single_label(maps_of(0 * p, (40, 60)), ["a", "b", "c"], True)
    assert nothing.found() == [] and nothing.overlay(picture, least_side=120).size == (120, 80)
    with pytest.raises(ValueError, match="picture that they were predicted for"):
        found.overlay(picture[:30])


# In a model.


def model_of(**changes: Any) -> BridgedModel:
    torch.manual_seed(0)
    vision, text = PAIRS["open_clip_vit"]()
    bridgers = BridgerConfig.preset("paper", hidden_dim=16, num_heads=2, ffn_dim=16)
    encoder = attach_bridgers(vision, text, 2, bridgers)
    options = {**SMALL, "grid_stride": 8, "classes": ("dog", ("cat", "owl"), "ball"), **changes}
    model = encoder.with_head(SemanticSegmentationHead, **options)
    mean = std = (0.5, 0.5, 0.5)
    model.processor = Processor(32, mean, std, word_tokenizer(), 16)
    return model


@pytest.mark.parametrize("mode", ["separate", "joint"])
def test_a_saved_head_predicts_the_same(mode: str, tmp_path: Path) -> None:
    model = model_of(text_mode=mode)
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    expected = model.predict(picture)
    assert expected.names == ("dog", "cat", "ball") and expected.labels.shape == (40, 50)
    assert expected.probabilities.shape == (3, 40, 50)
    model.save_pretrained(tmp_path)
    loaded = BridgedModel.from_pretrained(tmp_path, *PAIRS["open_clip_vit"]())
    loaded.processor = model.processor
    again = loaded.predict(picture)
    assert np.array_equal(again.probabilities, expected.probabilities)
    assert np.array_equal(again.labels, expected.labels)
    other = loaded.predict(picture, ["left", "right ball"], rows_at_once=1)
    assert other.names == ("left", "right ball")


def test_classes_asked_a_few_at_a_time_give_the_same() -> None:
    model = model_of(templates=("{}", "a {}"))
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    together, parts = (model.predict(picture, rows_at_once=rows) for rows in (64, 1))
    np.testing.assert_allclose(parts.probabilities, together.probabilities, atol=1e-5)
    assert (parts.labels != together.labels).mean() < 0.01


def test_several_classes_per_pixel_are_cut_at_the_threshold() -> None:
    model = model_of(multi_label=True)
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    found = model.predict(picture, threshold=0.02)
    assert found.masks.shape == (3, 40, 50)
    assert np.array_equal(found.masks, found.probabilities > 0.02)
    assert np.array_equal(model.predict(picture).masks, found.probabilities > 0.5)


# It learns.


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["separate", "joint"])
def test_it_learns_four_scenes_by_heart(mode: str) -> None:
    kinds = scene_classes(12)
    scenes = [make_labelled_scene("train", index, kinds) for index in range(4)]
    names = [kind.name for kind in kinds]
    maps = [scene_labels(scene.objects, kinds) for scene in scenes]
    vision, text, processor = load_tiny_clip()
    bridgers = BridgerConfig.preset("paper", dropout=0.0, pre_norm=True)
    model = attach_bridgers(vision, text, config=bridgers).with_head(
        SemanticSegmentationHead,
        **{**SMALL, "width": 64, "grid_stride": 8, "text_mode": mode, "classes": names},
    )
    model.processor = processor
    pixels, _ = processor.images([scene.image for scene in scenes])
    if mode == "joint":
        given = model.heads[model.head_name()].texts(processor, None).batch(4)
        labels = maps
    else:  # each picture is asked about its own classes
        own = [[k for k in np.unique(labels) if k != BACKGROUND] for labels in maps]
        given = ClassPhrases(processor, names).batch([[(k, 0) for k in some] for some in own])
        labels = [
            sum((labels == k) * (at + 1) for at, k in enumerate(some)) - 1
            for labels, some in zip(maps, own, strict=True)
        ]
    target = torch.from_numpy(np.stack(labels))
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=80)
    model.train()
    for _ in range(80):
        optimizer.zero_grad()
        model(pixels, **given, labels=target).loss.backward()
        optimizer.step()
        schedule.step()
    ious = []
    for scene, labels in zip(scenes, maps, strict=True):
        shown = [k for k in np.unique(labels) if k != BACKGROUND]
        asked = names if mode == "joint" else [names[k] for k in shown]
        found = model.predict(scene.image, asked)
        for k in shown:
            mask, truth = found.mask(asked.index(names[k])), labels == k
            ious.append((mask & truth).sum() / (mask | truth).sum())
    assert np.mean(ious) > 0.7


def scene_labels(objects: Any, kinds: Any) -> np.ndarray:
    labels = np.full(objects[0].mask.shape, BACKGROUND)
    for thing in objects:
        labels[thing.mask] = kinds.index(thing.kind)
    return labels


def test_a_class_has_its_colour_whatever_else_a_picture_shows() -> None:
    names = [f"class {number}" for number in range(14)]
    alone = {name: colours_of([name])[0] for name in names}
    assert len(set(colours_of(names))) == len(names)  # as many as there are colours
    pairs = [(a, b) for a in names for b in names if alone[a] != alone[b]]
    assert pairs and all(colours_of(pair) == [alone[name] for name in pair] for pair in pairs)
