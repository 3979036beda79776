"""Expressions for scenes that mean several objects, or none, as gRefCOCO has them beside others.

As in `bridger.data.expressions`, only what nobody could argue about is said.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from bridger.data.expressions import ALONE_MARGIN, Expression, Seen, from_middle
from bridger.data.phrases import with_article
from bridger.data.sprites import TINTS, Kind, kinds, kinds_called

MOST = 2  # expressions of a scene that mean one object, several and none: so many of each
BROAD = 20  # a wider word for more kinds than that does not make them look alike
NUMBERS = {2: "two", 3: "three", 4: "four"}
SIDES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}

IRREGULAR = {
    "fish": "fish",
    "sheep": "sheep",
    "deer": "deer",
    "aircraft": "aircraft",
    "mouse": "mice",
    "wolf": "wolves",
    "knife": "knives",
    "leaf": "leaves",
    "scarf": "scarves",
    "tomato": "tomatoes",
    "snowman": "snowmen",
}
# What is not counted, or is a plural already.
UNCOUNTED = frozenset(
    (
        "bacon sushi spaghetti popcorn honey yarn corn broccoli bread cheese chocolate candy "
        "coffee wine beer soda tea fire food clothing gear meat kitchenware furniture cutlery "
        "electronics jewelry fries grapes cherries blueberries scissors glasses jeans gloves socks "
        "headphones books dice"
    ).split()
)


class Said(NamedTuple):
    """A sentence, the indices of the objects that it means, and its kind.

    Kinds are those of `Expression` for one object, "several" and "none".
    """

    sentence: str
    targets: tuple[int, ...]
    kind: str


def generalize(
    objects: Sequence[Seen], expressions: Sequence[Expression], split: str, words: random.Random
) -> list[Said]:
    """Choose expressions for a scene, about as many for one object as for several and for none.

    As in plain scenes, kinds that are held out are named, and meant, in the split "testB" alone,
    and everything that is said there has to do with one of them.

    Args:
        objects: what the scene shows.
        expressions: the scene's own, each of which means one object.
        split: name of the scene's split.
        words: the random state that chooses.
    """
    single = [Said(e.sentence, (e.target,), e.kind) for e in expressions]
    several = list(_several(objects, split, words))
    none = list(_none(objects, split, words))
    return [
        said
        for found in (single, several, none)
        for said in words.sample(found, min(MOST, len(found)))
    ]


def plural(noun: str) -> str | None:
    """Return the plural of a noun; None where there is none, or it is one already.

    Example:
        >>> plural("owl"), plural("maple leaf"), plural("butterfly"), plural("bread")
        ('owls', 'maple leaves', 'butterflies', None)
    """
    rest, _, last = noun.rpartition(" ")
    if last in UNCOUNTED:
        return None
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = f"{last[:-1]}ies"
    else:
        last += "s"
    return f"{rest} {last}".strip()


def _called(objects: Sequence[Seen], noun: str) -> tuple[int, ...]:
    wanted = kinds_called(noun)
    return tuple(i for i, seen in enumerate(objects) if seen.kind.index in wanted)


def _several(objects: Sequence[Seen], split: str, words: random.Random) -> Iterator[Said]:
    """Yield what means several objects that may be meant in this split."""
    of_all = [*_groups(objects, words), *_pairs(objects, words)]
    for sentence, targets in of_all:
        held_out = [objects[i].kind.held_out for i in targets]
        if any(held_out) if split == "testB" else not any(held_out):
            yield Said(sentence, targets, "several")


def _groups(objects: Sequence[Seen], words: random.Random) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield "all the owls" and "the two owls on the left"."""
    nouns = {noun for seen in objects for noun in (seen.kind.name, *seen.kind.hypernyms)}
    for noun in sorted(nouns):
        called, several = _called(objects, noun), plural(noun)
        if len(called) < 2 or several is None:
            continue
        number = NUMBERS.get(len(called))
        phrases = [f"all the {several}", f"all {several}", f"each {noun}"]
        phrases += [f"the {number} {several}"] if number else []
        phrases += [f"both {several}"] if len(called) == 2 else []
        yield words.choice(phrases), called
        for side, where in SIDES.items():
            there = tuple(i for i in called if from_middle(side, objects[i]) > ALONE_MARGIN)
            others = set(called) - set(there)
            apart = all(from_middle(side, objects[i]) < -ALONE_MARGIN for i in others)
            if len(there) in NUMBERS and apart:
                yield f"the {NUMBERS[len(there)]} {several} {where}", there


def _pairs(objects: Sequence[Seen], words: random.Random) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield "the owl and the drum" where each of the two words means one object."""
    alone = [i for i, seen in enumerate(objects) if _called(objects, seen.kind.name) == (i,)]
    pairs = list(combinations(alone, 2))
    for pair in words.sample(pairs, min(MOST, len(pairs))):
        article = words.choice(("the", ""))
        names = [with_article(objects[i].kind.name, article) for i in words.sample(pair, 2)]
        yield " and ".join(names), pair


def _none(objects: Sequence[Seen], split: str, words: random.Random) -> Iterator[Said]:
    """Yield names, some with a colour, of kinds that nothing in the scene could be taken for."""
    absent = [
        kind
        for kind in kinds()
        if kind.held_out == (split == "testB")
        and not any(_alike(kind, seen.kind) for seen in objects)
    ]
    for kind in words.sample(absent, MOST):
        noun = words.choice((kind.name, *kind.synonyms))
        if kind.tintable and words.random() < 0.5:
            noun = f"{words.choice(list(TINTS))} {noun}"
        yield Said(with_article(noun, words.choice(("the", ""))), (), "none")


def _alike(kind: Kind, other: Kind) -> bool:
    """Whether two kinds share a word that they are called by, or part of one, broad ones aside."""
    narrow = [{n for n in k.nouns if len(kinds_called(n)) <= BROAD} for k in (kind, other)]
    first, second = ({word for noun in nouns for word in noun.split()} for nouns in narrow)
    return bool(first & second)
