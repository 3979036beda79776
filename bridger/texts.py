"""What a head reads beside the picture: sentences, or class names packed into sequences.

Shapes: S sequences, L tokens, M mentions of K classes, B images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bridger.class_phrases import ClassName, ClassPhrases
from bridger.config import did_you_mean
from bridger.features import Mentions
from bridger.processing import Processor

__all__ = ["TEXT_MODES", "ClassName", "ClassPhrases", "Texts"]

TEXT_MODES = ["separate", "joint"]
"""How class names become text; see `Texts.of_classes`."""


@dataclass(frozen=True)
class Texts:
    """S sequences of tokens that every picture of a batch is asked about.

    Attributes:
        names: what each answer is called: the K classes' names, or the S sentences.
        input_ids: (S, L).
        attention_mask: (S, L) bool.
        mentions: which tokens name which class; None: every sentence stands for itself.
    """

    names: tuple[str, ...]
    input_ids: Tensor
    attention_mask: Tensor
    mentions: Mentions | None = None

    @classmethod
    def of_sentences(cls, processor: Processor, sentences: str | Sequence[str]) -> Texts:
        """Turn sentences into texts; arguments and errors as of `Processor.text`."""
        sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        words = processor.text(sentences)
        return cls(tuple(sentences), words["input_ids"], words["attention_mask"])

    @classmethod
    def of_classes(
        cls,
        processor: Processor,
        classes: Sequence[ClassName],
        mode: str = "separate",
        templates: Sequence[str] = ("{}",),
    ) -> Texts:
        """Turn K classes into texts.

        Args:
            processor: its tokenizer and its limit of tokens count.
            classes: names, or names with synonyms.
            mode: "separate", every name in every template is a sequence of its own; or "joint",
                names are packed into as few sequences as they fit in.
            templates: sentences with a {} where the name stands.

        Raises:
            TypeError, ValueError: see `ClassPhrases`; an unknown mode, and in joint mode a class
                whose phrases do not fit one sequence.
        """
        if mode not in TEXT_MODES:
            raise ValueError(
                f"the mode of text {mode!r} is unknown: {did_you_mean(mode, TEXT_MODES)}"
            )
        phrases = ClassPhrases(processor, classes, templates)
        words, mentions = phrases.joint() if mode == "joint" else phrases.separate()
        return cls(phrases.names, words["input_ids"], words["attention_mask"], mentions)

    def batch(self, images: int) -> dict[str, Any]:
        """Return `input_ids` and `attention_mask` (B, S, L), and "mentions" where there are any."""
        ids, mask = (t.expand(images, -1, -1) for t in (self.input_ids, self.attention_mask))
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        return given if self.mentions is None else {**given, "mentions": self.mentions}

    def to(self, device: torch.device) -> Texts:
        """Return them on another device."""
        ids, mask = self.input_ids.to(device), self.attention_mask.to(device)
        mentions = None if self.mentions is None else self.mentions.to(device)
        return Texts(self.names, ids, mask, mentions)

    def chunks(self, rows: int) -> list[Texts]:
        """Split into texts of at most `rows` sequences each, the classes of a sequence together.

        Where a class has more sequences than that, they stay together all the same. Chunks hold
        the names in order, so that what is said about them can be joined again.
        """
        if rows < 1:
            raise ValueError(f"a chunk holds at least one sequence, got {rows}")
        if self.mentions is None:
            starts = range(0, len(self.names), rows)
            return [
                Texts(
                    self.names[at : at + rows],
                    self.input_ids[at : at + rows],
                    self.attention_mask[at : at + rows],
                )
                for at in starts
            ]
        cuts = [0]
        held: set[int] = set()
        for first, sequences in _together(self.mentions):
            if held and len(held | sequences) > rows:
                cuts.append(first)
                held = set()
            held |= sequences
        ends = [*cuts[1:], self.mentions.num_classes]
        return [self._of(first, end) for first, end in zip(cuts, ends, strict=True)]

    def _of(self, first: int, end: int) -> Texts:
        """Return the classes `first` to `end` - 1 with their sequences, which no others share."""
        assert self.mentions is not None
        rows, classes = self.mentions.rows, self.mentions.classes
        kept = (first <= classes) & (classes < end)
        sequences, renumbered = torch.unique(rows[kept], return_inverse=True)
        mentions = Mentions(
            renumbered,
            classes[kept] - first,
            self.mentions.tokens[:, kept],
            num_classes=end - first,
            first_class=self.mentions.first_class + first,
        )
        ids, mask = self.input_ids[sequences], self.attention_mask[sequences]
        return Texts(self.names[first:end], ids, mask, mentions)


def _together(mentions: Mentions) -> Iterator[tuple[int, set[int]]]:
    """Yield neighbouring classes that share sequences: the first one, and all their sequences."""
    sequences: list[set[int]] = [set() for _ in range(mentions.num_classes)]
    last: dict[int, int] = {}  # class that each sequence mentions
    for row, k in zip(mentions.rows.tolist(), mentions.classes.tolist(), strict=True):
        sequences[k].add(row)
        last[row] = max(k, last.get(row, k))
    first, end = 0, 0
    held: set[int] = set()
    for k, own in enumerate(sequences):
        held |= own
        end = max([end, *(last[row] for row in own)])
        if end <= k:
            yield first, held
            first, held = k + 1, set()
