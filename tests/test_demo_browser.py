"""`bridger demo` end to end: its process, its page in Chromium, and several visitors at once."""

from __future__ import annotations

import io
import json
import signal
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers_browser import Server, Visitor, chromium, served
from helpers_demo import png_of, shipped
from PIL import Image

from bridger.data.scenes import make_scene

pytest.importorskip("gradio")
pytestmark = pytest.mark.slow

SPLIT, SIZE = "testA", 96


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served("--device", "cpu") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visitor(browser: Any, server: Server) -> Iterator[Visitor]:
    visitor = Visitor(browser, server.address)
    yield visitor
    visitor.page.close()
    assert visitor.complaints == [] and visitor.foreign == []
    assert not any("Traceback" in line for line in server.said)


def picture_of(folder: Path, number: int) -> tuple[str, list[str]]:
    """A picture of one's own, and sentences about it."""
    scene = make_scene(SPLIT, number, size=SIZE)
    path = folder / f"own-{number}.png"
    Image.fromarray(scene.image).save(path)
    return str(path), [expression.sentence for expression in scene.expressions[:2]]


def predicted(path: str, words: list[str], **options: Any) -> Any:
    return shipped()[0].model.predict(path, words, **options)


def mask_of(data: bytes) -> npt.NDArray[np.bool_]:
    return np.asarray(Image.open(io.BytesIO(data))) == 255


def upload(visitor: Visitor, path: str) -> None:
    """Put a picture of one's own into the place of the one that is there."""
    page = visitor.page
    page.get_by_role("button", name="Upload file").click()
    with page.expect_file_chooser() as waiting:
        page.get_by_text("Click to Upload").click()
    waiting.value.set_files(path)
    page.locator(f"#picture img[src$='{Path(path).name}']").wait_for()


def ask(visitor: Visitor, words: list[str]) -> None:
    box = visitor.page.locator("#words-expressions textarea")
    box.fill("\n".join(words))
    box.press("Enter")


def rows(visitor: Visitor, count: int) -> list[list[str]]:
    """Wait for a table of that many rows; return its cells."""
    found = visitor.page.locator("#found tbody tr")
    found.nth(count - 1).wait_for()
    return [row.locator("td").all_inner_texts() for row in found.all()]


def wait_for_score(visitor: Visitor, score: float) -> None:
    text = f"{score:.2f}"
    visitor.page.locator("#found td", has_text=text).first.wait_for()


def shown(visitor: Visitor) -> Image.Image:
    """The picture with what was found, as the page shows it."""
    address = visitor.page.locator("#seen img").get_attribute("src")
    return Image.open(io.BytesIO(visitor.page.request.get(address).body())).convert("RGB")


def downloaded(visitor: Visitor, button: str) -> tuple[str, bytes]:
    with visitor.page.expect_download() as waiting:
        visitor.page.get_by_role("button", name=button).click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def alert(visitor: Visitor) -> str:
    found = visitor.page.locator("#message [role=alert]")
    found.wait_for()
    text: str = found.inner_text()
    return text


# One visitor.


def test_from_an_upload_to_the_mask(visitor: Visitor, tmp_path: Path) -> None:
    path, words = picture_of(tmp_path, 1)
    upload(visitor, path)
    ask(visitor, words)
    expected = predicted(path, words)
    cells = rows(visitor, 2)
    assert [row[0] for row in cells] == words
    assert [row[1] for row in cells] == [f"{score:.2f}" for score in expected.scores]

    overlay = np.asarray(expected.overlay(path, words), dtype=float)
    seen = np.asarray(shown(visitor), dtype=float)
    assert seen.shape == overlay.shape
    assert np.abs(seen - overlay).mean() < 4  # it is sent as JPEG

    name, data = downloaded(visitor, "Download the masks")
    assert name == "masks.zip"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        masks = [mask_of(archive.read(f"mask-{number}.png")) for number in (1, 2)]
    assert np.array_equal(np.stack(masks), expected.masks)
    name, data = downloaded(visitor, "Download this view")
    assert name == "overlay.png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), overlay)


def test_the_threshold_changes_the_mask(visitor: Visitor, tmp_path: Path) -> None:
    path, words = picture_of(tmp_path, 2)
    upload(visitor, path)
    ask(visitor, words[:1])
    wait_for_score(visitor, predicted(path, words[:1]).scores[0])
    box = visitor.page.locator("#threshold input[type=number]")
    box.fill("0.8")
    box.press("Enter")
    expected = predicted(path, words[:1], threshold=0.8)
    wait_for_score(visitor, expected.scores[0])
    name, data = downloaded(visitor, "Download the mask")
    assert name == "mask.png"
    assert np.array_equal(mask_of(data), expected.masks[0])


def test_heads_answer_when_they_are_chosen(visitor: Visitor) -> None:
    page = visitor.page
    for choice in shipped()[1:]:
        page.locator("#heads").get_by_text(choice.label, exact=True).click()
        name = "Download the label map" if choice.label == "Label map" else "Download the result"
        page.get_by_role("button", name=name).and_(page.locator(":enabled")).wait_for()
        page.locator("#words-classes textarea").wait_for()
        page.locator("#words-expressions textarea").wait_for(state="hidden")
    page.locator("#words-classes textarea").fill("candle, chair")
    page.locator("#ask").click()
    bars = page.locator("#found tbody tr")
    bars.first.wait_for()
    page.locator("#heads").get_by_text("Boxes", exact=True).click()
    page.locator("#found td", has_text="candle").first.wait_for()
    page.locator("#found th", has_text="Box").wait_for()
    name, data = downloaded(visitor, "Download the result")
    assert name == "found.json"
    assert {row["words"] for row in json.loads(data)} <= {"candle", "chair"}
    page.locator("#heads").get_by_text("Masks", exact=True).click()
    page.locator("#found th", has_text="Share").wait_for()


def test_a_scene_and_its_words_are_one_click_each(visitor: Visitor) -> None:
    page = visitor.page
    page.locator("#gallery button").nth(4).click()
    rows(visitor, 1)
    chips = page.locator("#examples-expressions button").all_inner_texts()
    words = chips[1].strip()
    page.locator("#examples-expressions button").nth(1).click()
    page.locator("#found td", has_text=words).wait_for()
    assert page.locator("#words-expressions textarea").input_value() == words


def test_mistakes_are_told_in_a_sentence(visitor: Visitor, tmp_path: Path) -> None:
    ask(visitor, [" "])
    assert alert(visitor) == "Say what to look for, such as: the owl on the left"
    broken = tmp_path / "broken.png"
    for data, message in (
        (b"no picture", "no picture that can be read"),
        (png_of(20_000, 20_000), "more than the 25 million pixels"),
    ):
        broken.write_bytes(data)
        upload(visitor, str(broken))
        ask(visitor, ["the chair"])
        visitor.page.locator("#message", has_text=message).wait_for()
    path, words = picture_of(tmp_path, 3)
    upload(visitor, path)
    ask(visitor, words)
    assert [row[0] for row in rows(visitor, 2)] == words
    assert visitor.page.locator("#message [role=alert]").count() == 0


def test_words_of_a_visitor_are_never_code(visitor: Visitor) -> None:
    ask(visitor, ["the <img src=x onerror=document.title='broken'> chair"])
    rows(visitor, 1)
    assert visitor.page.locator("#found img").count() == 0
    assert visitor.page.title() != "broken"


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_stands_out_of_the_page(browser: Any, server: Server, width: int) -> None:
    visitor = Visitor(browser, server.address, width)
    visitor.page.locator("#ask").click()
    rows(visitor, 1)
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
    visitor.page.close()
    assert visitor.complaints == [] and visitor.foreign == []


# Several visitors.


def test_visitors_at_once_see_their_own_pictures(server: Server, tmp_path: Path) -> None:
    client = pytest.importorskip("gradio_client")
    jobs = [picture_of(tmp_path, number) for number in range(4)]
    expected = [predicted(path, words) for path, words in jobs]

    def visit(job: tuple[str, list[str]]) -> list[Any]:
        path, words = job
        visitor = client.Client(server.address, verbose=False, analytics_enabled=False)
        masks, picture = [], client.handle_file(path)
        for _ in range(2):
            visitor.predict(picture, "Masks", 0.35, "\n".join(words), "", api_name="/ask")
            file, _ = visitor.predict(picture, 0.35, api_name="/download")
            with zipfile.ZipFile(file) as archive:
                masks.append([mask_of(archive.read(f"mask-{n}.png")) for n in (1, 2)])
        return masks

    with ThreadPoolExecutor(len(jobs)) as pool:
        for masks, true in zip(pool.map(visit, jobs), expected, strict=True):
            assert np.array_equal(np.array(masks), np.stack([true.masks, true.masks]))


def test_files_that_nobody_uploaded_are_not_read(server: Server, tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx")
    path, words = picture_of(tmp_path, 0)
    theirs = {"path": path, "meta": {"_type": "gradio.FileData"}}
    call = f"{server.address}gradio_api/call/ask"
    asked = httpx.post(call, json={"data": [theirs, "Masks", 0.35, words[0], ""]})
    answer = httpx.get(f"{call}/{asked.json()['event_id']}", timeout=60).text
    assert "event: error" in answer and "event: complete" not in answer
    assert httpx.get(f"{server.address}gradio_api/file={path}").status_code in (403, 404)


# The process.


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["interrupted", "ended"])
def test_it_ends_cleanly_and_leaves_nothing(
    how: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about, temporary = tmp_path / "page.json", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    server = Server("tiny", "--json", str(about))
    said = json.loads(about.read_text())
    assert said["address"] == server.address and said["heads"] == {"Masks": "tiny"}
    assert server.address.startswith("http://127.0.0.1:")
    assert any(temporary.glob("bridger-demo-*"))
    assert server.end(how) == 0
    left = [path.name for path in temporary.iterdir()]
    assert not [name for name in left if not name.startswith("torchinductor_")]  # torch's own
    assert server.said[-1] == "closed\n" and len(server.said) == 3
