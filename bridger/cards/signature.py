"""What tells a card that bridger made from one of a user's own, and what it was made of."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SCENE, GIVEN, OWN = "scene", "given", "own"
"""Whose a card's picture is: drawn by bridger, given to it, or found beside the card."""

_SIGNED = re.compile(r"\n<!-- Made by bridger\. .* sha256 of what is above: ([0-9a-f]{64}) -->\n\Z")
_MADE = re.compile(r"\n<!-- Made of (\{.*\}) -->\n")


class MadeOf(NamedTuple):
    """What a card was made of.

    Attributes:
        repo_id: "user/name" on the Hub.
        weights: digest of the adapter's weights, with the config in them.
        licence: its identifier; None where none is named.
        figures: records of results, as `bridger.cards.facts.Facts` has them.
        picture: SCENE, GIVEN or OWN; None where there is none.
    """

    repo_id: str
    weights: str
    licence: str | None
    figures: Sequence[Mapping[str, Any]]
    picture: str | None


def signed(content: str, made: MadeOf) -> str:
    """Return a card with what it was made of, and the digest by which a changed one is told."""
    said = json.dumps(made._asdict()).replace(">", "\\u003e")  # nothing in it ends the comment
    content = f"{content}\n<!-- Made of {said} -->\n"
    kept = "If you change this card, it is yours and is not written over."
    return (
        f"{content}\n<!-- Made by bridger. {kept} sha256 of what is above: "
        f"{_digest(content.encode())} -->\n"
    )


def is_own_text(card: Path) -> bool:
    """Whether there is a card that bridger did not write, or that was changed since."""
    if not card.is_file():
        return False
    written = card.read_text(encoding="utf-8")
    found = _SIGNED.search(written)
    return found is None or _digest(written[: found.start()].encode()) != found[1]


def made_of(card: Path) -> MadeOf | None:
    """Return what a card was made of; None where it does not say."""
    found = _MADE.search(card.read_text(encoding="utf-8")) if card.is_file() else None
    try:
        return MadeOf(**json.loads(found[1])) if found else None
    except (ValueError, TypeError):  # somebody changed it
        return None


def digest_of(file: Path) -> str:
    """Return the digest of a file."""
    return _digest(file.read_bytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
