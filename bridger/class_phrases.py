"""Class names as the phrases that a text tower reads: checked, put into templates, tokenised once.

Shapes: B images, N classes of each, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from einops import rearrange
from torch import Tensor

from bridger.features import Mentions
from bridger.processing import Processor

ClassName: TypeAlias = str | Sequence[str]
"""A class: its name, or its name and synonyms of it."""

SEPARATORS = [",", ";", "and"]
"""What may stand between class names in one sequence, the best one first."""


class Phrase(NamedTuple):
    """A name in a template, tokenised: what starts a sequence, what is said, what ends it."""

    start: tuple[int, ...]
    body: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def of(cls, ids: Sequence[int], special_ids: frozenset[int]) -> Phrase:
        """Split a sequence that holds at least one id that is not special."""
        words = [at for at, id in enumerate(ids) if id not in special_ids]
        first, last = words[0], words[-1] + 1
        return cls(tuple(ids[:first]), tuple(ids[first:last]), tuple(ids[last:]))


class Span(NamedTuple):
    """The tokens `first` to `last` - 1 of a sequence, which name a class."""

    row: int
    class_: int
    first: int
    last: int


class ClassPhrases:
    """The phrases of K classes: every name and synonym of a class in every template.

    Args:
        processor: its tokenizer and its limit of tokens count; longer phrases are cut, with a
            warning.
        classes: names, or names with synonyms.
        templates: sentences with a {} where the name stands; each counts once.

    Attributes:
        names: the K classes' main names.
        phrases: of each class, by name and then by template.

    Raises:
        TypeError, ValueError: see `check_class_names` and `check_templates`.
        ValueError: the main names of two classes have the same tokens.
    """

    def __init__(
        self,
        processor: Processor,
        classes: Sequence[ClassName],
        templates: Sequence[str] = ("{}",),
    ) -> None:
        check_class_names(classes)
        check_templates(templates)
        templates = list(dict.fromkeys(templates))
        self.names = tuple(names_of(entry)[0] for entry in classes)
        self._words, self._max_length = processor.words, processor.max_length
        said = [
            [template.replace("{}", name) for name in names_of(entry) for template in templates]
            for entry in classes
        ]
        sentences = [sentence for of_class in said for sentence in of_class]
        rows = iter(self._words.rows(sentences, self._max_length))
        special_ids = self._words.special_ids
        self.phrases = [[Phrase.of(next(rows), special_ids) for _ in of_class] for of_class in said]
        self._check_apart()

    def _check_apart(self) -> None:
        owners: dict[tuple[int, ...], str] = {}
        for name, phrases in zip(self.names, self.phrases, strict=True):
            other = owners.setdefault(phrases[0].body, name)
            if other != name:
                raise ValueError(
                    f"the classes {other!r} and {name!r} are the same tokens to this tokenizer "
                    f"(marks that it drops, words that it does not know, or names cut at "
                    f"{self._max_length} tokens), so nothing could tell them apart: rename one"
                )

    def count(self, class_: int) -> int:
        """Return how many phrases a class has."""
        return len(self.phrases[class_])

    def separate(self) -> tuple[dict[str, Tensor], Mentions]:
        """Return one sequence for each phrase: `input_ids` and `attention_mask` (S, L)."""
        every = [(k, phrase) for k, of_class in enumerate(self.phrases) for phrase in of_class]
        spans = [_whole(row, k, phrase) for row, (k, phrase) in enumerate(every)]
        words = self._words.pad([[*p.start, *p.body, *p.end] for _, p in every])
        return words, _mentions(spans, words["input_ids"].shape[1], len(self.names))

    def joint(
        self, picks: Sequence[tuple[int, int]] | None = None
    ) -> tuple[dict[str, Tensor], Mentions]:
        """Return phrases one after the other in as few sequences as hold them, classes in order.

        All phrases of a class stand in one sequence. Between neighbours stands a comma or, where
        the tokenizer has none, the next of `SEPARATORS` that it has; nothing if it has none of
        them. Each phrase keeps the tokens that it has by itself: in byte-level vocabularies
        (GPT-2, RoBERTa) those of a word without the blank before it.

        Args:
            picks: (class, number of its phrase) of those that are asked about, each class once,
                which are numbered in this order; None: all phrases of all classes.

        Raises:
            ValueError: a class has more phrases than fit one sequence.
        """
        comma = self._separator()
        rows: list[list[int]] = []
        spans: list[Span] = []
        chosen = (
            list(zip(self.names, self.phrases, strict=True))
            if picks is None
            else [(self.names[k], [self.phrases[k][number]]) for k, number in picks]
        )
        for k, (name, phrases) in enumerate(chosen):
            start, _, end = phrases[0]
            length = sum(len(p.body) for p in phrases) + len(comma) * (len(phrases) - 1)
            if len(start) + length + len(end) > self._max_length:
                raise ValueError(
                    f"the {len(phrases)} phrases of the class {name!r} take {length} "
                    f"tokens together, more than fit one sequence of {self._max_length}: use "
                    f'mode "separate", or fewer templates and synonyms'
                )
            if not rows or len(rows[-1]) + len(comma) + length + len(end) > self._max_length:
                rows.append(list(start))
            for phrase in phrases:
                row = rows[-1]
                if len(row) > len(start):
                    row.extend(comma)
                spans.append(Span(len(rows) - 1, k, len(row), len(row) + len(phrase.body)))
                row.extend(phrase.body)
        words = self._words.pad([[*row, *self.phrases[0][0].end] for row in rows])
        return words, _mentions(spans, words["input_ids"].shape[1], len(chosen))

    def _separator(self) -> list[int]:
        """Return the ids between two phrases."""
        nothing = {*self._words.special_ids, self._words.unknown_id}
        for ids in self._words.encode(SEPARATORS):
            words = [id for id in ids if id not in self._words.special_ids]
            if words and not nothing & {*words}:
                return words
        return []

    def batch(self, picks: Sequence[Sequence[tuple[int, int]]]) -> dict[str, Any]:
        """Return the text of a batch whose pictures are asked about classes of their own.

        Args:
            picks: for each of B pictures, (class, number of its phrase) of what it is asked.

        Returns:
            `input_ids` and `attention_mask` (B, N, L), N that of the longest list; where lists are
            shorter, `expression_mask` (B, N), false at copies of a picture's first pick, which is
            what an encoder runs there; `mentions`, in which each of the N is a class of its own.

        Raises:
            ValueError: there is no picture, or nothing that one is asked.
        """
        if not picks or not all(picks):
            raise ValueError("every picture of a batch needs at least one class to be asked about")
        n = max(map(len, picks))
        filled = [[*own, *[own[0]] * (n - len(own))] for own in picks]
        chosen = [self.phrases[k][number] for own in filled for k, number in own]
        words = self._words.pad([[*p.start, *p.body, *p.end] for p in chosen])
        spans = [_whole(row, row % n, phrase) for row, phrase in enumerate(chosen)]
        tokens = _tokens(spans, words["input_ids"].shape[1])
        each = torch.arange(n)
        given: dict[str, Any] = {
            name: rearrange(ids, "(b n) l -> b n l", n=n) for name, ids in words.items()
        }
        given["mentions"] = Mentions(each, each, rearrange(tokens, "(b n) l -> b n l", n=n), n)
        counts = torch.tensor([len(own) for own in picks])
        if bool((counts < n).any()):
            given["expression_mask"] = each < counts[:, None]
        return given


def names_of(entry: ClassName) -> tuple[str, ...]:
    """Return a class's name and its synonyms, each once."""
    kept: dict[str, str] = {}
    for name in (entry,) if isinstance(entry, str) else entry:
        kept.setdefault(_plain(name), name)
    return tuple(kept.values())


def check_class_names(classes: Sequence[ClassName]) -> None:
    """Refuse lists of classes that cannot be told apart by their names.

    Raises:
        TypeError: a name is no string, or the list is one string.
        ValueError: there is no class, a name is empty, two classes have the same name, or a
            synonym is the name of another class.
    """
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise TypeError(f"expected a list of class names, found {classes!r}")
    if not classes:
        raise ValueError("expected at least one class name, found none")
    owners: dict[str, int] = {}
    for index, entry in enumerate(classes):
        if not isinstance(entry, Sequence) or not all(isinstance(name, str) for name in entry):
            raise TypeError(
                f"a class is a name, or a list of its name and synonyms of it, strings all; class "
                f"number {index} is {entry!r}"
            )
        if not names_of(entry) or not all(name.strip() for name in names_of(entry)):
            raise ValueError(f"class number {index} has an empty name: {entry!r}")
        name = names_of(entry)[0]
        if (owner := owners.setdefault(name_key(name), index)) != index:
            raise ValueError(
                f"the class name {name!r} stands twice in the list, as number {owner} and as "
                f"number {index}: keep one of them"
            )
    for index, entry in enumerate(classes):
        for synonym in names_of(entry)[1:]:
            if (owner := owners.get(name_key(synonym), index)) != index:
                raise ValueError(
                    f"{synonym!r}, a synonym of the class {names_of(entry)[0]!r}, is the name of "
                    f"class number {owner}: leave the synonym out"
                )


def name_key(entry: ClassName) -> str:
    """Return what tells a class from others: of its main name what most tokenizers leave.

    Wherever classes are compared by their names, these are.
    """
    return _plain(names_of(entry)[0])


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def check_templates(templates: Sequence[str]) -> None:
    """Refuse templates that do not have one place for the name.

    Raises:
        TypeError: a template is no string, or the list is one string.
        ValueError: there is none, or one does not hold {} exactly once.
    """
    is_list = isinstance(templates, Sequence) and not isinstance(templates, str)
    if not is_list or not all(isinstance(t, str) for t in templates):
        raise TypeError(f"expected a list of templates, strings all, found {templates!r}")
    if not templates:
        raise ValueError("expected at least one template, such as '{}', found none")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"the template {template!r} must hold {{}} once, where the class name stands"
            )


def _whole(row: int, class_: int, phrase: Phrase) -> Span:
    """The body of a phrase that is alone in its sequence."""
    first = len(phrase.start)
    return Span(row, class_, first, first + len(phrase.body))


def _tokens(spans: Sequence[Span], length: int) -> Tensor:
    """Return (M, L) bool, true at each span."""
    first, last = (torch.tensor([[getattr(s, end)] for s in spans]) for end in ("first", "last"))
    at = torch.arange(length)
    return (first <= at) & (at < last)


def _mentions(spans: Sequence[Span], length: int, classes: int) -> Mentions:
    rows, of_class = (torch.tensor([getattr(s, name) for s in spans]) for name in ("row", "class_"))
    return Mentions(rows, of_class, _tokens(spans, length)[None], classes)
