"""Heads that are asked about classes by their names, and what they read of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from bridger.class_phrases import check_class_names, check_templates, names_of
from bridger.config import Config, did_you_mean
from bridger.features import BridgedFeatures, EncoderSpec, Mentions
from bridger.heads.base import Head, TextKind
from bridger.processing import Processor
from bridger.texts import TEXT_MODES, ClassName, Texts

SCORES = ["text", "fixed"]
"""What classes are scored by, in heads that know both ways."""


@dataclass(frozen=True)
class ClassNamesConfig(Config):
    """Options that all heads share which read class names.

    Attributes:
        classes: the classes that it was trained on, names or (name, synonym, ...); what `predict`
            is asked by default, and what tells seen classes from new ones.
        text_mode: how names become text, "separate" or "joint"; see `Texts.of_classes`.
        templates: sentences with a {} where the name stands.

    Raises:
        TypeError, ValueError: names are empty or stand twice (see `check_class_names`), a template
            has no {}, or the mode is unknown.
    """

    classes: tuple[ClassName, ...] = ()
    text_mode: str = "separate"
    templates: tuple[str, ...] = ("{}",)

    def __post_init__(self) -> None:
        if self.classes:
            check_class_names(self.classes)
        check_templates(self.templates)
        if self.text_mode not in TEXT_MODES:
            raise ValueError(
                f"text_mode={self.text_mode!r} is unknown: "
                f"{did_you_mean(self.text_mode, TEXT_MODES)}"
            )


class ClassNamesHead(Head):
    """A head that is asked about classes by their names."""

    text: ClassVar[TextKind] = "classes"
    config: ClassNamesConfig

    @property
    def fixed_classes(self) -> bool:
        """Whether it can answer about `config.classes` alone, all of them at once.

        Batches then ask about that very list, and labels are numbers in it.
        """
        return False

    def texts(self, processor: Processor, words: Sequence[ClassName] | str | None) -> Texts:
        """Turn class names into texts; None means those that the head was trained on.

        Raises:
            TypeError, ValueError: there are no names, they are not fit to be any, or others than
                those that the head was built for where these are fixed.
        """
        config = self.config
        classes = [words] if isinstance(words, str) else config.classes if words is None else words
        if words is not None:
            check_class_names(classes)
        if self.fixed_classes and [*map(names_of, classes)] != [*map(names_of, config.classes)]:
            raise ValueError(
                f"this head knows {len(config.classes)} fixed classes and answers about all of "
                f"them: leave the names out, or pass {[names_of(k)[0] for k in config.classes]}"
            )
        if not classes:
            raise ValueError(
                "this head keeps no class names of its own: say which classes to look for, as in "
                "predict(image, ['dog', 'cat'])"
            )
        return Texts.of_classes(processor, classes, config.text_mode, config.templates)


def check_scores(scores: str, classes: Sequence[ClassName]) -> None:
    """Refuse an option `scores` of a head, "text" or "fixed", that cannot be.

    Raises:
        ValueError: it is another one, or a fixed list without classes.
    """
    if scores not in SCORES:
        raise ValueError(f"scores={scores!r} is unknown: {did_you_mean(scores, SCORES)}")
    if scores == "fixed" and not classes:
        raise ValueError("scores='fixed' scores a fixed list of classes: say which, classes=")


@dataclass(frozen=True)
class Mentioned:
    """What a head reads of the text of M mentions of K classes.

    Attributes:
        mentions: where they are.
        tokens: (B, M, C_t), the mean of each mention's tokens.
        sentence: (B, M, C_s), the sentence feature of each mention's row.
    """

    mentions: Mentions
    tokens: Tensor
    sentence: Tensor


def read_mentions(features: BridgedFeatures) -> Mentioned:
    """Read the text of every mention; without mentions each expression is a class of its own."""
    n = features.num_expressions
    mentions = features.mentions or Mentions.of_expressions(features.token_mask, n)
    tokens = rearrange(features.tokens, "(b n) l c -> b n l c", n=n)[:, mentions.rows]
    named = mentions.tokens.to(tokens.dtype)
    # Padding may hold anything, so it is not multiplied away.
    tokens = torch.where(mentions.tokens[..., None], tokens, 0)
    means = tokens.sum(dim=2) / named.sum(dim=2).clamp(min=1)[..., None]
    sentence = rearrange(features.sentence, "(b n) c -> b n c", n=n)[:, mentions.rows]
    return Mentioned(mentions, means, sentence)


def mean_by_class(values: Tensor, mentions: Mentions) -> Tensor:
    """Return the mean (B, K, ...) over each class's mentions of values (B, M, ...)."""
    if len(mentions.rows) == mentions.num_classes:  # one each, in any order
        return values[:, mentions.classes.argsort()]
    shape = (values.shape[0], mentions.num_classes, *values.shape[2:])
    sums = values.new_zeros(shape).index_add(1, mentions.classes, values)
    counts = torch.bincount(mentions.classes, minlength=mentions.num_classes)
    return sums / counts.reshape(-1, *[1] * (values.ndim - 2)).to(values.dtype)


class TextEmbedding(nn.Module):
    """The text of every mention as one vector: P_s(sentence of its row) + P_t(mean of its tokens).

    It is one rule for class names that are sentences of their own and for names packed into one.

    Args:
        spec: what the bridged towers offer.
        width: D, of the vectors; None keeps the sentence as it is, to which P_t, which begins as
            zero, is added: fresh, a class is the text tower's own feature of it.
    """

    def __init__(self, spec: EncoderSpec, width: int | None = None) -> None:
        super().__init__()
        self.width = width or spec.sentence_width
        self.sentence: nn.Module = (
            nn.Identity() if width is None else nn.Linear(spec.sentence_width, width)
        )
        self.tokens = nn.Linear(spec.token_width, self.width, bias=False)
        if width is None:
            nn.init.zeros_(self.tokens.weight)

    def forward(self, read: Mentioned) -> Tensor:
        """Embed what `read_mentions` read, (B, M, D), in the dtype of the layers."""
        dtype = self.tokens.weight.dtype
        sentence: Tensor = self.sentence(read.sentence.to(dtype))
        named: Tensor = self.tokens(read.tokens.to(dtype))
        return sentence + named


def real_classes(mentions: Mentions, expression_mask: Tensor | None) -> Tensor | None:
    """Return which of K classes are more than padding, (B, K) bool; None: all are.

    Args:
        mentions: of the classes in N expressions.
        expression_mask: (B, N), false at the padding of a ragged batch.
    """
    if expression_mask is None:
        return None
    return mean_by_class(expression_mask[:, mentions.rows].float(), mentions) > 0
