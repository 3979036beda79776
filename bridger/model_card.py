"""The model card of an adapter: README.md in its folder, with the metadata that the Hub reads."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from bridger.adapter_files import WEIGHTS_FILE, read_saved_config
from bridger.cards.facts import EMBEDDED, Facts, Figures, facts_of
from bridger.named_towers.of_adapter import towers_of
from bridger.named_towers.origins import origins_of

if TYPE_CHECKING:
    from PIL import Image

    from bridger.cards.picture import Shown
    from bridger.saving import SavedModel

CARD, PICTURE = "README.md", "card.png"

_SIGNED = re.compile(r"\n<!-- Made by bridger\. .* sha256 of what is above: ([0-9a-f]{64}) -->\n\Z")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


class CardOptions(TypedDict, total=False):
    """What may be said about a card wherever one is made; see `write_card`."""

    licence: str | None
    figures: Figures | Sequence[Figures] | None
    picture: str | os.PathLike[str] | Image.Image | None
    overwrite: bool


def write_card(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    model: SavedModel | None = None,
    licence: str | None = None,
    figures: Figures | Sequence[Figures] | None = None,
    picture: str | os.PathLike[str] | Image.Image | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the model card of an adapter, README.md, and its picture beside it, card.png.

    It says what the adapter is, how it is used, what its parts are and how large, how it was
    trained, how good it is, and what it is not good for. Paths of this machine are not in it.

    Args:
        folder: an adapter's.
        repo_id: what the adapter is called on the Hub, "user/name", in the code that is shown.
        model: the adapter, attached to its towers; without it the card does not say how large
            they are, unless they are the embedded ones.
        licence: of the adapter, by the Hub's identifier, such as "apache-2.0"; None: the card says
            that none is named.
        figures: what `bridger evaluate --json` wrote, a file or its content; of several heads, a
            list of them.
        picture: to show what it finds, without what a camera wrote into it. None: on the embedded
            towers a scene.
        overwrite: write over a README.md that bridger did not write, or that was changed since.

    Returns:
        The path of the card.

    Raises:
        FileNotFoundError: there is no adapter, or there are no such figures or picture.
        FileExistsError: there is a README.md of your own, and `overwrite` is false.
        ValueError: the figures are none, or another head's; the licence is no identifier.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no adapter: expected {WEIGHTS_FILE} there")
    card = folder / CARD
    if is_own_text(card) and not overwrite:
        raise FileExistsError(
            f"{card} was not written by bridger, or was changed since: overwrite=True "
            f"(--overwrite in the shell) replaces it"
        )
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise ValueError(
            f"a licence is named by the Hub's identifier, such as apache-2.0, mit or cc-by-4.0; "
            f"got {licence!r}"
        )
    with _attached(folder, model) as attached:
        facts = facts_of(folder, repo_id, attached, figures, licence)
        shown = _shown(facts, attached, picture)
    if shown is not None:
        shown.picture.save(folder / PICTURE)
    else:
        (folder / PICTURE).unlink(missing_ok=True)
    card.write_text(_signed(_content(facts, shown)), encoding="utf-8", newline="\n")
    return card


def is_own_text(card: Path) -> bool:
    """Whether there is a card that bridger did not write, or that was changed since."""
    if not card.is_file():
        return False
    written = card.read_text(encoding="utf-8")
    found = _SIGNED.search(written)
    return found is None or _digest(written[: found.start()]) != found[1]


def warn_of_towers(folder: Path) -> None:
    """Warn where others could not load the towers of an adapter by themselves."""
    name = towers_of(folder)
    if name is None:
        warnings.warn(
            "the adapter does not say where its towers come from, so others must load them "
            "themselves: set model.tower_source before it is saved",
            UserWarning,
            stacklevel=4,
        )
    elif any(origin.is_local for origin in origins_of(name)):
        warnings.warn(
            f"the towers are files on this machine ({name}), so others must have their own copy, "
            f"and read this path in {WEIGHTS_FILE}",
            UserWarning,
            stacklevel=4,
        )


@contextmanager
def _attached(folder: Path, model: SavedModel | None) -> Iterator[SavedModel | None]:
    """Yield the model, or where there is none and the towers are in the package, load it."""
    from bridger.heads import list_heads

    heads = read_saved_config(folder)["heads"].values()
    is_known = all(head["type"] in list_heads() for head in heads)
    if model is not None or towers_of(folder) != EMBEDDED or not is_known:
        yield model
        return
    from bridger.model import BridgedModel

    loaded = BridgedModel.from_pretrained(folder)
    try:
        yield loaded
    finally:
        loaded.detach()


def _shown(
    facts: Facts,
    model: SavedModel | None,
    picture: str | os.PathLike[str] | Image.Image | None,
) -> Shown | None:
    """Return the picture of the card: the given one, or a scene where that means something."""
    from bridger.cards.picture import given, show

    if picture is not None:
        return given(picture)
    if model is None or not facts.is_embedded or not facts.heads or model.processor is None:
        return None
    return show(model)


def _content(facts: Facts, shown: Shown | None) -> str:
    """Return the card, metadata first."""
    from bridger.cards.metadata import metadata
    from bridger.cards.text import text

    picture, caption = (None, "") if shown is None else (PICTURE, shown.caption)
    return f"---\n{metadata(facts).to_yaml()}\n---\n\n{text(facts, picture, caption)}"


def _signed(content: str) -> str:
    """Return a card with the digest of its content, by which a changed one is told."""
    kept = "If you change this card, it is yours and is not written over."
    return (
        f"{content}\n<!-- Made by bridger. {kept} sha256 of what is above: {_digest(content)} -->\n"
    )


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
