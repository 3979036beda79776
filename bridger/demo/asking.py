"""Heads are asked within a time limit, a few questions at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from bridger.answering import answer, required_processor
from bridger.demo.choices import Choice
from bridger.demo.limits import Limits
from bridger.demo.pictures import Picture
from bridger.heads import HeadOutput
from bridger.texts import Texts
from bridger.warp import Placement

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Runner:
    """Runs work in threads of its own, so many at a time, and waits no longer than a limit.

    Work that takes longer goes on, as nothing can end a thread from outside; it holds its place
    until it is done, and those who ask meanwhile are told so when their own time is over.

    Args:
        limits: `at_once` and `seconds` of them.
    """

    def __init__(self, limits: Limits) -> None:
        self.seconds = limits.seconds
        self._places = threading.BoundedSemaphore(limits.at_once)

    def run(self, work: Callable[[], T]) -> T:
        """Return what the work returns.

        Raises:
            TimeoutError: it took too long, or there was no place; in one sentence for a visitor.
        """
        until = time.monotonic() + self.seconds
        if not self._places.acquire(timeout=self.seconds):
            raise TimeoutError(
                f"Others are being answered, and there was no place within {self.seconds:g} "
                f"seconds: try again in a moment."
            )
        done: Future[T] = Future()

        def target() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)
            finally:
                self._places.release()

        # A daemon, so that the page can be closed while it runs.
        threading.Thread(target=target, name="bridger demo", daemon=True).start()
        try:
            return done.result(max(0.0, until - time.monotonic()))
        except FutureTimeoutError as error:
            if done.done():  # the work's own
                raise
            raise TimeoutError(
                f"This took longer than {self.seconds:g} seconds and was given up: ask for less "
                f"at once, or take a smaller model."
            ) from error


@dataclass(frozen=True)
class Answer:
    """What a head said, kept so that another threshold needs no run of the model.

    Attributes:
        choice: the head.
        picture: which it was asked about.
        texts: what it was asked.
        output: what it put out, at its own resolution.
    """

    choice: Choice
    picture: Picture
    texts: Texts
    output: HeadOutput

    @torch.no_grad()
    def result(self, threshold: float | None = None, *, whole: bool = False) -> Any:
        """Return what `predict` would, with another threshold.

        Args:
            threshold: from 0 to 1; None: the head's own.
            whole: at the size of the picture itself, otherwise of what the page shows of it.
        """
        head, processor = self.choice.head, required_processor(self.choice.model)
        size = self.picture.size if whole else self.picture.shown_size
        placement = Placement.fit(size, processor.image_size)
        options = {} if threshold is None else {"threshold": threshold}
        return head.results(self.output, processor, [placement], self.texts, **options)[0]


def ask(
    choice: Choice, picture: Picture, words: Sequence[str] | None, runner: Runner, limits: Limits
) -> Answer:
    """Ask a head about a picture.

    Raises:
        ValueError, TypeError: words that the head cannot read.
        TimeoutError: see `Runner.run`.
    """

    def work() -> Answer:
        processor = required_processor(choice.model)
        texts = choice.head.texts(processor, words)
        pixels: Tensor = processor.image(picture.pixels(limits))[0]
        output = answer(choice.model, choice.name, pixels.unsqueeze(0), texts)
        return Answer(choice, picture, texts, output)

    return runner.run(work)
