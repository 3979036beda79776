"""The shipped adapter with three heads: it loads by its name, and finds things."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridger import BridgedModel
from bridger.data import open_boxed, open_classified, open_segmented
from bridger.data.scene_labels import make_labelled_scene, scene_classes, seen_only
from bridger.data.scenes import write_scenes
from bridger.evaluation import evaluate_classification, evaluate_detection, evaluate_semantic
from bridger.tiny_clip import SHIPPED

SEEN = [kind.name for kind in seen_only(scene_classes())]


@pytest.fixture(scope="module")
def model() -> BridgedModel:
    return BridgedModel.from_pretrained("tiny-heads")


def test_it_has_three_heads_that_know_the_classes_of_scenes(model: BridgedModel) -> None:
    assert list(model.heads) == ["semantic_segmentation", "detection", "classification"]
    for name, head in model.heads.items():
        assert head.name == name and list(head.config.classes) == SEEN
    assert model.encoder.config is None and model.processor is not None
    size = sum(path.stat().st_size for path in SHIPPED["tiny-heads"].rglob("*") if path.is_file())
    assert size < 2.5e6


def test_it_says_what_stands_in_a_scene(model: BridgedModel) -> None:
    scene = make_labelled_scene("test", 7, scene_classes())
    shown = {thing.kind.name for thing in scene.objects}
    assert shown == {"cake", "koala", "microscope", "rugby ball"}
    for head in ("detection", "semantic_segmentation"):
        found = {one["words"] for one in model.predict(scene.image, head=head).found()}
        assert shown <= found and len(found - shown) <= 2


# Measured on 200 pictures (240 of classification): mIoU 52.7 %, mAP50 90.8 %, top-1 73.8 %.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "count", "head", "opened", "evaluate", "metric", "floor"),
    [
        ("segmented", 48, "semantic_segmentation", open_segmented, evaluate_semantic, "mIoU", 0.40),
        ("boxed", 48, "detection", open_boxed, evaluate_detection, "mAP50", 0.75),
        (
            "classified",
            240,
            "classification",
            open_classified,
            evaluate_classification,
            "top1",
            0.55,
        ),
    ],
)
def test_it_finds_things_in_scenes_that_no_training_saw(
    layout: str,
    count: int,
    head: str,
    opened: Callable[..., Any],
    evaluate: Callable[..., Any],
    metric: str,
    floor: float,
    model: BridgedModel,
    tmp_path: Path,
) -> None:
    write_scenes(tmp_path, {"test": count}, layout=layout)
    judged = evaluate(model, opened(tmp_path, "test"), head=head)
    assert judged.metrics()[metric] > floor
