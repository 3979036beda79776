"""What the page does for one visitor: a picture, words, heads, and what they answered."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger.cli.base import one_line
from bridger.demo.asking import Answer, Runner, ask
from bridger.demo.choices import Choice
from bridger.demo.files import Download, download_of, what_is_downloaded
from bridger.demo.limits import Limits
from bridger.demo.pictures import GONE, Picture
from bridger.demo.rows import rows_of

if TYPE_CHECKING:
    from PIL import Image

MOST_ANSWERS = 16
"""Answers that are kept of one visitor, all about one picture."""

NOTHING_ASKED = "Nothing was asked about this picture yet: press Find first."

Question = tuple[str, tuple[str, ...] | None]
"""A choice's label and the words."""


@dataclass(frozen=True)
class Session:
    """What is remembered of a visitor; every answer makes a new one.

    Attributes:
        picture: the last one.
        answers: about that picture, by what was asked.
        asked: which of them is shown; None: none of them.
    """

    picture: Picture | None = None
    answers: Mapping[Question, Answer] = field(default_factory=dict)
    asked: Question | None = None

    def answer(self, path: str | None) -> Answer | None:
        """Return the answer that is shown, as long as it is about the picture at that path."""
        if self.asked is None or self.picture is None or self.picture.path != path:
            return None
        return self.answers[self.asked]


@dataclass(frozen=True)
class View:
    """What the page shows after a request.

    Attributes:
        overlay: the picture with what was found; None: nothing to draw.
        rows: of the table; None: no table.
        download: what the download is called; None: there is nothing to download.
        message: one sentence, where something went wrong.
    """

    overlay: Image.Image | None = None
    rows: Sequence[Mapping[str, Any]] | None = None
    download: str | None = None
    message: str = ""


class Desk:
    """Answers visitors' requests; it keeps nothing of them itself.

    Args:
        choices: the heads.
        limits: how much may be asked.
        debug: whether errors that are no visitor's fault print their traceback.
        folder: where pictures lie that may be asked about: a request can name any path of this
            machine. None: anywhere.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        limits: Limits | None = None,
        debug: bool = False,
        folder: Path | None = None,
    ) -> None:
        self.choices = {choice.label: choice for choice in choices}
        self.limits, self.debug = limits or Limits(), debug
        self._folder = None if folder is None else folder.resolve()
        self._runner = Runner(self.limits)

    def ask(
        self, session: Session, path: str | None, typed: str, label: str, threshold: float
    ) -> tuple[Session, View]:
        """Answer words about a picture, or say in one sentence why not.

        A question that was answered before about the same picture is not run again.

        Args:
            session: of the visitor.
            path: of the picture's file; None: there is no picture.
            typed: the words as they stand in their box.
            label: of the choice.
            threshold: as the slider stands.
        """
        try:
            choice = self.choices[label]
            question = (label, self.words(choice, typed))
            session = self.take(session, path)
            answers = dict(session.answers)
            if question not in answers:
                assert session.picture is not None
                answers[question] = ask(
                    choice, session.picture, question[1], self._runner, self.limits
                )
            kept = dict(list(answers.items())[-MOST_ANSWERS:])
            kept[question] = answers[question]
            session = replace(session, answers=kept, asked=question)
            return session, self.show(session, path, threshold)
        except Exception as error:
            return replace(session, asked=None), View(message=self.said(error))

    def take(self, session: Session, path: str | None) -> Session:
        """Return the session with a picture, which is read where it is another one.

        Raises:
            ValueError: there is none, or see `Picture.read`.
        """
        if path is None:
            raise ValueError("Choose a picture first: upload one, or take one of those below.")
        if session.picture is not None and session.picture.path == path:
            return session
        if self._folder is not None and self._folder not in Path(path).resolve().parents:
            raise ValueError(GONE)
        return Session(Picture.read(path, self.limits))

    def show(self, session: Session, path: str | None, threshold: float) -> View:
        """Show the last answer about a picture at a threshold, without running the model."""
        answer = session.answer(path)
        if answer is None:
            return View()
        try:
            result = answer.result(self.threshold(answer.choice, threshold))
            picture = answer.picture
            (height, width), (shown_height, shown_width) = picture.size, picture.shown_size
            return View(
                _overlay(result, picture.shown),
                rows_of(result, (width / shown_width, height / shown_height)),
                what_is_downloaded(result),
            )
        except Exception as error:
            return View(message=self.said(error))

    def download(self, session: Session, path: str | None, threshold: float) -> Download:
        """Return what was found, at the picture's own size.

        Raises:
            TimeoutError: it takes too long, as large pictures with many classes may.
            ValueError: nothing was asked about this picture.
        """
        answer = session.answer(path)
        if answer is None:
            raise ValueError(NOTHING_ASKED)
        cut = self.threshold(answer.choice, threshold)
        return self._runner.run(lambda: download_of(answer.result(cut, whole=True)))

    @staticmethod
    def threshold(choice: Choice, slider: float) -> float | None:
        """Return the threshold that a slider means; at 0 some heads have a rule of their own."""
        if not choice.has_threshold or (choice.threshold is None and slider == 0):
            return None
        return slider

    def words(self, choice: Choice, typed: str) -> tuple[str, ...] | None:
        """Return the sentences or the class names in what was typed.

        Sentences stand on lines of their own, names between commas too. No names at all are those
        that the head was trained on.

        Raises:
            ValueError: there is nothing, or too much.
        """
        sentences = choice.text == "expressions"
        parts = re.split(r"\n" if sentences else r"[\n,;]", typed)
        words = tuple(" ".join(part.split()) for part in parts if part.strip())
        if not words:
            if sentences:
                raise ValueError("Say what to look for, such as: the owl on the left")
            if not choice.classes:
                raise ValueError("Say which classes to look for, such as: owl, car, drum")
            return None
        most = self.limits.sentences if sentences else self.limits.classes
        what = "sentences" if sentences else "class names"
        if len(words) > most:
            raise ValueError(f"These are {len(words)} {what}, and {most} at once are the most.")
        if (longest := max(map(len, words))) > self.limits.letters:
            raise ValueError(
                f"One of the {what} has {longest} letters, and {self.limits.letters} are the most."
            )
        return words if sentences else tuple(dict.fromkeys(words))

    def said(self, error: Exception) -> str:
        """Return an error in one sentence for the page; the unexpected goes to the terminal too."""
        message = one_line(str(error).splitlines()) or type(error).__name__
        if isinstance(error, (ValueError, TimeoutError)):
            return message
        print(f"bridger demo: {type(error).__name__}: {message}", file=sys.stderr, flush=True)
        if self.debug:
            traceback.print_exception(error)
        return f"This did not work: {message}"


def _overlay(result: Any, picture: Image.Image) -> Image.Image | None:
    """Draw a result on its picture, where it can be drawn."""
    from bridger.predictions import Prediction

    if not hasattr(result, "overlay"):
        return None
    if isinstance(result, Prediction):
        drawn: Image.Image = result.overlay(picture, result.names)
    else:
        drawn = result.overlay(picture)
    return drawn
