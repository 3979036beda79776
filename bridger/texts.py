"""What a head reads beside the picture: sentences, or class names packed into sequences.

Shapes: S sequences, L tokens, M mentions of K classes, B images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from bridger.features import Mentions
from bridger.processing import Processor

ClassName: TypeAlias = str | Sequence[str]
"""A class: its name, or its name and synonyms of it."""


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
            ValueError: see `check_class_names`; an unknown mode, a template without {}.
        """
        raise NotImplementedError

    def batch(self, images: int) -> dict[str, Any]:
        """Return `input_ids` and `attention_mask` (B, S, L), and "mentions" where there are any."""
        ids, mask = (t.expand(images, -1, -1) for t in (self.input_ids, self.attention_mask))
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        return given if self.mentions is None else {**given, "mentions": self.mentions}

    def chunks(self, rows: int) -> list[Texts]:
        """Split into texts of at most `rows` sequences each, the classes of a sequence together.

        Where a class has more sequences than that, they stay together all the same. Chunks hold
        the names in order, so that what is said about them can be joined again.
        """
        if self.mentions is None:
            return [
                Texts(
                    self.names[at : at + rows],
                    self.input_ids[at : at + rows],
                    self.attention_mask[at : at + rows],
                )
                for at in range(0, len(self.names), rows)
            ]
        raise NotImplementedError
