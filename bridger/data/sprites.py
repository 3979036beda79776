"""The embedded atlas: a few hundred everyday objects, each with the words that people use for it.

The pictures are Microsoft's Fluent Emoji in 3D (MIT licence, ``assets/LICENSE-fluent-emoji``);
``examples/build_atlas.py`` makes the atlas and its table of names.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

ASSETS = Path(__file__).parent.parent / "assets"
HELD_OUT_SHARE = 0.15  # of the kinds, which no referring expression in training names

# The colours that an object may be tinted with. Brown, grey, black and white are left out: under
# changing light they are too easily taken for something else.
TINTS: dict[str, tuple[int, int, int]] = {
    "red": (220, 35, 40),
    "orange": (250, 130, 0),
    "yellow": (245, 215, 40),
    "green": (40, 165, 60),
    "blue": (40, 90, 220),
    "purple": (140, 60, 190),
    "pink": (250, 130, 190),
}


@dataclass(frozen=True)
class Kind:
    """One kind of object.

    Attributes:
        index: position in :func:`kinds`.
        name: the word for it ("owl"), different for every kind.
        synonyms: other words for the same thing ("bunny").
        hypernyms: wider words, which several kinds may share ("bird", "animal").
        colour: its own colour, or None where one word would not be honest.
        tintable: whether a scene may give it another colour.
        held_out: whether it is kept for testB; decided by a fixed hash of the name.
    """

    index: int
    name: str
    synonyms: tuple[str, ...]
    hypernyms: tuple[str, ...]
    colour: str | None
    tintable: bool
    held_out: bool

    @property
    def nouns(self) -> frozenset[str]:
        """Every word that is true of an object of this kind."""
        return frozenset((self.name, *self.synonyms, *self.hypernyms))


def _is_held_out(name: str) -> bool:
    digest = hashlib.sha256(f"bridger testB {name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


@functools.cache
def _table() -> dict[str, object]:
    table: dict[str, object] = json.loads((ASSETS / "sprites.json").read_text())
    return table


@functools.cache
def kinds() -> tuple[Kind, ...]:
    """All kinds of objects, in the order of the atlas.

    Example:
        >>> len(kinds())
        260
        >>> kinds()[1].name, kinds()[1].synonyms
        ('rabbit', ('bunny', 'hare'))
    """
    entries = _table()["sprites"]
    assert isinstance(entries, list)
    return tuple(
        Kind(
            index=entry["cell"],
            name=entry["name"],
            synonyms=tuple(entry["synonyms"]),
            hypernyms=tuple(entry["hypernyms"]),
            colour=entry["colour"],
            tintable=entry["tint"],
            held_out=_is_held_out(entry["name"]),
        )
        for entry in entries
    )


@functools.cache
def kinds_called(noun: str) -> frozenset[int]:
    """Indices of all kinds that a name, synonym or hypernym is true of; "thing" is true of all.

    Example:
        >>> sorted(kinds()[i].name for i in kinds_called("big cat"))
        ['lion', 'tiger']
    """
    if noun in ("thing", "object"):
        return frozenset(range(len(kinds())))
    return frozenset(kind.index for kind in kinds() if noun in kind.nouns)


@functools.cache
def _atlas() -> npt.NDArray[np.uint8]:
    from PIL import Image  # only where a picture is needed: `import bridger` stays light

    with Image.open(ASSETS / "sprites.webp") as atlas:
        return np.asarray(atlas.convert("RGBA"))


@functools.cache
def sprite(index: int) -> npt.NDArray[np.uint8]:
    """The picture of one kind, (side, side, 4) RGBA, uint8; its longer side fills the square."""
    side, columns = _table()["cell_size"], _table()["columns"]
    assert isinstance(side, int) and isinstance(columns, int)
    top, left = index // columns * side, index % columns * side
    cell: npt.NDArray[np.uint8] = _atlas()[top : top + side, left : left + side].copy()
    return cell
