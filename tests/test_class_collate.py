"""Batches of pictures with labels of classes: what is asked, and labels in those numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_judging import CLASSES, Labelled, boxed, classified, segmented
from torch import Tensor

import bridger
from bridger.class_phrases import names_of
from bridger.data import RefCOCO
from bridger.data.augment import Colour, Transform, draw_transform
from bridger.data.box_collate import RefBoxCollator, boxes_in_input, mirrored
from bridger.data.class_collate import (
    ClassificationCollator,
    ClassItem,
    DetectionCollator,
    SemanticCollator,
    numbers_of,
)
from bridger.data.class_questions import ClassQuestions
from bridger.data.labelled import ClassifiedPicture
from bridger.labels import BACKGROUND, IGNORE
from bridger.processing import Placement, Processor
from bridger.texts import Texts
from bridger.training.class_schedule import ClassSchedule, few_shots

INPUT = (48, 64)
NAMES = [names_of(entry)[0] for entry in CLASSES]
MAKERS = {
    "semantic": (segmented, SemanticCollator),
    "detection": (boxed, DetectionCollator),
    "classification": (classified, ClassificationCollator),
}


@pytest.fixture(scope="module")
def processor() -> Processor:
    _, _, tiny = bridger.load_tiny_clip()
    return Processor(INPUT, tiny.mean, tiny.std, tiny.words, tiny.max_length)


def ask(
    processor: Processor, most: int = 3, mode: str = "separate", classes: Any = CLASSES
) -> ClassQuestions:
    return ClassQuestions(processor, classes, mode, ("{}", "a {}"), most=most, seed=5)


def items(
    data: Labelled, indices: Sequence[int], transform: Transform | None = None
) -> list[ClassItem[Any]]:
    return [ClassItem(data[index], 10 + index, transform) for index in indices]


def asked_names(processor: Processor, batch: dict[str, Any], row: int) -> list[str]:
    """The classes that a picture is asked about, read off the tokens of its text."""
    said = [
        (name, template.format(name))
        for entry in CLASSES
        for name in names_of(entry)
        for template in ("{}", "a {}")
    ]
    known = {}
    for name, sentence in said:
        ids = processor.text([sentence])["input_ids"][0].tolist()
        known[tuple(ids)] = next(
            n for n, e in zip(NAMES, CLASSES, strict=True) if name in names_of(e)
        )
    mask = batch["attention_mask"][row].bool()
    rows = zip(batch["input_ids"][row], mask, strict=True)
    return [known[tuple(ids[real].tolist())] for ids, real in rows]


# Questions.


@pytest.mark.parametrize("most", [1, 2, 3, 4, 9])
def test_pictures_are_asked_about_their_classes_and_others(processor: Processor, most: int) -> None:
    shown: list[set[int]] = [{0}, {1, 2, 3}, set(), {3}]
    asked, text = ask(processor, most).ask([0, 1, 2, 3], shown)
    for own, classes in zip(shown, asked, strict=True):
        assert classes == sorted(set(classes)) and len(classes) == min(most, len(CLASSES))
        assert set(classes) >= own or set(classes) < own
    assert tuple(text["input_ids"].shape[:2]) == (4, min(most, len(CLASSES)))
    batch = {name: text[name] for name in ("input_ids", "attention_mask")}
    for row, classes in enumerate(asked):
        assert asked_names(processor, batch, row) == [NAMES[k] for k in classes]


def test_draws_depend_on_seed_and_item_alone(processor: Processor) -> None:
    shown: list[set[int]] = [{0}, {1}, {0}]
    asked, text = ask(processor, 2).ask([7, 8, 9], shown)
    again, alone = ask(processor, 2).ask([8], [{1}])
    assert again == [asked[1]]
    length = alone["input_ids"].shape[-1]
    assert torch.equal(alone["input_ids"][0], text["input_ids"][1, :, :length])
    other = ClassQuestions(processor, CLASSES, "separate", ("{}",), most=2, seed=6)
    many = [list(range(40)), [{0}] * 40]
    drawn = ask(processor, 2).ask(*many)[0]  # type: ignore[arg-type]
    assert {tuple(classes) for classes in drawn} == {(0, 1), (0, 2), (0, 3)}
    assert drawn != other.ask(*many)[0]  # type: ignore[arg-type]


def test_every_name_and_template_takes_its_turn(processor: Processor) -> None:
    _, text = ask(processor, 1).ask(list(range(60)), [{0}] * 60)
    said = {
        tuple(ids[mask.bool()].tolist())
        for ids, mask in zip(text["input_ids"][:, 0], text["attention_mask"][:, 0], strict=True)
    }
    expected = [t.format(name) for name in names_of(CLASSES[0]) for t in ("{}", "a {}")]
    rows = [processor.text([sentence]) for sentence in expected]
    assert said == {tuple(row["input_ids"][0].tolist()) for row in rows}


@pytest.mark.parametrize(("most", "count"), [(1, 2), (3, 3), (9, 4)])
def test_joint_batches_ask_about_what_any_picture_shows(
    processor: Processor, most: int, count: int
) -> None:
    shown: list[set[int]] = [{1}, set(), {3}]
    asked, text = ask(processor, most, "joint").ask([4, 5, 6], shown)
    assert all(classes == asked[0] for classes in asked)
    assert {1, 3} <= set(asked[0]) and len(asked[0]) == count
    assert text["mentions"].num_classes == count
    assert torch.equal(text["input_ids"][0], text["input_ids"][2])
    mentions = text["mentions"]
    for place, k in enumerate(asked[0]):
        (mention,) = (mentions.classes == place).nonzero()[:, 0].tolist()
        ids = text["input_ids"][0, mentions.rows[mention]][mentions.tokens[0, mention]]
        spoken = [t.format(name) for name in names_of(CLASSES[k]) for t in ("{}", "a {}")]
        assert ids.tolist() in [processor.text([s])["input_ids"][0, 1:-1].tolist() for s in spoken]


def test_all_classes_without_synonyms_are_the_text_of_predict(processor: Processor) -> None:
    for mode in ("separate", "joint"):
        questions = ClassQuestions(processor, NAMES, mode, ("{}",), most=9, seed=0)
        _, text = questions.ask([3, 4], [{2}, set()])
        expected = Texts.of_classes(processor, NAMES, mode).batch(2)
        for name in ("input_ids", "attention_mask"):
            assert torch.equal(text[name], expected[name])
        assert torch.equal(text["mentions"].classes, expected["mentions"].classes)
        tokens = [each["mentions"].tokens.expand(2, -1, -1) for each in (text, expected)]
        assert torch.equal(*tokens)


# Labels.


def nearest(labels: Any, placement: Placement) -> Any:
    """A label map in the input, pixel by pixel."""
    (h, w), (height, width) = placement.size, placement.input_size
    found = np.full((height, width), IGNORE)
    for y in range(height):
        for x in range(width):
            row = round((y - placement.top) / placement.scale)
            column = round((x - placement.left) / placement.scale)
            if 0 <= row < h and 0 <= column < w:
                found[y, x] = labels[row, column]
    return found


@pytest.mark.parametrize("flip", [False, True])
def test_label_maps_in_the_numbers_of_the_questions(
    processor: Processor, tmp_path: Path, flip: bool
) -> None:
    data = segmented(tmp_path)
    trained = [NAMES[0], NAMES[3], NAMES[1]]  # not the data's order, and not all
    collate = SemanticCollator(
        processor, ask(processor, 2, classes=trained), numbers_of(data.classes, trained)
    )
    batch = collate(items(data, [0, 1, 2], Transform(flip=True) if flip else None))
    assert batch["labels"].dtype == torch.int64
    for row in range(3):
        asked = asked_names(processor, batch, row)
        labels = data[row].labels
        expected = nearest(labels, Placement.fit(labels.shape, INPUT))
        numbers = {BACKGROUND: BACKGROUND, IGNORE: IGNORE}
        for label, name in enumerate(NAMES):
            unasked = BACKGROUND if name in trained else IGNORE
            numbers[label] = asked.index(name) if name in asked else unasked
        expected = np.vectorize(numbers.get)(expected)
        found = batch["labels"][row].numpy()
        assert np.array_equal(found[:, ::-1] if flip else found, expected)
    values = set(batch["labels"].unique().tolist())
    assert {BACKGROUND, IGNORE, 0, 1} == values


def test_labels_of_several_classes_are_masks(processor: Processor, tmp_path: Path) -> None:
    trained = NAMES[:3]
    data, questions = segmented(tmp_path), ask(processor, 3, classes=trained)
    numbers = numbers_of(data.classes, trained)
    single = SemanticCollator(processor, questions, numbers)(items(data, [0, 3]))
    several = SemanticCollator(processor, questions, numbers, multi_label=True)
    masks = several(items(data, [0, 3]))["labels"]
    assert tuple(masks.shape) == (2, 3, *INPUT)
    for place in range(3):
        expected = (single["labels"] == place).float()
        # Void, what is outside of the picture, and a class that is not trained on.
        expected[single["labels"] == IGNORE] = IGNORE
        assert torch.equal(masks[:, place], expected)
        assert {0.0, 1.0, float(IGNORE)} >= set(expected.unique().tolist()) > {float(IGNORE)}


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_in_the_numbers_of_the_questions(
    processor: Processor, tmp_path: Path, flip: bool
) -> None:
    data = boxed(tmp_path)
    collate = DetectionCollator(
        processor, ask(processor, 2), numbers_of(data.classes, CLASSES), cache=False
    )
    batch = collate(items(data, [0, 2, 4], Transform(flip=True) if flip else None))
    for row, index in enumerate([0, 2, 4]):
        asked, picture = asked_names(processor, batch, row), data[index]
        h, w = picture.size
        scale = min(INPUT[0] / h, INPUT[1] / w)
        expected = []
        for box, label, crowd in zip(picture.boxes, picture.labels, picture.crowd, strict=True):
            if NAMES[label] not in asked:
                continue
            # Pixel i becomes s i + (W - s w) / 2; a box ends half a pixel beside its outermost one.
            xs, ys = (
                [s * (e - 0.5) + (size - s * own) / 2 + 0.5 for e in ends]
                for ends, s, size, own in (
                    (box[[0, 2]], scale, INPUT[1], w),
                    (box[[1, 3]], scale, INPUT[0], h),
                )
            )
            xs = [INPUT[1] - x for x in reversed(xs)] if flip else xs
            expected.append([xs[0], ys[0], xs[1], ys[1], asked.index(NAMES[label]), crowd])
        labels = batch["labels"][row]
        found = [labels["boxes"], labels["labels"][:, None], labels["crowd"][:, None]]
        wanted = torch.tensor(expected, dtype=torch.float32).reshape(-1, 6)
        assert torch.allclose(torch.cat([f.float() for f in found], dim=1), wanted, atol=1e-4)
        assert len(expected) == sum(NAMES[label] in asked for label in picture.labels)
    assert batch["labels"][1]["crowd"].any()


def test_boxes_of_enlarged_pictures_stay_inside() -> None:
    placement = Placement.fit((10, 10), (80, 80))
    whole = torch.tensor([[0.0, 0, 10, 10], [0, 0, 1, 1]])
    boxes = boxes_in_input(whole, placement)
    assert boxes[0].tolist() == [0, 0, 76.5, 76.5]  # the last index is at 72
    assert boxes[1].tolist() == [0, 0, 8 - 3.5, 8 - 3.5]


def test_classes_in_the_numbers_of_the_questions(processor: Processor, tmp_path: Path) -> None:
    data = classified(tmp_path)
    trained = NAMES[1:]
    numbers = numbers_of(data.classes, trained)
    questions = ask(processor, 2, classes=trained)
    batch = ClassificationCollator(processor, questions, numbers)(items(data, [0, 1, 2]))
    assert batch["labels"][0] == IGNORE  # its class is not trained on
    for row in (1, 2):
        assert asked_names(processor, batch, row)[batch["labels"][row]] == NAMES[row]
    several = Labelled(
        [
            ClassifiedPicture(data[i].image_path, str(i), "few", shown)
            for i, shown in enumerate([(0, 1, 3), (), (2,)])
        ]
    )
    collate = ClassificationCollator(processor, questions, numbers, multi_label=True)
    batch = collate(items(several, [0, 1, 2]))
    for row, shown in enumerate([{NAMES[1], NAMES[3]}, set(), {NAMES[2]}]):
        asked = asked_names(processor, batch, row)
        assert batch["labels"][row].tolist() == [float(name in shown) for name in asked]


def test_classes_that_the_data_do_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="names 'drums', .* did you mean 'drum'"):
        numbers_of(CLASSES, ["owl", "drums"])


def test_classes_are_the_same_whatever_their_case_and_blanks() -> None:
    assert numbers_of(["Owl", "sea  gull", "bus"], [" Sea gull", ("OWL", "bird")]) == [1, 0, None]


# Pictures.


@pytest.mark.parametrize("kind", list(MAKERS))
@pytest.mark.parametrize("mode", ["separate", "joint"])
def test_batches_do_not_depend_on_the_cache(
    processor: Processor, tmp_path: Path, kind: str, mode: str
) -> None:
    make, collator = MAKERS[kind]
    data = make(tmp_path)
    numbers = numbers_of(data.classes, CLASSES)
    transform = Transform(flip=True, colour=Colour(1.2, 0.9, 1.1, 0.01))
    asked = items(data, [0, 1, 2], transform)
    kept, small, none = (
        collator(processor, ask(processor, 3, mode), numbers, cache)
        for cache in (True, 3 * INPUT[0] * INPUT[1], False)
    )
    kept(items(data, [2, 1, 0]))  # fills the cache in another order, unchanged
    first = _flat(kept(asked))
    for other in (small(asked), none(asked)):
        assert all(map(torch.equal, first, _flat(other)))
    plain = none(items(data, [0, 1, 2]))
    assert not torch.equal(plain["pixel_values"], first[0])


def _flat(batch: dict[str, Any]) -> list[Tensor]:
    labels = batch["labels"]
    named = labels if isinstance(labels, Tensor) else [t for d in labels for t in d.values()]
    rest = [named] if isinstance(named, Tensor) else named
    return [batch["pixel_values"], batch["input_ids"], batch["mentions"].tokens, *rest]


# Expressions.


def test_boxes_of_expressions_surround_their_masks(processor: Processor, scenes: Path) -> None:
    data = RefCOCO(scenes, "train")
    groups = data.pictures()[:3]
    plain = [[data[ref] for ref in refs] for refs in groups]
    collate = RefBoxCollator(processor)
    batch = collate(plain)
    assert batch["expression_mask"].sum(dim=1).tolist() == [
        len(d["boxes"]) for d in batch["labels"]
    ]
    for refs, labels in zip(plain, batch["labels"], strict=True):
        said = [sample for sample in refs for _ in sample.sentences]
        assert labels["labels"].tolist() == list(range(len(said)))
        for sample, box in zip(said, labels["boxes"], strict=True):
            _, placement = processor.fit(sample.picture)
            target = processor.target(sample.mask, placement) > 0.5
            ys, xs = (target.any(dim=dim).nonzero()[:, 0] for dim in (1, 0))
            around = torch.stack([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]).float()
            assert torch.allclose(box, around, atol=1.01)
    boxes = torch.cat([labels["boxes"] for labels in batch["labels"]])
    assert torch.equal(mirrored(mirrored(boxes, INPUT[1]), INPUT[1]), boxes)


# Schedules.


def test_a_schedule_shows_every_picture_once_an_epoch(tmp_path: Path) -> None:
    data = classified(tmp_path)
    schedule = ClassSchedule(data, [0, 2, 3], 9, seed=1, augment=("flip", "colour"))
    again = ClassSchedule(data, [0, 2, 3], 9, seed=1, augment=("flip", "colour"))
    assert [again[i] for i in reversed(range(9))] == [schedule[i] for i in reversed(range(9))]
    seen = [item.picture.key for item in (schedule[i] for i in range(9))]
    assert all(sorted(seen[at : at + 3]) == ["0", "2", "3"] for at in (0, 3, 6))
    assert [schedule[i].number for i in range(9)] == list(range(9))
    dice = random.Random("1/4/augment")
    assert schedule[4].transform == draw_transform(("flip", "colour"), (), dice)[0]
    with pytest.raises(IndexError, match="no item 9"):
        schedule[9]


def test_names_forbid_what_would_make_them_wrong(tmp_path: Path) -> None:
    data = classified(tmp_path)
    data.classes = ("owl", ("orange", "fruit"), "car", "tree")
    with pytest.warns(UserWarning, match="leaves out 'colour', .* 1 of the .* such as 'orange'"):
        schedule = ClassSchedule(data, [0], 3, 0, ("flip", "colour"))
    assert schedule.augment == ("flip",)


def test_shots_are_drawn_by_seed_and_name() -> None:
    shown = [(0,), (0,), (1,), (0, 2), (0,), (2,), (1,)]

    def data(order: Sequence[int]) -> Labelled:
        pictures = [
            ClassifiedPicture(
                Path(f"{i}.png"), str(i), "few", tuple(order.index(k) for k in labels)
            )
            for i, labels in enumerate(shown)
        ]
        return Labelled(pictures, [NAMES[k] for k in order])

    plain = data([0, 1, 2])
    for shots in (1, 2, 3):
        drawn = few_shots(plain, shots, seed=3)
        assert drawn == sorted(set(drawn)) == few_shots(plain, shots, seed=3)
        for k in range(3):
            have = sum(k in labels for labels in shown)
            taken = sum(k in shown[index] for index in drawn)
            assert taken >= min(shots, have)
        assert few_shots(data([2, 0, 1]), shots, seed=3) == drawn
    assert few_shots(plain, 9, seed=0) == list(range(7))
    assert len({tuple(few_shots(plain, 1, seed)) for seed in range(20)}) > 3
