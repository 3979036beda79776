"""A bridged encoder with heads on it: train it, save its adapter, predict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bridger._etris_layout import ReleasedLayout
from bridger.answering import ROWS_AT_ONCE, joined, predict_each, texts_by_head
from bridger.encoder import BridgedEncoder
from bridger.features import BridgedFeatures, Mentions
from bridger.heads import Head, HeadOutput
from bridger.heads_of_model import build_heads, is_resting, parameter_groups, put_together
from bridger.managed_adapters import ManagedAdapters
from bridger.output import BridgedOutput
from bridger.processing import Processor
from bridger.recomputing import LEVELS, check_options, is_recomputing, recompute
from bridger.summary import head_lines, trainable_line

if TYPE_CHECKING:
    from bridger.processing import ImageLike


class BridgedModel(ManagedAdapters):
    """Two frozen towers, the Bridgers between them, and one or more task heads.

    Args:
        encoder: made by `attach_bridgers`.
        heads: the heads by name, in order; without any, `encode` and saving work.
        processor: turns pictures and words into tensors; `predict` needs one.
        loss_weights: weight of each head's loss in the sum, 1 by default.

    Attributes:
        loss_weights: set an entry to weigh a head's loss. At 0 the head rests: in train mode it
            is not run where there are labels, and it is no part of `parameter_groups`, so that
            the others train to the same bits as if it was not there, from the same seed (set it
            after building: each head that is built draws random numbers).

    Raises:
        ValueError: a head has a name that it cannot have, or a weight is none.
    """

    def __init__(
        self,
        encoder: BridgedEncoder,
        heads: Mapping[str, Head],
        processor: Processor | None = None,
        loss_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(encoder, heads, loss_weights)
        self.processor = processor
        self.etris_layout: ReleasedLayout | None = None  # set by bridger.etris

    @classmethod
    def build(
        cls,
        encoder: BridgedEncoder,
        heads: Mapping[str, tuple[type[Head], Mapping[str, Any]]],
        loss_weights: Mapping[str, float] | None = None,
    ) -> BridgedModel:
        """Build heads, (class, config) by name, from the encoder's `spec`.

        Args:
            encoder: made by `attach_bridgers`.
            heads: by name, each a class and its options.
            loss_weights: of the heads' losses by name, 1 where nothing is said.

        Raises:
            TypeError: one is no class of heads.
        """
        built = build_heads(encoder.spec, heads, next(encoder.parameters()).device)
        processor = Processor.infer(encoder.vision.module, encoder.text.module)
        return cls(encoder, built, processor, loss_weights)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        expression_mask: Tensor | None = None,
        labels: Any = None,
        *,
        mentions: Mentions | None = None,
        texts: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> BridgedOutput:
        """Run the encoder once for each text, and every head on the features of its own.

        In train mode, where there are labels, a head rests that has none, or whose loss has
        weight 0: it draws no random numbers, moves no statistics and gives no output.

        Args:
            pixel_values: (B, 3, H, W).
            input_ids: (B, L) or (B, N, L).
            attention_mask: like input_ids, optional.
            expression_mask: (B, N), false at the padding of a ragged N.
            labels: the only head's target, or targets by head name.
            mentions: where the texts are class names: which tokens name which class.
            texts: in place of the text arguments, several texts by name, each a dict of them; a
                head reads the text of its own name, or of its kind ("expressions", "classes"),
                and rests where there is neither.

        Returns:
            The outputs of the heads that ran and, with labels, the loss.

        Raises:
            RuntimeError: there is no head.
            TypeError: no text, or both kinds.
            ValueError: labels for heads that are not there or have no text, inputs that do not
                fit, or every head rests.
        """
        if not len(self.heads):
            raise RuntimeError("this model has no head; encode() gives the bridged features")
        targets = self.targets(labels)
        flat = dict(
            input_ids=input_ids,
            attention_mask=attention_mask,
            expression_mask=expression_mask,
            mentions=mentions,
        )
        found: dict[str, HeadOutput] = {}
        for names, text in texts_by_head(self, flat, texts, targets).values():
            names = [name for name in names if not is_resting(self, name, targets)]
            if names:
                features = self.encode(pixel_values, **text)
                mask = text.get("expression_mask")
                found |= {n: self.heads[n](features, targets.get(n), mask) for n in names}
        if not found:
            raise ValueError(
                f"every head rests: there are labels for {list(targets)}, and the losses weigh "
                f"{dict(self.loss_weights)}; set one with model.loss_weights[name] = 1"
            )
        ordered = {name: found[name] for name in self.heads if name in found}
        return put_together(ordered, self.loss_weights)

    def encode(
        self, *args: Any, mentions: Mentions | None = None, **kwargs: Any
    ) -> BridgedFeatures:
        """Return the bridged features; arguments as in `BridgedEncoder.forward`, and `mentions`."""
        features: BridgedFeatures = self.encoder(*args, **kwargs)
        return features.naming(mentions)

    @contextmanager
    def disable(self) -> Iterator[None]:
        """Run without Bridgers; see `BridgedEncoder.disable`."""
        with self.encoder.disable():
            yield

    def frozen_towers(self) -> nn.Module:
        """Return what is never trained."""
        return self.encoder.towers

    def compile(self, **options: Any) -> None:
        """Compile towers' blocks, Bridgers and heads; see `BridgedEncoder.compile`.

        Args:
            **options: of `torch.compile`.
        """
        self.encoder.compile(**options)
        for head in self.heads.values():
            head.compile(**options)

    @property
    def memory(self) -> str:
        """What of `save_memory` acts: "low" where blocks of a tower recompute, and so on."""
        if self.encoder.recomputing:
            return "low"
        return "balanced" if any(map(is_recomputing, self.modules())) else "fast"

    def save_memory(self, level: str) -> None:
        """Choose what backward computes again in place of keeping it: memory for time.

        Nothing that is computed changes.

        Args:
            level: "fast": nothing; "balanced": attention of Bridgers and heads, which keeps much
                and takes little; "low": the towers' blocks too, where their library offers it.

        Raises:
            ValueError: another level.
        """
        if level not in LEVELS:
            raise ValueError(f"memory is one of {LEVELS}, got {level!r}")
        if level == "low":
            self.encoder.activation_checkpointing_enable()
        else:
            self.encoder.activation_checkpointing_disable()
        recompute(self, level != "fast")

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Do `save_memory("low")`, by the name under which transformers' Trainer asks for it.

        Args:
            activation_checkpointing_kwargs: see `BridgedEncoder.activation_checkpointing_enable`.
            **options: likewise.
        """
        check_options(activation_checkpointing_kwargs, options)
        self.save_memory("low")

    def activation_checkpointing_disable(self) -> None:
        """Do `save_memory("fast")`."""
        self.save_memory("fast")

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Do the same, by the older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    # Training loops of one's own.

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that an optimiser should get."""
        return [p for group in self.parameter_groups() for p in group["params"]]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return optimiser groups by part: "bridgers", "tower_tensors", "peft", then heads' names.

        Heads whose loss has weight 0 rest, and have none.
        Set a group's "lr" before handing it to the optimiser to give parts rates of their own.
        """
        return parameter_groups(self)

    def print_trainable_parameters(self) -> None:
        """Print how much is trained, part by part, what rests, and how much is frozen."""
        print(trainable_line(self))

    def summary(self, image_size: tuple[int, int] | None = None) -> str:
        """Return the stages as a table, the heads, and what is trained against the towers.

        Args:
            image_size: (H, W) of the pictures in pixels; see `bridger.summary.stage_table`.
        """
        lines = [self.encoder.summary(image_size), *head_lines(self), trainable_line(self)]
        return "\n".join(lines)

    # Prediction.

    @torch.no_grad()
    def predict(
        self,
        image: ImageLike | Sequence[ImageLike],
        text: Any = None,
        threshold: float | None = None,
        head: str | None = None,
        *,
        return_attention: bool = False,
        rows_at_once: int = ROWS_AT_ONCE,
        **options: Any,
    ) -> Any:
        """Answer what the words ask about a picture, at the picture's own size.

        Pictures of a list that are asked about equal words, or about as many sentences, share
        forwards. It runs in eval mode and leaves every module in the mode that it had. Modes are
        shared between threads: to predict in several at once, call `eval()` first. Where further
        sentences about a picture will come, `encoder.cache_prefix("memory")` spares them what
        comes before the first Bridger.

        Args:
            image: a picture (PIL image, array, tensor or path), or a list of pictures.
            text: for one picture, a sentence or a list of N sentences, or of class names for
                heads that read those (None: those that the head was trained on); for a list of
                pictures, one entry of that kind for each, or None.
            threshold: what counts as found, from 0 to 1; None: as the head has it.
            head: which head answers, where there are several.
            return_attention: whether results also hold where Bridgers looked, as `attention` (see
                `bridger.predictions.Attention`). Nothing else changes by it, but that Bridgers
                run without `compile` then.
            rows_at_once: most sequences of text in one forward, counted for each of its pictures;
                fewer need less memory.
            **options: of the head's `results`.

        Returns:
            What the head's `results` make: of the referring head a Prediction with N masks. A
            list of them for a list of pictures.

        Raises:
            RuntimeError: the model has no processor.
            TypeError: an option that the head does not have.
            ValueError: a threshold that cannot be, an empty sentence, a broken picture, not as
                many texts as pictures, or attention where no Bridgers act.
        """
        name = self.head_name(head)
        if threshold is not None:
            options["threshold"] = threshold
        several = isinstance(image, (list, tuple))
        images: Any = image if several else [image]
        asked = joined(text, images) if several else [text]
        results = predict_each(self, name, images, asked, rows_at_once, options, return_attention)
        return results if several else results[0]
