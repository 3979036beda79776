"""Referring expressions for scenes: only what is true of exactly one object is said.

Every rule below has a margin: what people could argue about ("is that left of it?") is not said.
Lengths are fractions of the picture's side; x grows to the right, y downwards.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bridger.data.phrases import (
    BETWEEN,
    COLOURS,
    ORDINALS,
    PLACES,
    RELATIONS,
    ROWS,
    SIZES,
    with_article,
)
from bridger.data.sprites import Kind, kinds_called

SIDE_MARGIN = 0.12  # the leftmost is at least that much further left than the next
ALONE_MARGIN = 0.12  # an only one "on the left" is at least that far from the middle
SIZE_RATIO = 1.3  # the biggest is at least that much longer than the next
ROW_GAP = 0.09  # between neighbours that are counted
MIN_HIDDEN = 25  # pixels (at 128 x 128) that make one object "behind" another


@dataclass(frozen=True)
class Seen:
    """What can be said about one object.

    Attributes:
        kind: what it is.
        x, y: centre of what is visible.
        size: longer side.
        colour: the word for its colour, None where no single word is honest.
    """

    kind: Kind
    x: float
    y: float
    size: float
    colour: str | None


@dataclass(frozen=True)
class Expression:
    """A sentence, the index of the object that it means, and its kind, such as "place"."""

    sentence: str
    target: int
    kind: str


class Describer:
    """Finds unambiguous expressions for the objects of one scene.

    Args:
        objects: the scene's objects.
        hidden: hidden[i][j] is how much of object i object j hides, in pixels at 128 x 128.
        nameable: indices of the objects whose kind may be named.
        words: the random state that chooses among phrases.
    """

    def __init__(
        self,
        objects: Sequence[Seen],
        hidden: Sequence[Sequence[float]],
        nameable: Sequence[int],
        words: random.Random,
    ) -> None:
        self.objects, self.hidden = objects, hidden
        self.nameable, self.words = list(nameable), words

    def describe(self, target: int, most: int = 3) -> list[Expression]:
        """Return up to `most` expressions for one object, of different kinds where possible."""
        found: dict[str, list[str]] = {}
        for kind, sentence in self._all(target):
            found.setdefault(kind, []).append(sentence)
        kinds = list(found)
        self.words.shuffle(kinds)
        chosen = [Expression(self.words.choice(found[k]), target, k) for k in kinds[:most]]
        return chosen

    def _all(self, target: int) -> Iterator[tuple[str, str]]:
        kind = self.objects[target].kind
        nouns = [(kind.name, "name"), *((n, "synonym") for n in kind.synonyms)]
        nouns += [(n, "hypernym") for n in kind.hypernyms]
        for noun, label in nouns:
            if self.called(noun) == [target]:
                yield label, self._the(noun)
        noun = kind.name if self.words.random() < 0.75 else self.words.choice(nouns)[0]
        for rule in (self._colour, self._size, self._place, self._row, self._relation):
            for label, phrase in rule(target, noun):
                yield label, self._the(phrase)

    def called(self, noun: str) -> list[int]:
        """Return the indices of the objects that a noun is true of."""
        wanted = kinds_called(noun)
        return [i for i, o in enumerate(self.objects) if o.kind.index in wanted]

    def _the(self, phrase: str) -> str:
        return with_article(phrase, self.words.choice(("the", "")))

    def _others(self, target: int, noun: str) -> list[Seen]:
        return [self.objects[i] for i in self.called(noun) if i != target]

    def _colour(self, target: int, noun: str) -> Iterator[tuple[str, str]]:
        colour = self.objects[target].colour
        others = [other.colour for other in self._others(target, noun)]
        if colour and all(other not in (None, colour) for other in others):
            template = self.words.choice(COLOURS)
            yield "colour", template.format(colour=colour, noun=noun)

    def _size(self, target: int, noun: str) -> Iterator[tuple[str, str]]:
        size, others = self.objects[target].size, self._others(target, noun)
        if not others:
            return
        if size > SIZE_RATIO * max(other.size for other in others):
            yield "size", self.words.choice(SIZES["big"]).format(noun)
        if size * SIZE_RATIO < min(other.size for other in others):
            yield "size", self.words.choice(SIZES["small"]).format(noun)

    def _place(self, target: int, noun: str) -> Iterator[tuple[str, str]]:
        here, others = self.objects[target], self._others(target, noun)
        places = [place for place in PLACES if is_at(place, here, others)]
        for place in places:
            yield "place", self.words.choice(PLACES[place]).format(noun)

    def _row(self, target: int, noun: str) -> Iterator[tuple[str, str]]:
        called = self.called(noun)
        if len(called) < 2:
            return
        for side, order in ROW_ORDERS.items():
            row = sorted(called, key=lambda i: order(self.objects[i]))
            spots = [order(self.objects[i]) for i in row]
            if min(b - a for a, b in zip(spots, spots[1:], strict=False)) < ROW_GAP:
                continue
            rank = row.index(target)
            if rank < len(ORDINALS) and (len(row) > 2 or rank == 0):
                template = self.words.choice(ROWS[side])
                yield "ordinal", template.format(ordinal=ORDINALS[rank], noun=noun)

    def _relation(self, target: int, noun: str) -> Iterator[tuple[str, str]]:
        anchors = [
            i
            for i in self.nameable
            if i != target and self.called(self.objects[i].kind.name) == [i]
        ]
        self.words.shuffle(anchors)
        for anchor in anchors[:3]:
            name = self._the(self.objects[anchor].kind.name)
            for relation, templates in RELATIONS.items():
                if self._only_one(relation, target, noun, anchor):
                    yield "relation", self.words.choice(templates).format(noun, name)
        for first, second in zip(anchors, anchors[1:], strict=False):
            if self._only_between(target, noun, first, second):
                names = [self._the(self.objects[i].kind.name) for i in (first, second)]
                yield "relation", self.words.choice(BETWEEN).format(noun, *names)

    def _only_one(self, relation: str, target: int, noun: str, anchor: int) -> bool:
        """Whether the relation surely holds for the target and surely not for any other."""
        others = [i for i in self.called(noun) if i not in (target, anchor)]
        if relation in ("behind", "in front of"):
            amounts = {i: self._covered(relation, i, anchor) for i in [target, *others]}
            return amounts.pop(target) >= MIN_HIDDEN and not any(amounts.values())
        if relation == "next to":
            near = self._distance(target, anchor)
            return near < 0.4 and all(self._distance(i, anchor) > 1.6 * near for i in others)
        return self._beyond(relation, target, anchor, 1) and not any(
            self._beyond(relation, i, anchor, 0) for i in others
        )

    def _covered(self, relation: str, i: int, anchor: int) -> float:
        below, above = (i, anchor) if relation == "behind" else (anchor, i)
        return self.hidden[below][above]

    def _distance(self, i: int, j: int) -> float:
        a, b = self.objects[i], self.objects[j]
        return math.hypot(a.x - b.x, a.y - b.y)

    def _beyond(self, relation: str, i: int, anchor: int, strict: int) -> bool:
        """Whether i lies on that side of the anchor: surely (strict) or possibly."""
        a, b = self.objects[i], self.objects[anchor]
        dx, dy = a.x - b.x, a.y - b.y
        along, across = {
            "left of": (-dx, dy),
            "right of": (dx, dy),
            "above": (-dy, dx),
            "below": (dy, dx),
        }[relation]
        return along > 0.15 and along > 1.2 * abs(across) if strict else along > 0

    def _only_between(self, target: int, noun: str, first: int, second: int) -> bool:
        others = [i for i in self.called(noun) if i not in (target, first, second)]
        return self._off_line(target, first, second) < 0.1 and all(
            self._off_line(i, first, second) > 0.25 for i in others
        )

    def _off_line(self, i: int, first: int, second: int) -> float:
        """How far i lies from the middle of the way from first to second; inf beyond the ends."""
        a, b, c = (self.objects[k] for k in (first, second, i))
        length = math.hypot(b.x - a.x, b.y - a.y)
        if length < 0.3:
            return math.inf
        along = ((c.x - a.x) * (b.x - a.x) + (c.y - a.y) * (b.y - a.y)) / length**2
        across = abs((c.x - a.x) * (b.y - a.y) - (c.y - a.y) * (b.x - a.x)) / length
        return across if 0.2 < along < 0.8 else max(across, 0.2)


ROW_ORDERS: dict[str, Callable[[Seen], float]] = {
    "left": lambda o: o.x,
    "right": lambda o: -o.x,
    "top": lambda o: o.y,
    "bottom": lambda o: -o.y,
}


def is_at(place: str, here: Seen, others: Sequence[Seen]) -> bool:
    """Whether an object is the one at a place among all that share its noun.

    Args:
        place: a key of `phrases.PLACES`.
        here: the object.
        others: the other objects that the noun is true of.
    """
    if place == "middle":
        away = math.hypot(here.x - 0.5, here.y - 0.5)
        return away < 0.15 and all(
            math.hypot(o.x - 0.5, o.y - 0.5) > max(0.25, away + SIDE_MARGIN) for o in others
        )
    sides = place.split()
    clear = [
        ROW_ORDERS[side](here) < min(ROW_ORDERS[side](o) for o in others) - SIDE_MARGIN
        if others
        else from_middle(side, here) > ALONE_MARGIN
        for side in sides
    ]
    if len(sides) == 1:
        return clear[0]
    # A corner: really in it, and nobody else near it.
    inside = all(from_middle(side, here) > ALONE_MARGIN for side in sides)
    return inside and not any(all(from_middle(s, o) > 0 for s in sides) for o in others)


def from_middle(side: str, o: Seen) -> float:
    """How far beyond the picture's middle an object lies towards a side."""
    return {"left": 0.5 - o.x, "right": o.x - 0.5, "top": 0.5 - o.y, "bottom": o.y - 0.5}[side]
