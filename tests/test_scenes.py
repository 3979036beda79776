"""Scenes: what their expressions, masks, splits and files promise.

The checks read sentences and masks only; they share no rule with the code that made them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bridger.data.phrases import ORDINALS, PLACES, RELATIONS
from bridger.data.scenes import SPLITS, Scene, make_scene, write_scenes
from bridger.data.sprites import Kind, kinds, kinds_called, sprite

COUNT = 60


@cache
def scenes(split: str) -> tuple[Scene, ...]:
    return tuple(make_scene(split, index) for index in range(COUNT))


def every_scene() -> list[Scene]:
    return [scene for split in SPLITS for scene in scenes(split)]


def said(scene: Scene, kind: str) -> list[tuple[str, int]]:
    return [(e.sentence, e.target) for e in scene.expressions if e.kind == kind]


def nouns_in(sentence: str, pool: set[str]) -> list[str]:
    """The nouns of a pool that stand in a sentence, in order; a longer one hides its parts."""
    pattern = "|".join(re.escape(noun) for noun in sorted(pool, key=len, reverse=True))
    return re.findall(rf"\b(?:{pattern})\b", sentence)


def all_nouns() -> set[str]:
    return {noun for kind in kinds() for noun in kind.nouns}


def called(scene: Scene, noun: str) -> list[int]:
    return [i for i, thing in enumerate(scene.objects) if noun in thing.kind.nouns]


def centre(scene: Scene, i: int) -> tuple[float, float]:
    """The middle of what is visible of an object, as fractions of the picture."""
    rows, columns = np.nonzero(scene.objects[i].mask)
    height, width = scene.image.shape[:2]
    x = (columns.min() + columns.max() + 1) / 2 / width
    return float(x), float((rows.min() + rows.max() + 1) / 2 / height)


def along(scene: Scene, i: int, side: str) -> float:
    """How far an object lies away from a side."""
    x, y = centre(scene, i)
    return {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}[side]


def place_said(sentence: str, noun: str) -> list[str]:
    """The place whose phrase, filled with the noun, is the sentence."""
    bare = re.sub(r"^(the|a|an) ", "", sentence)
    return [p for p, phrases in PLACES.items() if bare in {f.format(noun) for f in phrases}]


def test_atlas_names_many_things_apart() -> None:
    assert len(kinds()) >= 220
    own_words = Counter(word for kind in kinds() for word in {kind.name, *kind.synonyms})
    assert max(own_words.values()) == 1, own_words.most_common(3)
    for kind in kinds():
        assert kind.index in kinds_called(kind.name) == {kind.index}
        assert sprite(kind.index)[..., 3].max() > 200
    held_out = sum(kind.held_out for kind in kinds())
    assert 0.1 < held_out / len(kinds()) < 0.2


def test_every_kind_of_expression_is_made() -> None:
    made = Counter(e.kind for scene in every_scene() for e in scene.expressions)
    wanted = {"name", "synonym", "hypernym", "colour", "size", "place", "ordinal", "relation"}
    assert set(made) == wanted
    assert min(made.values()) >= 10, made


@pytest.mark.parametrize("kind", ["name", "synonym", "hypernym"])
def test_a_bare_noun_is_true_of_one_object(kind: str) -> None:
    for scene in every_scene():
        for sentence, target in said(scene, kind):
            assert called(scene, re.sub("^the ", "", sentence)) == [target], sentence


def test_a_place_is_held_by_one_object() -> None:
    for scene in every_scene():
        for sentence, target in said(scene, "place"):
            (noun,) = nouns_in(sentence, scene.objects[target].kind.nouns)
            (place,) = place_said(sentence, noun)
            same = called(scene, noun)
            assert target in same
            if place == "middle":
                away = [np.hypot(*np.subtract(centre(scene, i), 0.5)) for i in same]
                assert same[int(np.argmin(away))] == target and min(away) < 0.2, sentence
                continue
            for side in place.split():
                beyond_middle = [i for i in same if along(scene, i, side) < 0.5]
                first = min(same, key=lambda i: along(scene, i, side))
                assert target in beyond_middle if len(same) == 1 else True, sentence
                assert first == target or len(place.split()) == 2, sentence
            if len(place.split()) == 2:
                inside = [i for i in same if all(along(scene, i, s) < 0.5 for s in place.split())]
                assert inside == [target], sentence


def test_an_ordinal_counts_to_one_object() -> None:
    for scene in every_scene():
        for sentence, target in said(scene, "ordinal"):
            (noun,) = nouns_in(sentence, scene.objects[target].kind.nouns)
            (ordinal,) = (word for word in ORDINALS if word in sentence.split())
            side = sentence.split()[-1]
            row = sorted(called(scene, noun), key=lambda i: along(scene, i, side))
            assert row[ORDINALS.index(ordinal)] == target, sentence
            spots = [along(scene, i, side) for i in row]
            assert min(np.diff(spots)) > 0.05, sentence


def side_relation(sentence: str) -> tuple[str, str, str] | None:
    """Noun, side and anchor of a sentence such as "the owl left of the drum"."""
    sides = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
    middles = {w.format("", ""): side for r, side in sides.items() for w in RELATIONS[r]}
    for middle in sorted(middles, key=len, reverse=True):  # "to the left of" before "left of"
        if middle in sentence:
            noun, anchor = (re.sub("^the ", "", part) for part in sentence.split(middle))
            return noun, middles[middle], anchor
    return None


def test_a_relation_to_a_side_holds_for_one_object() -> None:
    checked = 0
    for scene in every_scene():
        for sentence, target in said(scene, "relation"):
            if (parts := side_relation(sentence)) is None:
                continue
            noun, side, anchor_name = parts
            (anchor,) = called(scene, anchor_name)
            limit = along(scene, anchor, side)
            others = [i for i in called(scene, noun) if i != anchor]
            assert [i for i in others if along(scene, i, side) < limit] == [target], sentence
            checked += 1
    assert checked > 20


def test_a_colour_or_a_size_tells_objects_of_one_noun_apart() -> None:
    for scene in every_scene():
        for sentence, target in said(scene, "colour"):
            noun = nouns_in(sentence, scene.objects[target].kind.nouns)[-1]
            colours = [scene.objects[i].seen.colour for i in called(scene, noun)]
            colour = scene.objects[target].seen.colour
            assert colour in sentence.split() and colours.count(colour) == 1
            assert None not in colours
        for sentence, target in said(scene, "size"):
            noun = nouns_in(sentence, scene.objects[target].kind.nouns)[-1]
            sizes = sorted(scene.objects[i].seen.size for i in called(scene, noun))
            assert scene.objects[target].seen.size in (sizes[0], sizes[-1]) and len(sizes) > 1


def test_masks_are_disjoint_and_fill_their_boxes() -> None:
    for scene in every_scene():
        masks = np.stack([thing.mask for thing in scene.objects])
        assert masks.sum(axis=0).max() <= 1
        assert 3 <= len(masks) <= 6
        for thing in scene.objects:
            x, y, width, height = thing.box
            inside = thing.mask[y : y + height, x : x + width]
            assert inside.sum() == thing.mask.sum() > 60
            edges = inside[0], inside[-1], inside[:, 0], inside[:, -1]
            assert all(edge.any() for edge in edges)


@pytest.mark.parametrize("split", SPLITS)
def test_a_scene_depends_on_its_number_alone(split: str) -> None:
    first, again = scenes(split)[3], make_scene(split, 3)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.expressions == again.expressions
    assert [o.box for o in first.objects] == [o.box for o in again.objects]
    for other in (make_scene(split, 4), make_scene(split, 3, seed=1)):
        assert not np.array_equal(first.image, other.image)


def test_splits_and_sizes_are_checked() -> None:
    assert make_scene("val", 0, size=200).image.shape == (200, 200, 3)
    with pytest.raises(ValueError, match="train, val, testA, testB"):
        make_scene("test", 0)
    with pytest.raises(ValueError, match="32"):
        make_scene("val", 0, size=8)


@pytest.mark.parametrize("split", ["train", "val", "testA"])
def test_held_out_kinds_are_never_named(split: str) -> None:
    owners: dict[str, Kind] = {n: k for k in kinds() for n in (k.name, *k.synonyms)}
    shown = False
    for scene in scenes(split):
        shown |= any(thing.kind.held_out for thing in scene.objects)
        for expression in scene.expressions:
            assert not scene.objects[expression.target].kind.held_out
            named = nouns_in(expression.sentence, all_nouns())
            assert not any(n in owners and owners[n].held_out for n in named), expression
    assert shown, "held-out kinds may stand in the picture, and should"


def test_testA_repeats_what_it_asks_for_and_testB_asks_for_the_unnamed() -> None:
    for scene in scenes("testA"):
        for expression in scene.expressions:
            kind = scene.objects[expression.target].kind
            assert sum(thing.kind == kind for thing in scene.objects) >= 2
            assert expression.kind not in ("name", "synonym")
    for scene in scenes("testB"):
        assert all(scene.objects[e.target].kind.held_out for e in scene.expressions)


def test_scenes_are_what_they_always_were() -> None:
    """Shipped adapters and the figures in the documentation depend on every bit of them."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for index in range(3):
            scene = make_scene(split, index, size=64)
            digest.update(scene.image.tobytes())
            for e in scene.expressions:
                digest.update(f"{e.sentence}/{e.target}/{e.kind};".encode())
    assert digest.hexdigest() == "c9f1e180d8557909530ae3698ee7da11c3642113b0c27268446bcdcede3b6e20"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    write_scenes(path, dict.fromkeys(SPLITS, 5), size=96)
    return path


def test_files_are_what_refer_and_pycocotools_read(folder: Path) -> None:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "refcoco" / "instances.json"))
    with open(folder / "refcoco" / "refs(unc).p", "rb") as file:
        refs = pickle.load(file)
    expected = {split: [make_scene(split, i, size=96) for i in range(5)] for split in SPLITS}
    count = sum(len(scene.expressions) for split in expected.values() for scene in split)
    assert sum(len(ref["sentences"]) for ref in refs) == count
    for ref in refs:
        image = coco.loadImgs(ref["image_id"])[0]
        scene = expected[ref["split"]][ref["image_id"] % 1_000_000]
        annotation = coco.loadAnns(ref["ann_id"])[0]
        mask = coco.annToMask(annotation).astype(bool)
        (i,) = (i for i, o in enumerate(scene.objects) if np.array_equal(o.mask, mask))
        thing = scene.objects[i]
        assert annotation["bbox"] == list(thing.box) and annotation["area"] == mask.sum()
        assert coco.loadCats(ref["category_id"])[0]["name"] == thing.kind.name
        told = [(e.sentence, e.kind) for e in scene.expressions if e.target == i]
        assert [(s["raw"], s["kind"]) for s in ref["sentences"]] == told
        assert [s["sent_id"] for s in ref["sentences"]] == ref["sent_ids"]
        assert ref["file_name"] == image["file_name"]
        with Image.open(folder / "images" / "train2014" / image["file_name"]) as picture:
            difference = np.abs(np.asarray(picture, dtype=int) - scene.image)
        assert picture.size == (96, 96) and difference.mean() < 4


def test_annotations_hold_plain_containers_only(folder: Path) -> None:
    import pickletools

    data = (folder / "refcoco" / "refs(unc).p").read_bytes()
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(data)}
    assert not opcodes & {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"}
    assert data[:2] == b"\x80\x02"  # protocol 2, as RefCOCO's own
    assert len(json.loads((folder / "refcoco" / "instances.json").read_text())["images"]) == 20
