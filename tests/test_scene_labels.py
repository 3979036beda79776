"""Scenes with classes: what training shows of held-out ones, and what the files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import bridger
from bridger.data import open_boxed, open_classified, open_segmented, scene_label_files
from bridger.data.labelled import LabelledDataset
from bridger.data.scene_labels import (
    LABEL_SPLITS,
    make_classified_scene,
    make_labelled_scene,
    scene_classes,
    seen_only,
)
from bridger.data.scenes import write_scenes
from bridger.data.sprites import Kind, kinds
from bridger.labels import BACKGROUND, IGNORE

COUNTS = {"train": 30, "val": 24, "test": 6}
CLASSES = 12
OPENERS: dict[str, Any] = {
    "segmented": open_segmented,
    "boxed": open_boxed,
    "classified": open_classified,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    for layout in OPENERS:
        write_scenes(folder / layout, COUNTS, size=64, layout=layout, classes=CLASSES)
    return folder


def shown(data: LabelledDataset[Any]) -> set[str]:
    return {str(data.classes[c]) for p in data for c in np.unique(p.labels) if c >= 0}


def names(some: tuple[Kind, ...]) -> tuple[str, ...]:
    return tuple(kind.name for kind in some)


@pytest.mark.parametrize("count", [6, 12, 48, 254])
def test_a_sixth_of_the_classes_is_held_out(count: int) -> None:
    classes = scene_classes(count)
    assert len(set(classes)) == count and list(classes) == sorted(classes, key=lambda k: k.index)
    held_out = sum(kind.held_out for kind in classes)
    assert held_out == min(round(count / 6), sum(kind.held_out for kind in kinds()))
    assert set(scene_classes(6)) <= set(classes)
    for wrong in (5, 255):
        with pytest.raises(ValueError, match=f"6 to 254 classes, asked were {wrong}"):
            scene_classes(wrong)


def test_the_classes_are_what_they_always_were() -> None:
    """Recipes and the figures in the documentation depend on them."""
    six = ("pig", "elephant", "handbag", "candle", "pencil", "rainbow")
    assert names(scene_classes(6)) == six
    held_out = "pig giraffe clover tangerine cupcake ladder house".split()
    assert [kind.name for kind in scene_classes() if kind.held_out and " " not in kind.name] == (
        held_out
    )


@pytest.mark.parametrize("layout", OPENERS)
def test_training_names_no_held_out_class_and_others_name_all(root: Path, layout: str) -> None:
    classes = scene_classes(CLASSES)
    train, val, test = (OPENERS[layout](root / layout, split) for split in LABEL_SPLITS)
    assert [len(data) for data in (train, val, test)] == list(COUNTS.values())
    assert train.classes == names(seen_only(classes)) and len(train.classes) == 10
    assert val.classes == test.classes == names(classes)
    assert shown(train) == set(train.classes)
    assert shown(val) == set(val.classes)
    for data in (train, val, test):
        data.require_pictures()


def test_label_maps_are_the_scenes_masks(root: Path) -> None:
    classes, ignored = scene_classes(CLASSES), 0
    for split in ("train", "val"):
        data = open_segmented(root / "segmented", split)
        for index, picture in enumerate(data):
            scene = make_labelled_scene(split, index, classes, size=64)
            expected = np.full((64, 64), BACKGROUND)
            for thing in scene.objects:
                label = list(data.classes).index(thing.kind.name) if seen(split, thing) else IGNORE
                expected[thing.mask] = label
            np.testing.assert_array_equal(picture.labels, expected)
            ignored += bool((expected == IGNORE).any())
            with Image.open(picture.picture) as image:
                assert np.abs(np.asarray(image, dtype=int) - scene.image).mean() < 5
    assert ignored > 3, "held-out kinds stand in the pictures of train, unnamed"


def seen(split: str, thing: Any) -> bool:
    return split != "train" or not thing.kind.held_out


def test_boxes_are_the_scenes_and_training_shows_nothing_held_out(root: Path) -> None:
    classes = scene_classes(CLASSES)
    for split in ("train", "val"):
        data = open_boxed(root / "boxed", split)
        among = seen_only(classes) if split == "train" else classes
        assert data.category_ids == tuple(kind.index + 1 for kind in among)
        for index, picture in enumerate(data):
            objects = make_labelled_scene(split, index, among, size=64).objects
            assert [data.classes[label] for label in picture.labels] == [
                thing.kind.name for thing in objects
            ]
            assert split != "train" or not any(thing.kind.held_out for thing in objects)
            for thing, box, area in zip(objects, picture.boxes, picture.areas, strict=True):
                rows, columns = np.nonzero(thing.mask)
                ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                assert tuple(box) == ends and area == thing.mask.sum()


def test_scenes_depend_on_their_number_alone() -> None:
    classes = scene_classes(CLASSES)
    for split in LABEL_SPLITS:
        first, again = (make_labelled_scene(split, 3, classes, size=48) for _ in range(2))
        np.testing.assert_array_equal(first.image, again.image)
        for other in (
            make_labelled_scene(split, 4, classes, size=48),
            make_labelled_scene(split, 3, classes, seed=1, size=48),
            make_classified_scene(split, 3, classes, size=48)[0],
        ):
            assert not np.array_equal(first.image, other.image)
        assert {thing.kind for thing in first.objects} <= set(classes)
        assert 3 <= len(first.objects) <= 5
    for make in (make_labelled_scene, make_classified_scene):
        with pytest.raises(ValueError, match="no split 'testA'; .* train, val, test"):
            make("testA", 0, classes)
        with pytest.raises(ValueError, match="32"):
            make("val", 0, classes, size=8)


def test_a_classified_scene_shows_its_class_larger_than_what_has_none() -> None:
    classes, shown = scene_classes(CLASSES), []
    for index in range(24):
        scene, kind = make_classified_scene("val", index, classes, size=64)
        *clutter, main = scene.objects
        assert main.kind == kind and 1 <= len(clutter) <= 3
        assert all(thing.kind not in classes for thing in clutter)
        assert main.seen.size > max(thing.seen.size for thing in clutter)
        shown.append(kind)
    assert shown[:12] == shown[12:] == list(classes)


@pytest.mark.slow
def test_embedded_clip_knows_most_of_the_classes_and_not_all() -> None:
    """Zero-shot, so that heads have a start to be compared with and something to learn."""
    _, clip, processor = bridger.load_tiny_clip()
    classes = scene_classes()
    examples = [make_classified_scene("val", i, classes) for i in range(192)]
    with torch.no_grad():
        words = processor.text([kind.name for kind in classes])["input_ids"]
        words = F.pad(words, (0, clip.context_length - words.shape[1]))
        texts = F.normalize(clip.encode_text(words), dim=-1)
        pixels, _ = processor.images([scene.image for scene, _ in examples])
        pictures = F.normalize(clip.encode_image(pixels), dim=-1)
    best = (pictures @ texts.T).argmax(dim=1).tolist()
    right = [classes[i] == kind for i, (_, kind) in zip(best, examples, strict=True)]
    assert 0.6 < np.mean(right) < 0.85


def test_a_folder_in_use_is_refused_before_anything_is_made(root: Path) -> None:
    for layout in OPENERS:
        for other in OPENERS:
            with pytest.raises(FileExistsError, match="already holds a data set"):
                write_scenes(root / layout, {"val": 1}, size=64, layout=other, classes=CLASSES)
    with pytest.raises(ValueError, match=r"no splits \['testA'\]"):
        write_scenes(root / "new", {"testA": 1}, layout="boxed")
    with pytest.raises(ValueError, match="no layout 'boxes'"):
        write_scenes(root / "new", {"train": 1}, layout="boxes")
    assert not (root / "new").exists()


@pytest.mark.parametrize("layout", OPENERS)
def test_an_interrupt_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    (tmp_path / "notes.md").touch()
    saved = scene_label_files._save

    def interrupted(scene: Any, path: Path) -> None:
        if "val" in path.parts:
            raise KeyboardInterrupt
        saved(scene, path)

    options: dict[str, Any] = {"size": 64, "layout": layout, "classes": CLASSES}
    with monkeypatch.context() as patched:
        patched.setattr(scene_label_files, "_save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_scenes(tmp_path, {"train": 3, "val": 2}, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]
    write_scenes(tmp_path, {"train": 2, "val": 1}, **options)
    assert len(OPENERS[layout](tmp_path, "train")) == 2
