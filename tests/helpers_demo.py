"""What the tests of `bridger demo` share: visitors, heads of one's own, pictures that are none."""

from __future__ import annotations

import functools
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from helpers_judging import model_with

from bridger.config import Config
from bridger.demo.choices import Choice, load_choices
from bridger.demo.limits import Limits
from bridger.demo.session import Desk, Session
from bridger.heads import Head, HeadOutput
from bridger.model import BridgedModel

SENTENCES = ["the candle near the chair", "the chair"]
HEADS = ["Masks", "Label map", "Boxes", "Classes"]


@functools.cache
def shipped() -> list[Choice]:
    """The heads of the adapters in the package."""
    return load_choices(["tiny", "tiny-heads"], device="cpu")


@contextmanager
def counted(model: BridgedModel) -> Iterator[list[int]]:
    """Count the forwards of a model's bridged towers."""
    runs: list[int] = []
    hook = model.encoder.register_forward_hook(lambda *_: runs.append(1))
    try:
        yield runs
    finally:
        hook.remove()


def typed(choice: Choice) -> str:
    return "\n".join(SENTENCES) if choice.text == "expressions" else "candle, chair"


def predicted(choice: Choice, picture: Any, **options: Any) -> Any:
    words = SENTENCES if choice.text == "expressions" else ["candle", "chair"]
    return choice.model.predict(picture, words, head=choice.name, **options)


def asked(desk: Desk, path: str, choice: Choice, session: Session | None = None) -> Session:
    """Ask, and insist on an answer."""
    threshold = choice.threshold or 0.0
    session, view = desk.ask(session or Session(), path, typed(choice), choice.label, threshold)
    assert view.message == ""
    return session


def refused(desk: Desk, path: str | None, words: str = "the chair", head: str = "Masks") -> str:
    """Ask, and insist on a refusal: one sentence, and nothing else."""
    session, view = desk.ask(Session(), path, words, head, 0.35)
    assert view.overlay is None and view.rows is None and view.download is None
    assert session.asked is None and "\n" not in view.message
    return view.message


@dataclass(frozen=True)
class OwnConfig(Config):
    seconds: float = 0.0
    fails: bool = False


class OwnHead(Head):
    """Says how bright each sentence's feature is; may be slow, or fail."""

    config_class = OwnConfig
    config: OwnConfig

    def forward(self, features: Any, labels: Any = None, expression_mask: Any = None) -> HeadOutput:
        time.sleep(self.config.seconds)
        if self.config.fails:
            raise RuntimeError("the lamp is broken\nand has two lines")
        return HeadOutput(features.sentence.mean(dim=-1).reshape(1, -1))

    def results(
        self, output: HeadOutput, processor: Any, placements: Any, texts: Any
    ) -> list[dict[str, float]]:
        return [dict(zip(texts.names, row, strict=True)) for row in output.logits.tolist()]


def own_desk(limits: Limits | None = None, **options: Any) -> Desk:
    model = model_with("masks")
    model.add_head("lamp", OwnHead, **options)
    return Desk([Choice("lamp", "own", model.eval(), "lamp")], limits)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header says how large it is, and which holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
