"""What a head is: a trainable task decoder on bridged features.

A head is one file with one frozen dataclass (its `Config`) and one class:

    @dataclass(frozen=True)
    class CountConfig(Config):
        width: int = 64

    @register_head("count")
    class CountHead(Head):
        config_class = CountConfig

        def __init__(self, spec: EncoderSpec, config: CountConfig) -> None:
            super().__init__(spec, config)
            self.layer = nn.Linear(spec.sentence_width, 1)

        def forward(self, features, labels=None, expression_mask=None) -> HeadOutput: ...
        def results(self, output, processor, placements, texts) -> list[Any]: ...

What it gets: an `EncoderSpec` when it is built, so that every input width is known, and
`BridgedFeatures` in every forward, with B*N rows ordered image by image.
Which text it needs: `text` says whether the rows are "expressions", each standing for itself, or
"classes", of which `features.mentions` says where they are named; `texts` turns the words that
`predict` is given into such rows.
What it returns: a `HeadOutput` whose logits begin with (B, N), N the expressions or the classes,
and a loss when there are labels.
How targets look: the head says so; segmentation targets are (B[, N], H, W) at the size of the
picture, and the head resizes them. `expression_mask` (B, N) is false at the expressions that
only fill up a ragged batch: they take no part in the loss.
Many texts are asked in chunks, whose outputs `merge` joins again along N; a head whose output has
fields of its own overrides it.
What a user sees: `results` turns an output into what `predict` returns, at the pictures' own
sizes; its options are those of `predict`.
How it is saved: under its registered name, with `config.to_dict()` and its state dict;
`from_spec(spec, **config)` builds it again. Parameters that need no training are kept with
`requires_grad=False`.
A file in this folder is found by its registered name without being listed anywhere; a head of
another package is known as soon as its module is imported.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from bridger.config import Config, did_you_mean
from bridger.features import BridgedFeatures, EncoderSpec
from bridger.processing import Placement, Processor
from bridger.texts import ClassName, Texts

HeadT = TypeVar("HeadT", bound="Head")
OutputT = TypeVar("OutputT", bound="HeadOutput")
TextKind = Literal["expressions", "classes"]


@dataclass
class HeadOutput:
    """What a head returns; heads with more to say return a dataclass that adds fields.

    Attributes:
        logits: (B, N, ...), float32.
        loss: a scalar, or None where no labels were given.
        losses: the weighted summands of the loss by name, where there are several.
        no_target: (B, N) logits, float32, of an expression's meaning nothing in the picture; None
            for heads that do not score this.
    """

    logits: Tensor
    loss: Tensor | None = None
    no_target: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)

    def of_picture(self: OutputT, index: int) -> OutputT:
        """Return the output for one of B pictures, as a batch of one.

        Tensors among the fields of heads' own begin with B too; all else is about every picture.
        """
        values = {own.name: getattr(self, own.name) for own in fields(self)}
        rows: dict[str, Any] = {
            name: value[index : index + 1]
            for name, value in values.items()
            if isinstance(value, Tensor) and value.shape[:1] == self.logits.shape[:1]
        }
        return replace(self, **rows)


def options_beside(own: Callable[..., Any], base: Callable[..., Any]) -> tuple[str, ...]:
    """Return the parameters of a method that the one which it overrides does not have."""
    known = inspect.signature(base).parameters
    return tuple(
        name
        for name, parameter in inspect.signature(own).parameters.items()
        if name not in known and parameter.kind is not parameter.VAR_KEYWORD
    )


class Head(nn.Module, ABC):
    """Base of all heads.

    Attributes:
        name: the name under which `register_head` made the class known.
        text: what its rows of text are: "expressions" or "classes".
        pipeline_tag: the task that the Hub files it under; empty where none fits.
        config_class: the frozen dataclass of its options.
        spec: the widths that it was built for.
        config: its options; `to_dict()` is what is saved.
    """

    name: ClassVar[str] = ""
    text: ClassVar[TextKind] = "expressions"
    pipeline_tag: ClassVar[str] = ""
    config_class: ClassVar[type[Config]]

    def __init__(self, spec: EncoderSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.config = config

    @classmethod
    def presets(cls, spec: EncoderSpec) -> Mapping[str, Mapping[str, Any]]:
        """Return the options that each preset sets, by its name.

        Args:
            spec: the towers' widths, by which options may differ.
        """
        return {"default": {}}

    @classmethod
    def from_spec(
        cls: type[HeadT], spec: EncoderSpec, preset: str = "default", **changes: Any
    ) -> HeadT:
        """Build the head for a bridged pair of towers.

        Args:
            spec: what the pair offers, `BridgedEncoder.spec`.
            preset: the name of one of `presets`.
            **changes: options that differ from the preset.

        Raises:
            ValueError: the preset or an option is unknown, or options do not fit together.
        """
        presets = cls.presets(spec)
        if preset not in presets:
            raise ValueError(
                f"{cls.__name__} has no preset {preset!r}: {did_you_mean(preset, list(presets))}"
            )
        return cls(spec, cls.config_class.from_dict({**presets[preset], **changes}))

    @abstractmethod
    def forward(
        self,
        features: BridgedFeatures,
        labels: Any = None,
        expression_mask: Tensor | None = None,
    ) -> HeadOutput:
        """Decode the features, and compare the result with the labels where there are any.

        Args:
            features: of B pictures with N rows of text each.
            labels: in the form that the head says; None: no loss.
            expression_mask: (B, N), false at the padding of a ragged N, which has no part in the
                loss.
        """

    @abstractmethod
    def results(
        self,
        output: HeadOutput,
        processor: Processor,
        placements: Sequence[Placement],
        texts: Texts,
    ) -> list[Any]:
        """Turn an output into what `predict` returns, one result for each picture.

        Args:
            output: of B pictures.
            processor: what made their pixels.
            placements: (B) where each picture lies in the input.
            texts: what was asked.

        Further options are the head's own, with defaults.
        """

    @classmethod
    def result_options(cls) -> tuple[str, ...]:
        """Return the names of the options of its results, which are those of `predict`.

        A head whose `results` takes any (**options) overrides this.
        """
        return options_beside(cls.results, Head.results)

    def texts(self, processor: Processor, words: Sequence[ClassName] | str | None) -> Texts:
        """Turn the words that `predict` is given into texts.

        Args:
            processor: makes tokens of them.
            words: a sentence, or several; class names where the head reads these.

        Raises:
            ValueError: there are none, or they hold no words.
        """
        if words is None:
            raise ValueError("say what to look for: predict(image, 'the dog on the left')")
        sentences = [words] if isinstance(words, str) else words
        if not isinstance(sentences, Iterable):
            raise TypeError(f"expected sentences, one string each, got {words!r}")
        sentences = list(sentences)
        if not all(isinstance(sentence, str) for sentence in sentences):
            raise TypeError(f"expected sentences, one string each, got {words!r}")
        return Texts.of_sentences(processor, sentences)  # type: ignore[arg-type]

    def merge(self, outputs: Sequence[HeadOutput]) -> HeadOutput:
        """Join the outputs for one batch of pictures that was asked about texts in chunks.

        Args:
            outputs: of the chunks, in their order.

        Raises:
            TypeError: the outputs have fields of the head's own, and it does not join them.
        """
        if len(outputs) == 1:
            return outputs[0]
        if type(outputs[0]) is not HeadOutput:
            raise TypeError(
                f"{type(self).__name__} was asked in {len(outputs)} chunks of texts, and only it "
                f"can join the fields of its {type(outputs[0]).__name__}: let it override "
                f"merge(outputs), or ask less at once"
            )
        scored = [output.no_target for output in outputs if output.no_target is not None]
        return HeadOutput(
            torch.cat([output.logits for output in outputs], dim=1),
            no_target=torch.cat(scored, dim=1) if scored else None,
        )

    def check_features(
        self, features: BridgedFeatures, expression_mask: Tensor | None = None
    ) -> None:
        """Refuse features of other widths than the head was built for, and masks that do not fit.

        Args:
            features: of B pictures with N rows of text each.
            expression_mask: as in `forward`.

        Raises:
            ValueError: the widths differ, or the mask is not (B, N).
        """
        spec = self.spec
        expected = (*spec.map_widths, spec.token_width, spec.sentence_width)
        found = (
            *(features_i.shape[1] for features_i in features.maps),
            features.tokens.shape[-1],
            features.sentence.shape[-1],
        )
        if found != expected:
            raise ValueError(
                f"this head was built for maps, tokens and a sentence of {expected} channels, but "
                f"got {found}: build it from the spec of the encoder that made them"
            )
        rows = (len(features.sentence) // features.num_expressions, features.num_expressions)
        if expression_mask is not None and tuple(expression_mask.shape) != rows:
            raise ValueError(
                f"expression_mask must be (B, N) = {rows}, got {tuple(expression_mask.shape)}"
            )
