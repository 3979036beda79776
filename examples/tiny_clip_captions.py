"""Pictures with captions for pretraining Tiny CLIP: what the two towers learn their world from.

A batch is made of groups. Inside a group the pictures show the same objects and differ in one
respect only (place, colour, size, who is above whom), and each caption is true of its own picture
alone; so the towers cannot do with names.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

from bridger.data.painting import Placement, Rng
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
from bridger.data.sprites import TINTS, Kind, kinds

CELLS = {
    f"{row} {column}".replace("middle middle", "middle").strip(): (x, y)
    for row, y in (("top", 0.22), ("", 0.5), ("bottom", 0.78))
    for column, x in (("left", 0.22), ("", 0.5), ("right", 0.78))
}
CELLS["middle"] = CELLS.pop("")


@dataclass(frozen=True)
class Example:
    """One picture before it is painted, its caption, and the nouns that the caption names."""

    placements: tuple[Placement, ...]
    caption: str
    nouns: tuple[str, ...]


class Captioner:
    """Draws groups of examples from one random state."""

    def __init__(self, rng: Rng, smallest: float = 0.2) -> None:
        self.rng, self.smallest = rng, smallest
        self.words = random.Random(int(rng.integers(2**62)))  # cheaper for choices than numpy
        self.kinds = kinds()

    def pick(self, count: int, tintable: bool = False) -> list[Kind]:
        """Different kinds."""
        pool = [kind for kind in self.kinds if kind.tintable] if tintable else list(self.kinds)
        return self.words.sample(pool, count)

    def noun(self, kind: Kind) -> str:
        """A name in most cases, else a synonym or a wider word."""
        draw = self.words.random()
        if draw < 0.2 and kind.synonyms:
            return self.words.choice(kind.synonyms)
        if draw > 0.9 and kind.hypernyms:
            return self.words.choice(kind.hypernyms)
        return kind.name

    def phrase(self, noun: str, article: str | None = None) -> str:
        """A noun phrase with an article or without one."""
        article = self.words.choice(("the", "a", "")) if article is None else article
        return with_article(noun, article)

    def place(self, kind: Kind, x: float, y: float, size: float, jitter: float = 0.06) -> Placement:
        """An object near a point, with everything else about it at random."""
        uniform = self.words.uniform
        tint = None
        if kind.tintable and self.words.random() < 0.35:
            tint = self.words.choice(list(TINTS))
        margin = min(size * 0.4, 0.45)
        return Placement(
            kind=kind.index,
            x=min(max(x + uniform(-jitter, jitter), margin), 1 - margin),
            y=min(max(y + uniform(-jitter, jitter), margin), 1 - margin),
            size=size,
            angle=uniform(-20, 20),
            flip=self.words.random() < 0.5,
            light=uniform(0.85, 1.15),
            tint=tint,
        )

    def size(self, count: int) -> float:
        """A size that leaves room for as many objects."""
        return self.words.uniform(self.smallest, {1: 0.8, 2: 0.5, 3: 0.42, 4: 0.36}[count])

    def single(self) -> list[Example]:
        """One object anywhere: "an owl"."""
        (kind,), noun = (chosen := self.pick(1)), self.noun(chosen[0])
        spot = self.place(kind, 0.5, 0.5, self.size(1), jitter=0.5)
        return [Example((spot,), self.phrase(noun), (noun,))]

    def scene(self) -> list[Example]:
        """Several objects, all or some of them listed: "a drum, the owl and a car"."""
        count = self.words.choice((2, 3, 4))
        chosen = self.pick(count)
        cells = self.words.sample(list(CELLS.values()), count)
        spots = tuple(
            self.place(kind, x, y, self.size(count), jitter=0.08)
            for kind, (x, y) in zip(chosen, cells, strict=True)
        )
        listed = [self.noun(kind) for kind in chosen[: self.words.randint(1, 3)]]
        parts = [self.phrase(noun) for noun in listed]
        caption = " and ".join([" ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
        return [Example(spots, caption, tuple(listed))]

    def places(self) -> list[Example]:
        """The same object at several places: "owl on the left" against "owl at the bottom"."""
        (kind,), noun = (chosen := self.pick(1)), self.noun(chosen[0])
        axis = self.words.randrange(4)
        names = [["left", "right"], ["top", "bottom"]][axis] if axis < 2 else None
        names = names or self.words.sample(list(CELLS), 4)
        size, examples = self.words.uniform(0.2, 0.45), []
        for name in names:
            x, y = CELLS[name]
            x, y = (x, self.words.random()) if axis == 0 else (x, y)
            x, y = (self.words.random(), y) if axis == 1 else (x, y)
            caption = self.phrase(self.words.choice(PLACES[name]).format(noun))
            examples.append(Example((self.place(kind, x, y, size),), caption, (noun,)))
        return examples

    def colours(self) -> list[Example]:
        """The same object in several colours."""
        (kind,), noun = (chosen := self.pick(1, tintable=True)), self.noun(chosen[0])
        spot = self.place(kind, 0.5, 0.5, self.size(1), jitter=0.5)
        examples = []
        for colour in self.words.sample(list(TINTS), 4):
            caption = self.words.choice(COLOURS).format(colour=colour, noun=noun)
            examples.append(Example((replace(spot, tint=colour),), self.phrase(caption), (noun,)))
        return examples

    def own_colour(self) -> list[Example]:
        """An object in its own colour, named with it: "the yellow lemon"."""
        kind = self.words.choice([kind for kind in self.kinds if kind.colour])
        noun = self.noun(kind)
        spot = replace(self.place(kind, 0.5, 0.5, self.size(1), jitter=0.5), tint=None)
        caption = self.words.choice(COLOURS).format(colour=kind.colour, noun=noun)
        return [Example((spot,), self.phrase(caption), (noun,))]

    def two_colours(self) -> list[Example]:
        """Which of two objects has which colour."""
        chosen = self.pick(2, tintable=True)
        nouns = tuple(self.noun(kind) for kind in chosen)
        tints, spots = self.words.sample(list(TINTS), 2), self._pair(chosen)
        examples = []
        for first, second in (tints, tints[::-1]):
            pair = (replace(spots[0], tint=first), replace(spots[1], tint=second))
            parts = [self.phrase(f"{c} {n}") for c, n in zip((first, second), nouns, strict=True)]
            examples.append(Example(pair, " and ".join(parts), nouns))
        return examples

    def sizes(self) -> list[Example]:
        """Small against large: of one object, or of which of two."""
        two = self.words.random() < 0.5
        chosen = self.pick(2 if two else 1)
        nouns = tuple(self.noun(kind) for kind in chosen)
        spots = self._pair(chosen) if two else [self.place(chosen[0], 0.5, 0.5, 0.5, jitter=0.4)]
        small, big = self.words.uniform(0.18, 0.26), self.words.uniform(0.45, 0.55)
        big = big if two else big + 0.15
        examples = []
        for order in (("small", "big"), ("big", "small")):
            sized = tuple(
                replace(spot, size=small if word == "small" else big)
                for spot, word in zip(spots, order, strict=False)
            )
            parts = [
                self.phrase(self.words.choice(SIZES[word]).format(noun))
                for noun, word in zip(nouns, order, strict=False)
            ]
            examples.append(Example(sized, " and ".join(parts), nouns))
        return examples

    def relations(self) -> list[Example]:
        """Two objects, four arrangements: "owl above the drum" against "owl left of the drum"."""
        chosen = self.pick(2)
        nouns = tuple(self.noun(kind) for kind in chosen)
        size, gap = self.words.uniform(0.22, 0.42), self.words.uniform(0.18, 0.25)
        x, y = self.words.uniform(0.35, 0.65), self.words.uniform(0.35, 0.65)
        examples = []
        steps = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
        for name, (dx, dy) in steps.items():
            spots = (
                self.place(chosen[0], x + dx * gap, y + dy * gap, size),
                self.place(chosen[1], x - dx * gap, y - dy * gap, size),
            )
            words = self.words.choice(RELATIONS[name])
            caption = words.format(self.phrase(nouns[0]), self.phrase(nouns[1]))
            examples.append(Example(spots, caption, nouns))
        return examples

    def nearness(self) -> list[Example]:
        """Two of three objects stand close: "owl next to the drum"."""
        chosen = self.pick(3)
        nouns = tuple(kind.name for kind in chosen)
        side = self.words.choice((-1, 1))
        examples = []
        for near in (1, 2):
            order = (0, 1, 2) if near == 1 else (0, 2, 1)
            xs = dict(
                zip(order, (0.5 - side * 0.32, 0.5 - side * 0.06, 0.5 + side * 0.34), strict=True)
            )
            y = self.words.uniform(0.25, 0.75)
            spots = tuple(self.place(chosen[i], xs[i], y, 0.26, jitter=0.02) for i in range(3))
            words = self.words.choice(RELATIONS["next to"])
            caption = words.format(self.phrase(nouns[0]), self.phrase(nouns[near]))
            examples.append(Example(spots, caption, (nouns[0], nouns[near])))
        return examples

    def overlap(self) -> list[Example]:
        """Who hides a part of whom."""
        chosen = self.pick(2)
        nouns = tuple(self.noun(kind) for kind in chosen)
        size, angle = self.words.uniform(0.35, 0.5), self.words.uniform(0, 6.283)
        dx, dy = 0.3 * size * np.cos(angle), 0.3 * size * np.sin(angle)
        spots = (
            self.place(chosen[0], 0.5 + dx, 0.5 + dy, size, jitter=0.03),
            self.place(chosen[1], 0.5 - dx, 0.5 - dy, size, jitter=0.03),
        )
        examples = []
        for name, order in (("behind", spots), ("in front of", spots[::-1])):
            words = self.words.choice(RELATIONS[name])
            caption = words.format(self.phrase(nouns[0]), self.phrase(nouns[1]))
            examples.append(Example(order, caption, nouns))
        return examples

    def between(self) -> list[Example]:
        """Which of three objects stands between the others."""
        chosen = self.pick(3)
        nouns = tuple(kind.name for kind in chosen)
        upright = self.words.random() < 0.3
        examples = []
        for inner in range(3):
            outer = [i for i in range(3) if i != inner]
            order = [outer[0], inner, outer[1]]
            spots = self._row([chosen[i] for i in order], upright)
            names = [self.phrase(nouns[i]) for i in (inner, *outer)]
            examples.append(Example(spots, self.words.choice(BETWEEN).format(*names), nouns))
        return examples

    def ordinals(self) -> list[Example]:
        """Where an object stands in a row of different ones: "owl second from the left"."""
        count = self.words.choice((3, 4))
        chosen, side = self.pick(count), self.words.choice(list(ROWS))
        noun = self.noun(chosen[0])
        examples = []
        for rank in range(count):
            row = [*chosen[1 : rank + 1], chosen[0], *chosen[rank + 1 :]]
            row = row[::-1] if side in ("right", "bottom") else row
            spots = self._row(row, upright=side in ("top", "bottom"))
            words = self.words.choice(ROWS[side]).format(ordinal=ORDINALS[rank], noun=noun)
            examples.append(Example(spots, self.phrase(words), (noun,)))
        return examples

    def twins(self) -> list[Example]:
        """Two of one kind in different colours: "the owl on the left is red"."""
        (kind,), noun = (chosen := self.pick(1, tintable=True)), self.noun(chosen[0])
        tints = self.words.sample(list(TINTS), 2)
        upright = self.words.random() < 0.4
        sides = ("top", "bottom") if upright else ("left", "right")
        examples = []
        for colours in (tints, tints[::-1]):
            row = self._row([kind, kind], upright)
            spots = tuple(replace(s, tint=c) for s, c in zip(row, colours, strict=True))
            which = self.words.randrange(2)
            place = self.words.choice(PLACES[sides[which]])
            caption = self.phrase(place.format(f"{colours[which]} {noun}"))
            examples.append(Example(spots, caption, (noun,)))
        return examples

    def _pair(self, chosen: list[Kind]) -> list[Placement]:
        """Two objects side by side or one over the other."""
        along = [0.27, 0.73] if self.words.random() < 0.5 else [0.73, 0.27]
        across = self.words.uniform(0.3, 0.7)
        spots = list(zip(along, (across, across), strict=True))
        if self.words.random() < 0.5:
            spots = [(y, x) for x, y in spots]
        size = self.words.uniform(0.25, 0.45)
        return [self.place(kind, x, y, size) for kind, (x, y) in zip(chosen, spots, strict=True)]

    def _row(self, chosen: list[Kind], upright: bool) -> tuple[Placement, ...]:
        """Objects from left to right, or from top to bottom."""
        across, count = self.words.uniform(0.25, 0.75), len(chosen)
        size = self.words.uniform(0.2, 0.9 / (count + 0.6))
        along = np.linspace(0.14, 0.86, count) if count > 2 else (0.27, 0.73)
        spots = [(across, a) if upright else (a, across) for a in along]
        return tuple(
            self.place(kind, float(x), float(y), size, jitter=0.03)
            for kind, (x, y) in zip(chosen, spots, strict=True)
        )
