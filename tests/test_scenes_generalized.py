"""Scenes in gRefCOCO's layout: what means several objects is true of them all, and of no other.

As in `test_scenes`, the checks read sentences and masks, and share no rule with what made them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bridger.data import GRefCOCO, RefCOCO, open_split
from bridger.data.generalized import plural
from bridger.data.scenes import IDS_PER_SPLIT, SPLITS, Scene, make_scene, write_scenes
from bridger.data.sprites import TINTS, kinds

COUNT = 40
NUMBERS = {"both": 2, "two": 2, "three": 3, "four": 4}
NOUNS = {noun for kind in kinds() for noun in kind.nouns}
SINGULARS = {many: noun for noun in NOUNS if (many := plural(noun))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generalized")
    write_scenes(path, dict.fromkeys(SPLITS, COUNT), size=64, layout="grefcoco")
    return path


@pytest.fixture(scope="module")
def said(folder: Path) -> list[tuple[str, Scene, str, str, tuple[int, ...]]]:
    """Split, scene, sentence, kind and the objects that the mask consists of."""
    scenes = {(s, i): make_scene(s, i, size=64) for s in SPLITS for i in range(COUNT)}
    rows = []
    for split in SPLITS:
        for sample in GRefCOCO(folder, split):
            number = int(re.findall(r"\d+", sample.image_path.stem)[-1]) % IDS_PER_SPLIT
            scene = scenes[split, number]
            inside = [bool(sample.mask[o.mask].all()) for o in scene.objects]
            targets = tuple(i for i, meant in enumerate(inside) if meant)
            whole = np.zeros_like(sample.mask)
            for i in targets:
                whole |= scene.objects[i].mask
            np.testing.assert_array_equal(sample.mask, whole)
            assert len(sample.ann_ids) == len(targets)
            for sentence, kind in zip(sample.sentences, sample.kinds, strict=True):
                rows.append((split, scene, sentence, kind, targets))
    return rows


def called(scene: Scene, noun: str) -> tuple[int, ...]:
    return tuple(i for i, thing in enumerate(scene.objects) if noun in thing.kind.nouns)


def bare(words: str) -> str:
    return re.sub(r"^the ", "", words)


def test_a_third_each_means_one_several_and_none(said) -> None:
    kinds_made = Counter(kind for *_, kind, _ in said)
    targets = Counter(min(len(targets), 2) for *_, targets in said)
    assert targets[0] == kinds_made["none"] and targets[2] == kinds_made["several"]
    assert {"name", "place", "relation", "colour"} < set(kinds_made)
    assert all(0.27 < count / len(said) < 0.4 for count in targets.values()), targets


def test_singles_are_the_scenes_own(said) -> None:
    for _, scene, sentence, kind, targets in said:
        if len(targets) == 1:
            own = [(e.sentence, e.target, e.kind) for e in scene.expressions]
            assert (sentence, targets[0], kind) in own


def test_what_means_none_names_nothing_in_the_scene(said) -> None:
    coloured = 0
    for _, scene, sentence, kind, _ in said:
        if kind == "none":
            noun = bare(sentence)
            colour, _, rest = noun.partition(" ")
            if noun not in NOUNS:
                assert colour in TINTS
                noun, coloured = rest, coloured + 1
            assert noun in NOUNS and called(scene, noun) == (), sentence
            shown = {word for o in scene.objects for word in (o.kind.name, *o.kind.synonyms)}
            assert not set(noun.split()) & {part for word in shown for part in word.split()}
    assert coloured > 10


def test_what_means_several_is_true_of_them_and_no_other(said) -> None:
    forms: Counter[str] = Counter()
    for _, scene, sentence, kind, targets in said:
        if kind != "several":
            continue
        if " and " in sentence and sentence not in NOUNS:
            parts = [called(scene, bare(part)) for part in sentence.split(" and ")]
            assert sorted(parts) == [(i,) for i in targets], sentence
            forms["and"] += 1
            continue
        phrase, _, side = re.fullmatch(
            r"(.*?)( (?:on|at) the (left|right|top|bottom))?", sentence
        ).groups()
        words = bare(phrase).split()
        if words[0] == "each":
            noun = " ".join(words[1:])
        else:
            count = NUMBERS.get(words[0])
            assert count is None or count == len(targets), sentence
            words = words[1:] if words[0] in NUMBERS or words[0] == "all" else words
            noun = SINGULARS[" ".join(words).removeprefix("the ")]
        group = called(scene, noun)
        if side is not None:
            spots = {i: spot(scene, i, side) for i in group}
            group = tuple(i for i in group if spots[i] < 0.5)
            assert all(abs(place - 0.5) > 0.1 for place in spots.values()), sentence
        assert group == targets and len(targets) > 1, sentence
        forms["side" if side else words[0] if words[0] == "each" else "all"] += 1
    assert min(forms[form] for form in ("and", "side", "each", "all")) > 5, forms


def spot(scene: Scene, i: int, side: str) -> float:
    """How far the middle of an object lies from a side, as a fraction of the picture."""
    rows, columns = np.nonzero(scene.objects[i].mask)
    across = (columns.min() + columns.max() + 1) / 2 / scene.image.shape[1]
    down = (rows.min() + rows.max() + 1) / 2 / scene.image.shape[0]
    return {"left": across, "right": 1 - across, "top": down, "bottom": 1 - down}[side]


def test_held_out_kinds_belong_to_testB(said) -> None:
    owners = {word: kind for kind in kinds() for word in (kind.name, *kind.synonyms)}
    for split, scene, sentence, kind, targets in said:
        held_out = [scene.objects[i].kind.held_out for i in targets]
        if kind == "none":
            words = bare(sentence)
            owner = owners.get(words) or owners[words.partition(" ")[2]]
            held_out = [owner.held_out]
        assert any(held_out) if split == "testB" else not any(held_out), sentence


def test_plurals() -> None:
    wanted = {
        "fox": "foxes",
        "box": "boxes",
        "toy": "toys",
        "strawberry": "strawberries",
        "maple leaf": "maple leaves",
        "knife": "knives",
        "giraffe": "giraffes",
        "mouse": "mice",
        "sheep": "sheep",
        "big cat": "big cats",
        "magnifying glass": "magnifying glasses",
        "bread": None,
        "sports gear": None,
        "scissors": None,
    }
    assert {noun: plural(noun) for noun in wanted} == wanted
    assert len(SINGULARS) == sum(plural(noun) is not None for noun in NOUNS)


def test_both_layouts_share_a_folder(tmp_path: Path) -> None:
    write_scenes(tmp_path, {"val": 3}, size=48, layout="grefcoco")
    pictures = {p.name: p.read_bytes() for p in (tmp_path / "images" / "train2014").iterdir()}
    refs = (tmp_path / "grefcoco" / "grefs(unc).json").read_bytes()
    assert open_split(tmp_path, "val").name == "grefcoco/unc"
    write_scenes(tmp_path, {"val": 3, "train": 2}, size=48)
    for name, content in pictures.items():
        assert (tmp_path / "images" / "train2014" / name).read_bytes() == content
    assert (tmp_path / "grefcoco" / "grefs(unc).json").read_bytes() == refs
    general, plain = GRefCOCO(tmp_path, "val"), RefCOCO(tmp_path, "val")
    assert set(general.picture_keys()) == set(plain.picture_keys())
    with pytest.raises(ValueError, match="there is no layout 'coco'; scenes have refcoco, gref"):
        write_scenes(tmp_path, {"val": 1}, layout="coco")


def test_the_files_are_what_gRefCOCOs_own_reader_takes(folder: Path, tmp_path: Path) -> None:
    refs = json.loads((folder / "grefcoco" / "grefs(unc).json").read_text())
    instances = json.loads((folder / "grefcoco" / "instances.json").read_text())
    objects = {a["id"]: a for a in instances["annotations"]}
    assert len({ref["ref_id"] for ref in refs}) == len(refs)
    for ref in refs:
        assert isinstance(ref["ann_id"], list) and len(ref["category_id"]) == len(ref["ann_id"])
        if ref["ann_id"] != [-1]:
            assert all(objects[i]["image_id"] == ref["image_id"] for i in ref["ann_id"])
            assert ref["category_id"] == [objects[i]["category_id"] for i in ref["ann_id"]]
        for sentence in ref["sentences"]:
            assert {"sent_id", "sent", "raw", "tokens", "kind"} <= set(sentence)
    # More scenes do not change those that there are.
    write_scenes(tmp_path, {"train": 2}, size=64, layout="grefcoco")
    fewer = [s.sentences for s in GRefCOCO(tmp_path, "train")]
    assert fewer == [s.sentences for s in GRefCOCO(folder, "train")][: len(fewer)]
