"""Samples to batches: what a DataLoader's `collate_fn` does.

Shapes: B batch, N expressions per image, L tokens, H W the processor's image size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor

from bridger.data.base import Sample, draw
from bridger.processing import Placement, Processor

CACHE_BYTES = 2 * 2**30
_AUTOMATIC = -1


class Pictured(Protocol):
    """Something that has a picture.

    Attributes:
        image_path: file of the picture.
    """

    @property
    def image_path(self) -> Path:
        """File of the picture."""

    @property
    def picture(self) -> Path:
        """The same, once it is sure that the file is there."""


class Fitted:
    """Pictures, and what is true of them, fitted into the model's input and kept as small types.

    Args:
        processor: fits them.
        cache_bytes: how much is kept at most; what comes later is fitted anew every time.
    """

    def __init__(self, processor: Processor, cache_bytes: int) -> None:
        self.processor = processor
        self.free = cache_bytes
        self._pictures: dict[str, tuple[Tensor, Placement]] = {}
        self._kept: dict[Hashable, Tensor] = {}

    def picture(self, sample: Pictured) -> tuple[Tensor, Placement]:
        """Return a picture (3, H, W) as bytes, and where it lies."""
        key = str(sample.image_path)
        found = self._pictures.get(key)
        if found is None:
            found = self.processor.fit(sample.picture)
            if self._has_room(found[0]):
                self._pictures[key] = found
        return found

    def kept(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return what was kept under a key, made the first time."""
        found = self._kept.get(key)
        if found is None:
            found = make()
            if self._has_room(found):
                self._kept[key] = found
        return found

    def mask(self, sample: Sample, placement: Placement) -> Tensor:
        """Return a ref's mask (H, W) as bytes."""

        def fit() -> Tensor:
            # Targets come in steps of 1/255, so that bytes hold them exactly.
            soft = self.processor.target(sample.mask, placement)
            return soft.mul(255).round_().to(torch.uint8)

        return self.kept(sample.key, fit)

    def together(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """Return picture (3, H, W) and masks (N, H, W) of refs of one picture, changed alike."""
        picture, placement = self.picture(samples[0])
        masks = torch.stack([self.mask(sample, placement) for sample in samples])
        transform = samples[0].transform
        return (picture, masks) if transform is None else transform(picture, masks)

    def _has_room(self, tensor: Tensor) -> bool:
        if self.free < tensor.nbytes:
            return False
        self.free -= tensor.nbytes
        return True


class _Collator:
    """What both collators share: the processor, the cache and the draw of sentences."""

    def __init__(self, processor: Processor, seed: int, cache: bool | int) -> None:
        self.processor, self.seed = processor, seed
        self._fitted = Fitted(processor, CACHE_BYTES if cache is True else int(cache))
        # In shared memory, so that a DataLoader's running workers see it change.
        self._epoch = torch.full((), _AUTOMATIC).share_memory_()  # type: ignore[no-untyped-call]
        self._visits: Counter[tuple[Any, ...]] = Counter()

    @property
    def epoch(self) -> int | None:
        """The epoch that sentences are drawn for, or None: each ref counts its own visits."""
        epoch = int(self._epoch)
        return None if epoch == _AUTOMATIC else epoch

    def set_epoch(self, epoch: int) -> None:
        """Fix the epoch, so that the draws can be repeated when a run is resumed.

        Raises:
            ValueError: a negative number.
        """
        if epoch < 0:
            raise ValueError(f"epochs count from 0, got {epoch}")
        self._epoch.fill_(epoch)

    def _next_epoch(self, sample: Sample) -> int:
        """The epoch to draw this ref's sentences for."""
        if (epoch := self.epoch) is not None:
            return epoch
        # Of several data sets, refs may have the same id.
        self._visits[sample.key] += 1
        return self._visits[sample.key] - 1


class RefCollator(_Collator):
    """Batches with one expression per image: one of each ref's sentences, another every epoch.

    The draw depends on (seed, epoch, the ref's id) alone, as `ReferringDataset.sentence_of`'s.
    Until `set_epoch` is called, a ref's own visits count as its epochs. Where samples bring a
    `transform`, it is applied to what is kept, which stays as it is.

    Args:
        processor: turns pictures and words into tensors.
        seed: of the draws.
        draw_sentences: draw for training; otherwise each ref's first sentence, for validation.
        cache: keep fitted pictures and masks in memory: True for up to 2 GiB, a number of bytes,
            or False. Every worker of a DataLoader keeps its own.
    """

    def __init__(
        self,
        processor: Processor,
        seed: int = 0,
        *,
        draw_sentences: bool = True,
        cache: bool | int = True,
    ) -> None:
        super().__init__(processor, seed, cache)
        self.draw_sentences = draw_sentences

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Collate B refs.

        Returns:
            pixel_values (B, 3, H, W), input_ids (B, L), attention_mask (B, L) and labels
            (B, H, W), soft from 0 to 1.
        """
        pictures, masks = zip(*(self._fitted.together([sample]) for sample in samples), strict=True)
        return {
            "pixel_values": self.processor.normalize(torch.stack(pictures)),
            **self.processor.text([self.sentence(sample) for sample in samples]),
            "labels": torch.cat(masks).float().div_(255),
        }

    def sentence(self, sample: Sample) -> str:
        """Choose the sentence of a sample; a draw counts as a visit.

        Args:
            sample: of the data set.
        """
        if not self.draw_sentences:
            return sample.sentences[0]
        epoch = self._next_epoch(sample)
        return sample.sentences[draw(len(sample.sentences), sample.ref_id, epoch, self.seed)]


class RaggedRefCollator(_Collator):
    """Batches with N expressions per image, N that of the image with the most.

    An image is one ref with all of its sentences, or a list of refs of the same picture. Short
    rows are filled by repeating their last expression, where `expression_mask` is false and the
    labels are zero. A `transform` is applied as by `RefCollator`; the refs of an item share one.

    Args:
        processor: turns pictures and words into tensors.
        seed: of the draws, where there are more sentences than `most`.
        most: most expressions of an image; of more, so many are drawn anew every epoch.
        cache: as for `RefCollator`.

    Raises:
        ValueError: `most` is less than one.
    """

    def __init__(
        self,
        processor: Processor,
        seed: int = 0,
        *,
        most: int | None = None,
        cache: bool | int = True,
    ) -> None:
        super().__init__(processor, seed, cache)
        if most is not None and most < 1:
            raise ValueError(f"most counts the expressions of an image, at least 1; got {most}")
        self.most = most

    def __call__(self, items: Sequence[Sample | Sequence[Sample]]) -> dict[str, Tensor]:
        """Collate B images.

        Returns:
            pixel_values (B, 3, H, W), input_ids (B, N, L), attention_mask (B, N, L),
            expression_mask (B, N) bool and labels (B, N, H, W), soft from 0 to 1.

        Raises:
            ValueError: refs of different pictures or with different transforms in one item, or
                none.
        """
        groups = [[item] if isinstance(item, Sample) else list(item) for item in items]
        for group in groups:
            if len({sample.image_path for sample in group}) != 1:
                raise ValueError(
                    f"an item is one ref or several refs of one picture, got the pictures "
                    f"{sorted({str(sample.image_path) for sample in group})}"
                )
            if len({sample.transform for sample in group}) != 1:
                raise ValueError("the refs of an item share their picture, so its transform too")
        chosen = [self._choose(group) for group in groups]
        longest = max(map(len, chosen))
        counts = torch.tensor([len(pairs) for pairs in chosen])
        # Real texts fill up the rows: a text tower has no answer for an empty one.
        texts = [pairs[min(j, len(pairs) - 1)][1] for pairs in chosen for j in range(longest)]
        words = {
            name: rearrange(ids, "(b n) l -> b n l", n=longest)
            for name, ids in self.processor.text(texts).items()
        }
        pictures, labels = self._fit([[sample for sample, _ in pairs] for pairs in chosen], longest)
        return {
            "pixel_values": self.processor.normalize(torch.stack(pictures)),
            **words,
            "expression_mask": torch.arange(longest) < counts[:, None],
            "labels": labels,
        }

    def _fit(self, groups: Sequence[Sequence[Sample]], longest: int) -> tuple[list[Tensor], Any]:
        """Return the pictures (3, H, W) of B images, and the labels of their expressions.

        Args:
            groups: for each image the ref that each of its expressions is about.
            longest: N.
        """
        labels = torch.zeros(len(groups), longest, *self.processor.image_size)
        pictures = []
        for row, group in zip(labels, groups, strict=True):
            picture, masks = self._fitted.together(group)
            pictures.append(picture)
            row[: len(group)] = masks.float().div_(255)
        return pictures, labels

    def _choose(self, group: Sequence[Sample]) -> list[tuple[Sample, str]]:
        """All pairs of an object and a sentence, or `most` of them in their order."""
        pairs = [(sample, sentence) for sample in group for sentence in sample.sentences]
        if self.most is None or len(pairs) <= self.most:
            return pairs
        ref_id, epoch = group[0].ref_id, self._next_epoch(group[0])
        left: list[Any] = list(enumerate(pairs))
        taken = [left.pop(draw(len(left), ref_id, epoch, self.seed + i)) for i in range(self.most)]
        return [pair for _, pair in sorted(taken, key=lambda numbered: numbered[0])]
