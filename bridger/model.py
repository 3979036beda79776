"""A bridged encoder with heads on it: train it, save its adapter, predict."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bridger import checkpoint
from bridger._etris_layout import ReleasedLayout
from bridger.answering import ROWS_AT_ONCE, joined, predict_one, texts_by_head
from bridger.encoder import BridgedEncoder
from bridger.features import BridgedFeatures, Mentions
from bridger.half_towers import HalfTowers
from bridger.heads import Head, HeadOutput
from bridger.output import BridgedOutput
from bridger.processing import Processor
from bridger.recomputing import recompute
from bridger.summary import count, trainable_line
from bridger.tower_peft import tuned_parameters
from bridger.towers import TextTower, VisionTower

if TYPE_CHECKING:
    from bridger.processing import ImageLike


PARTS = ("bridgers", "tower_tensors", "peft")
"""Names of what is trained beside the heads."""


class BridgedModel(HalfTowers):
    """Two frozen towers, the Bridgers between them, and one or more task heads.

    Args:
        encoder: made by `attach_bridgers`.
        heads: the heads by name, in order; without any, `encode` and saving work.
        processor: turns pictures and words into tensors; `predict` needs one.
        loss_weights: weight of each head's loss in the sum, 1 by default.

    Raises:
        ValueError: a head has the name of another part.
    """

    def __init__(
        self,
        encoder: BridgedEncoder,
        heads: Mapping[str, Head],
        processor: Processor | None = None,
        loss_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if taken := [name for name in heads if name in PARTS]:
            raise ValueError(
                f"a head cannot be called {taken[0]!r}: {', '.join(PARTS)} are the groups of "
                f"other parameters in parameter_groups(); choose another name"
            )
        self.encoder = encoder
        self.heads: Mapping[str, Head] = nn.ModuleDict(dict(heads))  # type: ignore[assignment]
        self.processor = processor
        self.etris_layout: ReleasedLayout | None = None  # set by bridger.etris
        self.loss_weights = {name: (loss_weights or {}).get(name, 1.0) for name in heads}

    @classmethod
    def build(
        cls,
        encoder: BridgedEncoder,
        heads: Mapping[str, tuple[type[Head], Mapping[str, Any]]],
    ) -> BridgedModel:
        """Build heads, (class, config) by name, from the encoder's `spec`.

        Raises:
            TypeError: one is no class of heads.
        """
        for name, (head, _) in heads.items():
            if not (isinstance(head, type) and issubclass(head, Head)):
                raise TypeError(
                    f"head {name!r} must be a class of heads, such as ReferringSegmentationHead, "
                    f"got {head!r}; bridger.heads.get_head gives a class by its registered name"
                )
        device = next(encoder.parameters()).device
        built = {
            name: head.from_spec(encoder.spec, **config).to(device)
            for name, (head, config) in heads.items()
        }
        processor = Processor.infer(encoder.vision.module, encoder.text.module)
        return cls(encoder, built, processor)

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

        In train mode a head whose loss has weight 0 rests where there are labels: it draws no
        random numbers, and moves no statistics.

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
            Logits and, with labels, the loss.

        Raises:
            RuntimeError: there is no head.
            TypeError: no text, or both kinds.
            ValueError: labels for heads that are not there, or inputs that do not fit.
        """
        if not len(self.heads):
            raise RuntimeError("this model has no head; encode() gives the bridged features")
        targets = self._targets(labels)
        flat = dict(
            input_ids=input_ids,
            attention_mask=attention_mask,
            expression_mask=expression_mask,
            mentions=mentions,
        )
        found: dict[str, HeadOutput] = {}
        for names, text in texts_by_head(self, flat, texts).values():
            names = [name for name in names if not self._rests(name, targets)]
            if names:
                features = self.encode(pixel_values, **text)
                mask = text.get("expression_mask")
                found |= {n: self.heads[n](features, targets.get(n), mask) for n in names}
        return self._output({name: found[name] for name in self.heads if name in found})

    def _rests(self, name: str, targets: Mapping[str, Any]) -> bool:
        return self.training and bool(targets) and not self.loss_weights[name]

    def _output(self, outputs: Mapping[str, HeadOutput]) -> BridgedOutput:
        result = BridgedOutput()
        losses = [
            self.loss_weights[name] * out.loss
            for name, out in outputs.items()
            if out.loss is not None
        ]
        if losses:
            result["loss"] = torch.stack(losses).sum()
        result["logits"] = next(iter(outputs.values())).logits
        result["heads"] = outputs
        return result

    def _targets(self, labels: Any) -> Mapping[str, Any]:
        if labels is None:
            return {}
        names = list(self.heads)
        if not isinstance(labels, Mapping):
            if len(names) > 1:
                raise ValueError(f"with several heads, labels must be a dict by head name: {names}")
            return {names[0]: labels}
        if unknown := set(labels) - set(names):
            raise ValueError(f"labels for unknown heads {sorted(unknown)}; the heads are {names}")
        return labels

    def encode(
        self, *args: Any, mentions: Mentions | None = None, **kwargs: Any
    ) -> BridgedFeatures:
        """Return the bridged features; arguments as in `BridgedEncoder.forward`, and `mentions`."""
        features: BridgedFeatures = self.encoder(*args, **kwargs)
        return replace(features, mentions=mentions)

    @contextmanager
    def disable(self) -> Iterator[None]:
        """Run without Bridgers; see `BridgedEncoder.disable`."""
        with self.encoder.disable():
            yield

    def frozen_towers(self) -> nn.Module:
        """Return what is never trained."""
        return self.encoder.towers

    def detach(self) -> None:
        """Remove every trace of the adapter from the towers."""
        self.encoder.detach()

    def compile(self, **options: Any) -> None:
        """Compile towers' blocks, Bridgers and heads; see `BridgedEncoder.compile`."""
        self.encoder.compile(**options)
        for head in self.heads.values():
            head.compile(**options)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute in backward; see `BridgedEncoder.activation_checkpointing_enable`.

        In heads, attention layers are recomputed.
        """
        self.encoder.activation_checkpointing_enable(activation_checkpointing_kwargs, **options)
        recompute(self, True)

    def activation_checkpointing_disable(self) -> None:
        """Undo `activation_checkpointing_enable`."""
        self.encoder.activation_checkpointing_disable()
        recompute(self, False)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Do the same, by the name under which older transformers' Trainer asks for it."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    def merge_peft(self) -> None:
        """Merge peft's layers into the towers for good; see `BridgedEncoder.merge_peft`."""
        self.encoder.merge_peft()

    # Training loops of one's own.

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that an optimiser should get."""
        return [p for group in self.parameter_groups() for p in group["params"]]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return optimiser groups by part: "bridgers", "tower_tensors", "peft", then heads' names.

        Set a group's "lr" before handing it to the optimiser to give parts rates of their own.
        """
        encoder = self.encoder
        encoder.peft_parts()  # what would train without effect is refused here
        bridgers = encoder.bridgers.parameters() if encoder.bridgers else ()
        others = (bridgers, encoder.tower_tensors.parameters(), tuned_parameters(encoder.towers))
        parts: dict[str, Iterable[nn.Parameter]] = {
            **dict(zip(PARTS, others, strict=True)),
            **{name: head.parameters() for name, head in self.heads.items()},
        }
        groups = []
        for name, part in parts.items():
            if parameters := [p for p in part if p.requires_grad]:
                groups.append({"name": name, "params": parameters})
        return groups

    def print_trainable_parameters(self) -> None:
        """Print how much is trained, part by part, against the frozen towers."""
        print(trainable_line(self))

    def summary(self, image_size: tuple[int, int] | None = None) -> str:
        """Return the stages as a table, the heads, and what is trained against the towers.

        Args:
            image_size: (H, W) of the pictures in pixels; see `bridger.summary.stage_table`.
        """
        heads = [f"head {name}: {head.name}, {count(head):,}" for name, head in self.heads.items()]
        return "\n".join([self.encoder.summary(image_size), *heads, trainable_line(self)])

    def adapter_state_dict(self) -> dict[str, Tensor]:
        """Return what is saved: Bridgers, heads, the adapter's tower tensors, peft's layers."""
        heads = self._modules["heads"].state_dict(prefix="heads.")  # type: ignore[union-attr]
        return {**self.encoder.adapter_state_dict(), **heads}

    # Saving and loading.

    def save_pretrained(
        self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None
    ) -> None:
        """Write the adapter (never the towers) to a folder; see `bridger.checkpoint`.

        Args:
            folder: made where there is none.
            dtype: of the numbers on disk, such as torch.float16 for sharing at half the size;
                None keeps the model's own. They come back as float32.
        """
        checkpoint.save(self, folder, dtype)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        vision_model: nn.Module | VisionTower,
        text_model: nn.Module | TextTower,
    ) -> BridgedModel:
        """Attach a saved adapter to the towers that it was made for.

        Returns:
            The model in eval mode.

        Raises:
            FileNotFoundError: the folder holds no adapter.
            ValueError: the adapter is for other towers, or its files do not fit together; every
                mismatch is named, and the towers are left as they were.
        """
        return checkpoint.load(folder, vision_model, text_model)

    # Prediction.

    @torch.no_grad()
    def predict(
        self,
        image: ImageLike | Sequence[ImageLike],
        text: Any = None,
        threshold: float | None = None,
        head: str | None = None,
        *,
        rows_at_once: int = ROWS_AT_ONCE,
        **options: Any,
    ) -> Any:
        """Answer what the words ask about a picture, at the picture's own size.

        It runs in eval mode and leaves every module in the mode that it had. Modes are shared
        between threads: to predict in several at once, call `eval()` first.

        Args:
            image: a picture (PIL image, array, tensor or path), or a list of pictures.
            text: for one picture, a sentence or a list of N sentences, or of class names for
                heads that read those (None: those that the head was trained on); for a list of
                pictures, one entry of that kind for each, or None.
            threshold: what counts as found, from 0 to 1; None: as the head has it.
            head: which head answers, where there are several.
            rows_at_once: most sequences of text in one forward; fewer need less memory.
            **options: of the head's `results`.

        Returns:
            What the head's `results` make: of the referring head a Prediction with N masks. A
            list of them for a list of pictures.

        Raises:
            RuntimeError: the model has no processor.
            TypeError: an option that the head does not have.
            ValueError: a threshold that cannot be, an empty sentence, a broken picture, or not as
                many texts as pictures.
        """
        name = self.head_name(head)
        if threshold is not None:
            if not 0 <= threshold <= 1:
                raise ValueError(f"threshold lies between 0 and 1, got {threshold}")
            options["threshold"] = threshold
        several = isinstance(image, (list, tuple))
        images: Any = image if several else [image]
        asked = joined(text, images) if several else [text]
        results = [
            predict_one(self, name, picture, words, rows_at_once, options)
            for picture, words in zip(images, asked, strict=True)
        ]
        return results if several else results[0]

    def head_name(self, head: str | None = None) -> str:
        """Return the name of the head that answers: the given one, or the only one.

        Raises:
            RuntimeError: there is no head.
            ValueError: there are several and none is given, or there is none of that name.
        """
        names = list(self.heads)
        if not names:
            raise RuntimeError("this model has no head to predict with")
        if head is None and len(names) > 1:
            raise ValueError(f"several heads could answer; pass head= one of {names}")
        if head is not None and head not in names:
            raise ValueError(f"there is no head {head!r}; the heads are {names}")
        return head or names[0]
