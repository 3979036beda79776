"""Many pictures in few forwards, several threads at once: equal to one picture after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers_conformance import SMALL, changed
from helpers_one_way import one_way
from helpers_towers import hf_text, hf_vision
from test_texts import processor
from torch import Tensor

from bridger import BridgedModel, answering, attach_bridgers, text_cache
from bridger.heads import (
    ClassificationHead,
    ComprehensionHead,
    DetectionHead,
    HeadOutput,
    ReferringSegmentationHead,
    SemanticSegmentationHead,
)

DENSE = {"width": 32, "num_heads": 4, "num_layers": 1, "grid_stride": 8}
BOXES = {"width": 32, "num_convs": 1}
HEADS: dict[str, Any] = {
    "masks": (ReferringSegmentationHead, {**DENSE, "no_target": True}),
    "one_box": (ComprehensionHead, BOXES),
    "labels": (SemanticSegmentationHead, {**DENSE, "classes": ("dog", "owl")}),
    "boxes": (DetectionHead, BOXES),
    "classes": (ClassificationHead, {}),
}
SENTENCES: list[Any] = [
    ["the red ball", "a dog"],
    "the owl",
    ["dog"],
    ["the dog", "the red ball on the left of the dog"],
    ["a red ball", "the owl", "dog"],
    ["the owl", "a dog"],
]
NAMES: list[Any] = [["dog", "red ball"], ["dog", "red ball"], ["owl"], ["dog", "red ball"]]


def model_of(config: Any = SMALL) -> BridgedModel:
    torch.manual_seed(0)
    stages = [(1, None), (3, None)] if getattr(config, "direction", "") == "to_vision" else 2
    encoder = attach_bridgers(hf_vision(), hf_text(eos=3), stages, config)
    made = changed(encoder).with_heads(**HEADS).eval()
    made.processor = processor()
    return made


def pictures(count: int) -> list[npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 60, (count, 2))
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def values(found: Any) -> dict[str, Any]:
    """What a prediction holds: every array and every name."""
    return {
        own.name: np.asarray(getattr(found, own.name))
        for own in fields(found)
        if own.name != "maps"
    } | ({"maps": np.asarray(found.maps)} if hasattr(found, "maps") else {})


def check_equal(found: Sequence[Any], expected: Sequence[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert type(one) is type(other)
        a, b = values(one), values(other)
        assert a.keys() == b.keys() and len(a) > 1
        for name in a:
            assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
            if a[name].dtype.kind == "f":
                np.testing.assert_allclose(a[name], b[name], atol=1e-5, err_msg=name)
            elif a[name].dtype.kind in "bi":  # a value that lies at a threshold may go over it
                assert (a[name] != b[name]).sum() <= 1e-3 * a[name].size, name
            else:
                assert (a[name] == b[name]).all(), name


@contextmanager
def batch_sizes(model: BridgedModel) -> Iterator[list[int]]:
    """Notes how many pictures each forward of the vision tower sees."""
    seen: list[int] = []
    handle = model.encoder.vision.module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len((*args, *kwargs.values())[0])), with_kwargs=True
    )
    yield seen
    handle.remove()


@pytest.mark.parametrize("way", ["both", "to_vision"])
@pytest.mark.parametrize("head", ["masks", "one_box"])
def test_sentences_of_several_pictures_share_forwards(head: str, way: str) -> None:
    model = model_of(SMALL if way == "both" else one_way())
    images = pictures(len(SENTENCES))
    alone = [
        model.predict(image, said, head=head) for image, said in zip(images, SENTENCES, strict=True)
    ]
    with batch_sizes(model) as seen:
        check_equal(model.predict(images, SENTENCES, head=head), alone)
    assert sorted(seen) == [1, 2, 3]  # by how many sentences they are asked about: 3, 1, 2
    with batch_sizes(model) as seen:
        check_equal(model.predict(images, SENTENCES, head=head, rows_at_once=2), alone)
    assert sorted(seen) == [1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("head", ["labels", "boxes", "classes"])
def test_equal_lists_of_classes_share_forwards(head: str) -> None:
    model, images = model_of(), pictures(4)
    options = {"threshold": 0.0} if head == "boxes" else {}
    alone = [
        model.predict(image, names, head=head, **options)
        for image, names in zip(images, NAMES, strict=True)
    ]
    with batch_sizes(model) as seen:
        check_equal(model.predict(images, NAMES, head=head, **options), alone)
    assert seen == [2, 1, 1]  # equal lists that follow each other


def test_the_classes_of_the_training_are_asked_of_all_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, images = model_of(), pictures(5)
    alone = [model.predict(image, head="labels") for image in images]
    monkeypatch.setattr(answering, "PICTURES_AT_ONCE", 3)
    with batch_sizes(model) as seen:
        check_equal(model.predict(images, head="labels"), alone)
    assert seen == [3, 2]
    assert model.predict([], head="labels") == []


def test_windows_keep_their_own_way() -> None:
    model, images = model_of(), pictures(3)
    options = {"head": "labels", "window": 24}
    check_equal(
        model.predict(images, **options), [model.predict(image, **options) for image in images]
    )


def test_what_is_wrong_with_any_words_is_said_before_anything_runs() -> None:
    model, images = model_of(), pictures(2)
    with batch_sizes(model) as seen, pytest.raises(ValueError, match="is empty"):
        model.predict(images, ["the owl", " "], head="masks")
    assert seen == []


@dataclass
class Spread(HeadOutput):
    spread: Tensor | None = None
    shared: list[int] | None = None


def test_an_output_is_taken_apart_by_pictures() -> None:
    spread, shared = torch.randn(3, 4), [1, 2, 3]
    whole = Spread(torch.randn(3, 2, 4), no_target=torch.randn(3, 2), spread=spread, shared=shared)
    part = whole.of_picture(1)
    assert type(part) is Spread and part.shared is shared and part.loss is None
    assert part.no_target is not None and part.spread is not None and whole.no_target is not None
    assert torch.equal(part.logits, whole.logits[1:2])
    assert torch.equal(part.no_target, whole.no_target[1:2])
    assert torch.equal(part.spread, spread[1:2])


# Threads.


@pytest.mark.parametrize("way", ["both", "to_vision", "kept"])
def test_threads_may_predict_at_once(way: str) -> None:
    model = model_of(one_way() if way == "to_vision" else SMALL)
    asked: list[tuple[Any, Any, str]] = []
    for number, image in enumerate(pictures(20)):
        head = list(HEADS)[number % len(HEADS)]
        sentences = HEADS[head][0].text == "expressions"
        # Few different texts: threads meet in what is kept of them.
        words = SENTENCES[number % 4] if sentences else NAMES[number % 2]
        asked.append((image, words, head))

    def predict(one: tuple[Any, Any, str]) -> Any:
        image, words, head = one
        options = {"threshold": 0.0} if head == "boxes" else {}
        return model.predict(image, words, head=head, **options)

    expected = [predict(one) for one in asked]
    modes = [module.training for module in model.modules()]
    if way == "kept":
        model.encoder.cache_prefix("memory")
    text_cache._caches.pop(model.encoder, None)  # so that several make it anew at once
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predict, asked * 3))
    check_equal(found, expected * 3)
    assert [module.training for module in model.modules()] == modes
