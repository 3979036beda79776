"""`bridger demo` without a browser: which heads there are, and what they answer visitors."""

from __future__ import annotations

import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_demo import HEADS, OwnHead, asked, counted, own_desk, predicted, refused, shipped
from helpers_judging import model_with
from PIL import Image

from bridger.demo.choices import Choice, load_choices
from bridger.demo.files import download_of
from bridger.demo.gallery import compose_gallery
from bridger.demo.pictures import SHOWN_SIDE
from bridger.demo.session import Desk, Session, View
from bridger.heads import register_head

# Adapters.


def test_the_shipped_adapters_share_one_pair_of_towers() -> None:
    choices = shipped()
    assert [choice.label for choice in choices] == HEADS
    encoders = [choice.model.encoder for choice in choices]
    assert len({id(encoder) for encoder in encoders}) == 2
    assert len({id(encoder.vision.module) for encoder in encoders}) == 1
    assert len({id(encoder.text.module) for encoder in encoders}) == 1
    assert not any(choice.model.training for choice in choices)


def test_choices_of_the_same_kind_are_told_apart(tmp_path: Path) -> None:
    for name in ("first", "second"):
        model_with("masks").save_pretrained(tmp_path / name)
    model_with("masks", "boxes").save_pretrained(tmp_path / "both")
    paths = [str(tmp_path / name) for name in ("first", "second", "both")]
    labels = [choice.label for choice in load_choices(paths, towers="tiny")]
    assert labels == ["Masks, first", "Masks, second", "Masks, both", "Boxes"]


def test_a_head_of_ones_own_is_called_as_it_is_registered(tmp_path: Path) -> None:
    model = model_with("masks")
    model.add_head("head", register_head("lamp_of_tests")(OwnHead))
    model.save_pretrained(tmp_path / "own")
    choices = load_choices([str(tmp_path / "own")], towers="tiny")
    assert [choice.label for choice in choices] == ["Masks", "Lamp of tests"]


def test_an_adapter_without_a_head_is_refused(tmp_path: Path) -> None:
    model = model_with("masks")
    model.drop_head("masks")
    model.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match="headless has no head that could answer"):
        load_choices([str(tmp_path / "headless")], towers="tiny")


def test_choices_know_thresholds_and_classes() -> None:
    choices = shipped()
    own = {choice.label: choice.threshold for choice in choices}
    assert own == {"Masks": 0.35, "Label map": None, "Boxes": 0.3, "Classes": None}
    assert [len(choice.classes) for choice in choices] == [0, 40, 40, 40]


# Answers.


@pytest.mark.parametrize("head", HEADS)
def test_the_page_says_what_predict_says(desk: Desk, scene: str, head: str) -> None:
    choice = desk.choices[head]
    session = asked(desk, scene, choice)
    expected = predicted(choice, scene)
    view = desk.show(session, scene, choice.threshold or 0.0)
    assert view.rows == expected.found()
    words = [expected.names] if head == "Masks" else []
    assert np.array_equal(np.asarray(view.overlay), np.asarray(expected.overlay(scene, *words)))
    download = desk.download(session, scene, choice.threshold or 0.0)
    assert download.data == download_of(expected).data


@pytest.mark.parametrize("head", HEADS)
def test_another_threshold_runs_no_model(desk: Desk, scene: str, head: str) -> None:
    choice = desk.choices[head]
    session = asked(desk, scene, choice)
    with counted(choice.model) as runs:
        for threshold in (0.2, 0.6):
            view = desk.show(session, scene, threshold)
            expected = predicted(choice, scene, threshold=threshold)
            runs.pop()  # predict's own
            assert view.rows == expected.found()
    assert not runs


def test_what_was_asked_before_is_not_run_again(desk: Desk, scene: str) -> None:
    masks, boxes = desk.choices["Masks"], desk.choices["Boxes"]
    with counted(masks.model) as runs, counted(boxes.model) as others:
        session = asked(desk, scene, masks)
        session = asked(desk, scene, boxes, session)
        session = asked(desk, scene, masks, session)
    assert len(runs) == len(others) == 1
    assert session.asked is not None and session.asked[0] == "Masks"


def test_without_names_the_classes_of_training_are_meant(desk: Desk, scene: str) -> None:
    choice = desk.choices["Label map"]
    session, view = desk.ask(Session(), scene, " \n", "Label map", 0.0)
    assert view.rows == choice.model.predict(scene, head=choice.name).found()
    assert len(session.answer(scene).texts.names) == 40  # type: ignore[union-attr]


def test_another_picture_forgets_the_answers_to_the_last(
    desk: Desk, scene: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (40, 30), "red").save(other)
    session = asked(
        desk, str(other), desk.choices["Masks"], asked(desk, scene, desk.choices["Masks"])
    )
    assert len(session.answers) == 1
    assert session.picture is not None and session.picture.size == (30, 40)


def test_an_answer_is_not_shown_for_another_picture(desk: Desk, scene: str) -> None:
    session = asked(desk, scene, desk.choices["Masks"])
    for path in (None, f"{scene}.other"):
        assert desk.show(session, path, 0.35) == View()
        with pytest.raises(ValueError, match="Nothing was asked about this picture"):
            desk.download(session, path, 0.35)


def test_visitors_at_once_get_what_each_would_get_alone(
    desk: Desk, tmp_path_factory: pytest.TempPathFactory
) -> None:
    scenes = [scene.path for scene in compose_gallery(tmp_path_factory.mktemp("many"), 4)]
    jobs = [(path, desk.choices[head]) for path in scenes for head in HEADS]
    expected = [predicted(choice, path).found() for path, choice in jobs]

    def visit(job: tuple[str, Choice]) -> Any:
        path, choice = job
        return desk.show(asked(desk, path, choice), path, choice.threshold or 0.0).rows

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(visit, jobs)) == expected


def test_a_large_picture_is_shown_small_and_downloaded_whole(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    noise = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((2000, 1200)).save(path)
    choice = desk.choices["Masks"]
    session = asked(desk, str(path), choice)
    view = desk.show(session, str(path), 0.02)
    expected = predicted(choice, path, threshold=0.02)
    assert view.overlay is not None and view.overlay.width == SHOWN_SIDE
    for row, true in zip(view.rows or (), expected.found(), strict=True):
        assert np.allclose(row["box"], true["box"], atol=2 * 2000 / SHOWN_SIDE)
        assert row["score"] == pytest.approx(true["score"], abs=0.01)
    download = desk.download(session, str(path), 0.02)
    with zipfile.ZipFile(io.BytesIO(download.data)) as archive:
        masks = [np.asarray(Image.open(archive.open(f"mask-{n}.png"))) for n in (1, 2)]
    assert np.array_equal(np.stack(masks) == 255, expected.masks)


# Heads of one's own.


def test_a_head_of_ones_own_is_shown_as_a_table(scene: str) -> None:
    desk = own_desk()
    choice = desk.choices["lamp"]
    session = asked(desk, scene, choice)
    expected = predicted(choice, scene)
    view = desk.show(session, scene, 0.5)
    assert view.rows == [{"words": k, "value": v} for k, v in expected.items()]
    assert view.overlay is None and view.download == "Download the result"
    download = desk.download(session, scene, 0.5)
    assert download.name == "found.json"
    assert json.loads(download.data) == view.rows


def test_what_nobody_expected_is_one_sentence(
    scene: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(own_desk(fails=True), scene, head="lamp")
    assert message == "This did not work: the lamp is broken and has two lines"
    assert capsys.readouterr().err.strip() == (
        "bridger demo: RuntimeError: the lamp is broken and has two lines"
    )
