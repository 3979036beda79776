"""`bridger demo` without a browser: what it refuses, its tables and files, and where it serves."""

from __future__ import annotations

import io
import json
import socket
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from helpers_demo import asked, own_desk, png_of, predicted, refused, shipped
from helpers_judging import model_with
from PIL import Image

from bridger.data.scene_labels import scene_classes
from bridger.demo import serving
from bridger.demo.choices import Choice
from bridger.demo.gallery import compose_gallery
from bridger.demo.limits import Limits
from bridger.demo.pictures import Picture
from bridger.demo.rows import rows_of, table_of
from bridger.demo.session import Desk
from bridger.heads import HeadOutput
from bridger.labels import BACKGROUND

Run = Callable[..., tuple[int, str, str]]


# Refusals.


def test_there_must_be_a_picture_and_words(desk: Desk, scene: str) -> None:
    assert refused(desk, None).startswith("Choose a picture first")
    assert refused(desk, scene, " \n ") == "Say what to look for, such as: the owl on the left"
    assert "no longer here" in refused(desk, f"{scene}.gone")


def test_names_are_needed_where_a_head_keeps_none(scene: str) -> None:
    desk = Desk([Choice("Boxes", "own", model_with("boxes", classes=()), "boxes")])
    message = refused(desk, scene, "", "Boxes")
    assert message == "Say which classes to look for, such as: owl, car, drum"


def test_too_much_at_once_is_refused(scene: str) -> None:
    desk = Desk(shipped(), replace(Limits(), sentences=2, classes=2, letters=30))
    assert "3 sentences, and 2 at once are the most" in refused(desk, scene, "a dog\na cat\nan owl")
    assert "3 class names, and 2 at once" in refused(desk, scene, "dog, cat, owl", "Boxes")
    assert "31 letters, and 30 are the most" in refused(desk, scene, "a" * 31)


@pytest.mark.parametrize(
    "words", ["candle, chair", "candle;chair", "candle\n chair ,", "candle,candle,chair"]
)
def test_names_are_separated_by_commas_and_lines(desk: Desk, words: str) -> None:
    assert desk.words(desk.choices["Boxes"], words) == ("candle", "chair")
    assert desk.words(desk.choices["Masks"], "the owl, please\n\n a  dog ") == (
        "the owl, please",
        "a dog",
    )


def test_broken_pictures_are_refused(desk: Desk, scene: str, tmp_path: Path) -> None:
    data = Path(scene).read_bytes()
    for name, content, message in (
        ("cut.png", data[: len(data) // 2], "broken"),
        ("text.png", b"no picture", "no picture that can be read"),
        ("empty.png", b"", "no picture that can be read"),
        # Pillow starts Ghostscript for these.
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
    ):
        (tmp_path / name).write_bytes(content)
        assert message in refused(desk, str(tmp_path / name))


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_unpacked(
    desk: Desk, tmp_path: Path
) -> None:
    for side in (6000, 20_000):  # Pillow itself refuses the second
        path = tmp_path / f"{side}.png"
        path.write_bytes(png_of(side, side))
        message = refused(desk, str(path))
        assert "more than the 25 million pixels" in message
        assert (f"{side} x {side}" in message) == (side == 6000)


def test_a_large_file_is_refused(scene: str) -> None:
    desk = Desk(shipped(), replace(Limits(), megabytes=0))
    assert "more than the 0 MB that this page takes" in refused(desk, scene)


def test_pictures_elsewhere_on_this_machine_are_not_opened(scene: str, tmp_path: Path) -> None:
    inside = tmp_path / "page"
    inside.mkdir()
    own, link = inside / "own.png", inside / "link.png"
    own.write_bytes(Path(scene).read_bytes())
    link.symlink_to(scene)
    desk = Desk(shipped(), folder=inside)
    assert asked(desk, str(own), desk.choices["Masks"]).picture is not None
    missing = refused(desk, str(inside / "none.png"))
    for path in (scene, str(link), str(inside / ".." / Path(scene).name), "/etc/passwd"):
        assert refused(desk, path) == missing  # which does not tell whether there is such a file


def test_requests_that_name_a_file_or_an_address_are_refused(scene: str) -> None:
    pytest.importorskip("gradio")
    with serving.open_page(shipped(), port=0) as address:
        for payload in (
            {"path": scene},
            {"path": scene, "meta": {"_type": "gradio.FileData"}},
            {"path": "http://127.0.0.1:9/a.png", "meta": {"_type": "gradio.FileData"}},
            {"path": "https://example.org/a.png", "meta": {"_type": "gradio.FileData"}},
        ):
            answer = asked_over_http(address, [None, payload, "Masks", 0.35, "the chair", ""])
            assert "chair" not in answer and ".jp" not in answer, answer
            assert any(
                said in answer for said in ("no longer here", "not uploaded", "no addresses")
            )


def asked_over_http(address: str, data: list[Any]) -> str:
    """Ask as the page does, with a request of one's own; return the last event of the answer."""
    body = json.dumps({"data": data, "fn_index": 0, "session_hash": "visitor"}).encode()
    headers = {"Content-Type": "application/json"}
    url = address.rstrip("/") + "/gradio_api/queue"
    urlopen(Request(f"{url}/join", body, headers), timeout=30).close()
    with urlopen(f"{url}/data?session_hash=visitor", timeout=60) as events:
        for line in events:
            if b"process_completed" in line:
                return str(line.decode())
    raise AssertionError("no answer came")


def test_rotated_photos_stand_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[274] = 6  # a quarter turn
    image.save(tmp_path / "photo.jpg", exif=exif)
    picture = Picture.read(tmp_path / "photo.jpg", Limits())
    assert picture.size == picture.shown_size == (40, 20)


# Time.


def test_a_slow_answer_is_given_up_and_its_place_comes_back(scene: str) -> None:
    desk = own_desk(replace(Limits(), seconds=0.3, at_once=1), seconds=0.9)
    assert "took longer than 0.3 seconds" in refused(desk, scene, head="lamp")
    assert "no place within 0.3 seconds" in refused(desk, scene, head="lamp")
    desk = own_desk(replace(Limits(), seconds=20, at_once=1), seconds=0.2)
    asked(desk, scene, desk.choices["lamp"])
    asked(desk, scene, desk.choices["lamp"])


def test_no_more_are_answered_at_once_than_allowed(scene: str) -> None:
    desk = own_desk(replace(Limits(), at_once=2), seconds=0.1)
    inside, most, lock = [0], [0], threading.Lock()
    head = desk.choices["lamp"].head
    forward = head.forward

    def watched(*args: Any, **kwargs: Any) -> HeadOutput:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        try:
            return forward(*args, **kwargs)
        finally:
            with lock:
                inside[0] -= 1

    head.forward = watched  # type: ignore[method-assign]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: asked(desk, scene, desk.choices["lamp"]), range(6)))
    assert most[0] == 2


# Tables and files.


def test_rows_are_made_of_whatever_a_head_returns() -> None:
    assert rows_of([{"a": 1}, 2]) == [{"a": 1}, {"value": 2}]
    assert rows_of("text") == [{"value": "text"}]
    assert rows_of({"owl": 2.0}) == [{"words": "owl", "value": 2.0}]


def test_tables_escape_what_visitors_type() -> None:
    table = table_of([{"words": "<img src=x onerror=alert(1)>", "<b>": "&"}])
    assert "<img" not in table and "<b>" not in table and "&lt;img" in table and "&amp;" in table


def test_tables_say_where_nothing_was_found() -> None:
    rows = [{"words": "owl", "score": 0.0, "box": [0, 0, 0, 0], "share": 0.0}]
    assert "nothing found" in table_of(rows) and "0.00" not in table_of(rows)
    assert "Nothing found" in table_of([])


def test_a_label_map_is_downloaded_with_its_classes(desk: Desk, scene: str) -> None:
    session = asked(desk, scene, desk.choices["Label map"])
    download = desk.download(session, scene, 0.0)
    assert download.name == "labels.zip"
    with zipfile.ZipFile(io.BytesIO(download.data)) as archive:
        labels = np.asarray(Image.open(archive.open("labels.png"))).astype(int)
        about = json.loads(archive.read("found.json"))
    result = predicted(desk.choices["Label map"], scene)
    assert about["classes"] == ["candle", "chair"] and about["background"] == 255
    assert np.array_equal(np.where(labels == 255, BACKGROUND, labels), result.labels)


def test_the_gallery_is_the_same_each_time_and_its_words_fit(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    first, again = compose_gallery(tmp_path, 4), compose_gallery(tmp_path / "again", 4)
    known = {kind.name for kind in scene_classes()}
    for one, other in zip(first, again, strict=True):
        assert one.words == other.words
        assert Path(one.path).read_bytes() == Path(other.path).read_bytes()
        assert one.words["expressions"] and known & {*one.words["classes"]}
        assert one.words["classes"][0].split(", ") == list(one.words["classes"][1:])


# Serving.


def test_a_port_that_is_taken_is_an_error_or_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((serving.LOCALHOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 cannot be had .*--port out"):
            serving.find_port(serving.LOCALHOST, port)
        monkeypatch.setattr(serving, "FIRST_PORT", port)
        assert serving.find_port(serving.LOCALHOST, None) > port
        monkeypatch.setattr(serving, "PORTS", 1)
        with pytest.raises(OSError, match="no port from"):
            serving.find_port(serving.LOCALHOST, None)
    assert serving.find_port(serving.LOCALHOST, 0) > 0


def test_a_host_of_another_machine_is_an_error() -> None:
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(OSError, match=f"--host {host}"):
            serving.find_port(host, 0)


def test_without_gradio_the_command_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, error = run("demo", "--no-open")
    assert code == 1
    assert error.endswith("which is not installed: pip install 'bridger-peft[demo]'\n")
    assert error.count("\n") == 1


def test_an_adapter_that_is_not_there_is_one_error(run: Run) -> None:
    pytest.importorskip("gradio")
    code, _, error = run("demo", "no-such-adapter", "--no-open")
    assert code == 1 and "no-such-adapter" in error and error.count("\n") == 1
