"""How much one visitor of the page may ask for at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits that keep a page answering.

    Attributes:
        megabytes: of an uploaded file.
        megapixels: of a picture, in millions; a phone's photos have 12 to 25.
        sentences: most of one question.
        classes: most class names of one question.
        letters: of one sentence or name.
        seconds: that an answer may take, waiting for a place included.
        at_once: questions that the model answers at the same time.
        waiting: most requests that wait for a place.
        sessions: visitors whose pictures are kept; beyond, the one who was away longest is
            forgotten.
    """

    megabytes: int = 20
    megapixels: int = 25
    sentences: int = 8
    classes: int = 400
    letters: int = 400
    seconds: float = 60.0
    at_once: int = 2
    waiting: int = 64
    sessions: int = 64
