"""The model card of an adapter: README.md in its folder, with the metadata that the Hub reads."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from bridger.adapter_files import CARD, PICTURE, WEIGHTS_FILE, read_saved_config
from bridger.cards.facts import EMBEDDED, Facts, Figures, facts_of
from bridger.cards.picture import GIVEN_CAPTION
from bridger.cards.signature import (
    GIVEN,
    OWN,
    SCENE,
    MadeOf,
    digest_of,
    is_own_text,
    made_of,
    signed,
)
from bridger.named_towers.of_adapter import towers_of
from bridger.named_towers.origins import origins_of

if TYPE_CHECKING:
    from PIL import Image

    from bridger.cards.picture import Shown
    from bridger.saving import SavedModel

SHOWN = (
    "task", "head", "dataset", "split", "sentences", "expressions", "pictures", "metrics",
    "intervals",
)  # fmt: skip
"""Of the records of `bridger evaluate`, what cards are made of."""

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
        picture: to show what it finds, without what a camera wrote into it. None: the one given
            before or found there, or on the embedded towers a scene.
        overwrite: write over a README.md that bridger did not write, or that was changed since,
            and with `picture` over a card.png of your own.

    Returns:
        The path of the card.

    Raises:
        FileNotFoundError: there is no adapter, or there are no such figures or picture.
        FileExistsError: there is a README.md of your own, or a card.png where `picture` is given,
            and `overwrite` is false.
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
    made = made_of(card)
    before = made and made.picture
    place = folder / PICTURE
    if picture is not None and place.is_file() and before in (None, OWN) and not overwrite:
        raise FileExistsError(
            f"{place} is not a picture of bridger's: overwrite=True (--overwrite in the shell) "
            f"replaces it"
        )
    is_kept = picture is None and place.is_file() and before != SCENE
    with _attached(folder, model) as attached:
        facts = facts_of(folder, repo_id, attached, figures, licence)
        shown = None if is_kept else _shown(facts, attached, picture)
    if is_kept:
        whose, caption = before or OWN, GIVEN_CAPTION
    elif shown is not None:
        shown.picture.save(place)
        whose, caption = GIVEN if picture is not None else SCENE, shown.caption
    else:
        place.unlink(missing_ok=True)
        whose, caption = None, ""
    weights = digest_of(folder / WEIGHTS_FILE)
    of = MadeOf(repo_id, weights, licence, [_short(record) for record in facts.results], whose)
    content = _content(facts, PICTURE if whose else None, caption)
    card.write_text(signed(content, of), encoding="utf-8", newline="\n")
    return card


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a record what a card shows."""
    return {name: record[name] for name in SHOWN if name in record}


def renew_card(folder: Path, repo_id: str) -> None:
    """Write the card of an adapter anew where it is bridger's own, and of something else.

    Licence and picture stay. So do figures, unless they are those of other weights.

    Args:
        folder: an adapter's, with a card in it.
        repo_id: what the adapter is called on the Hub.

    Warns:
        UserWarning: the new card lacks what the old one said.
    """
    card, weights = folder / CARD, digest_of(folder / WEIGHTS_FILE)
    if is_own_text(card):
        return
    made = made_of(card)
    if made is None:
        _warn_of_lost("a licence or figures that it named are")
        write_card(folder, repo_id)
    elif made.weights != weights:
        if made.figures:
            _warn_of_lost("the figures of the old weights are")
        write_card(folder, repo_id, licence=made.licence)
    elif made.repo_id != repo_id:
        figures = [
            {"task": record["task"], "head": record["head"], "results": [record]}
            for record in made.figures
        ]
        write_card(folder, repo_id, licence=made.licence, figures=figures)


def _warn_of_lost(what: str) -> None:
    warnings.warn(
        f"the {CARD} in the folder was made of another adapter, so a new one is pushed: {what} "
        f"not in it; give them again",
        UserWarning,
        stacklevel=4,
    )


def warn_of_processor(folder: Path) -> None:
    """Warn where others could not ask an adapter's heads: what makes its inputs is not in it."""
    config = read_saved_config(folder)
    if config["heads"] and not config["processor"] and towers_of(folder) != EMBEDDED:
        warnings.warn(
            "the adapter has no processor, so others can predict with it only where its towers "
            "bring one: set model.processor before it is saved",
            UserWarning,
            stacklevel=4,
        )


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


def _content(facts: Facts, picture: str | None, caption: str) -> str:
    """Return the card, metadata first."""
    from bridger.cards.metadata import metadata
    from bridger.cards.text import text

    return f"---\n{metadata(facts).to_yaml()}\n---\n\n{text(facts, picture, caption)}"
