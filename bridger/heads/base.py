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
        def probabilities(self, logits) -> Tensor: ...

What it gets: an `EncoderSpec` when it is built, so that every input width is known, and
`BridgedFeatures` in every forward, with B*N rows ordered image by image.
What it returns: a `HeadOutput` whose logits begin with (B, N), and a loss when there are labels.
How targets look: the head says so; segmentation targets are (B[, N], H, W) at the size of the
picture, and the head resizes them. `expression_mask` (B, N) is false at the expressions that
only fill up a ragged batch: they take no part in the loss.
How it is saved: under its registered name, with `config.to_dict()` and its state dict;
`from_spec(spec, **config)` builds it again. Parameters that need no training are kept with
`requires_grad=False`.
A file in this folder is found by its registered name without being listed anywhere; a head of
another package is known as soon as its module is imported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from bridger.config import Config, did_you_mean
from bridger.features import BridgedFeatures, EncoderSpec

HeadT = TypeVar("HeadT", bound="Head")


@dataclass
class HeadOutput:
    """What a head returns.

    Attributes:
        logits: (B, N, ...), float32.
        loss: a scalar, or None where no labels were given.
        no_target: (B, N) logits, float32, of an expression's meaning nothing in the picture; None
            for heads that do not score this.
    """

    logits: Tensor
    loss: Tensor | None = None
    no_target: Tensor | None = None


class Head(nn.Module, ABC):
    """Base of all heads.

    Attributes:
        name: the name under which `register_head` made the class known.
        config_class: the frozen dataclass of its options.
        spec: the widths that it was built for.
        config: its options; `to_dict()` is what is saved.
    """

    name: ClassVar[str] = ""
    config_class: ClassVar[type[Config]]

    def __init__(self, spec: EncoderSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.config = config

    @classmethod
    def presets(cls, spec: EncoderSpec) -> Mapping[str, Mapping[str, Any]]:
        """Return the options that each preset sets, by its name, for towers of these widths."""
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
        labels: Tensor | None = None,
        expression_mask: Tensor | None = None,
    ) -> HeadOutput:
        """Decode the features, and compare the result with the labels where there are any."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits into the probabilities that `predict` works on, in the same shape."""
