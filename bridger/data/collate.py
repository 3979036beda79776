"""Samples to batches: what a DataLoader's `collate_fn` does.

Shapes: B batch, N expressions per image, L tokens, H W the processor's image size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from bridger.data.base import Sample, draw
from bridger.processing import Placement, Processor

CACHE_BYTES = 2 * 2**30
_AUTOMATIC = -1


class _Fitted:
    """Pictures and masks fitted into the model's input, kept as bytes.

    Args:
        processor: fits them.
        cache_bytes: how much is kept at most; what comes later is fitted anew every time.
    """

    def __init__(self, processor: Processor, cache_bytes: int) -> None:
        self.processor = processor
        self.free = cache_bytes
        self._pictures: dict[str, tuple[Tensor, Placement]] = {}
        self._masks: dict[tuple[Any, ...], Tensor] = {}

    def picture(self, sample: Sample) -> tuple[Tensor, Placement]:
        key = str(sample.image_path)
        found = self._pictures.get(key)
        if found is None:
            found = self.processor.fit(sample.picture)
            if self._has_room(found[0]):
                self._pictures[key] = found
        return found

    def mask(self, sample: Sample, placement: Placement) -> Tensor:
        found = self._masks.get(sample.key)
        if found is None:
            # Targets come in steps of 1/255, so that bytes hold them exactly.
            soft = self.processor.target(sample.mask, placement)
            found = soft.mul(255).round_().to(torch.uint8)
            if self._has_room(found):
                self._masks[sample.key] = found
        return found

    def together(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """The picture (3, H, W) and masks (N, H, W) of refs of one picture, transformed alike."""
        picture, placement = self.picture(samples[0])
        masks = torch.stack([self.mask(sample, placement) for sample in samples])
        transform = samples[0].transform
        return (picture, masks) if transform is None else transform(picture, masks)

    def _has_room(self, tensor: Tensor) -> bool:
        if self.free < tensor.numel():
            return False
        self.free -= tensor.numel()
        return True


class _Collator:
    """What both collators share: the processor, the cache and the draw of sentences."""

    def __init__(self, processor: Processor, seed: int, cache: bool | int) -> None:
        self.processor, self.seed = processor, seed
        self._fitted = _Fitted(processor, CACHE_BYTES if cache is True else int(cache))
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
        """Choose the sentence of a sample; a draw counts as a visit."""
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
        height, width = self.processor.image_size
        labels = torch.zeros(len(groups), longest, height, width)
        mask = torch.zeros(len(groups), longest, dtype=torch.bool)
        pictures = []
        for i, pairs in enumerate(chosen):
            picture, masks = self._fitted.together([sample for sample, _ in pairs])
            pictures.append(picture)
            mask[i, : len(pairs)] = True
            labels[i, : len(pairs)] = masks.float().div_(255)
        # Real texts fill up the rows: a text tower has no answer for an empty one.
        texts = [pairs[min(j, len(pairs) - 1)][1] for pairs in chosen for j in range(longest)]
        words = {
            name: rearrange(ids, "(b n) l -> b n l", n=longest)
            for name, ids in self.processor.text(texts).items()
        }
        pixels = self.processor.normalize(torch.stack(pictures))
        return {"pixel_values": pixels, **words, "expression_mask": mask, "labels": labels}

    def _choose(self, group: Sequence[Sample]) -> list[tuple[Sample, str]]:
        """All pairs of an object and a sentence, or `most` of them in their order."""
        pairs = [(sample, sentence) for sample in group for sentence in sample.sentences]
        if self.most is None or len(pairs) <= self.most:
            return pairs
        ref_id, epoch = group[0].ref_id, self._next_epoch(group[0])
        left: list[Any] = list(enumerate(pairs))
        taken = [left.pop(draw(len(left), ref_id, epoch, self.seed + i)) for i in range(self.most)]
        return [pair for _, pair in sorted(taken, key=lambda numbered: numbered[0])]
