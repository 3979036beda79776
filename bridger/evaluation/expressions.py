"""What the evaluations of expressions share: batches of pictures with as many expressions each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from einops import rearrange

from bridger.data import ReferringDataset, Sample
from bridger.data.masks import Mask
from bridger.processing import Placement, Processor

if TYPE_CHECKING:
    from bridger.features import BridgedFeatures
    from bridger.model import BridgedModel

Batch: TypeAlias = list[list[tuple[int, int]]]
"""Pictures of expressions: (index of the ref, index of the sentence)."""


@dataclass(frozen=True)
class ExpressionCase:
    """One expression, and what it is of.

    Attributes:
        index: of the ref in its data set.
        order: which of the ref's sentences it is, from 0.
        image: file of the picture.
        picture: what tells the picture from others, `ReferringDataset.picture_keys`.
        ref_id: of the ref in its data set.
        sent_id: of the sentence.
        sentence: the expression.
        kind: what sort of expression it is, "" where unknown.
        source: name of the data set.
        objects: how many annotated objects it means.
        size: (h, w) of the picture.
    """

    index: int
    order: int
    image: str
    picture: str
    ref_id: int
    sent_id: int
    sentence: str
    kind: str
    source: str
    objects: int
    size: tuple[int, int]

    def about(self) -> dict[str, Any]:
        """Return what it is, as rows of files say it."""
        return {
            "image": self.image,
            "ref_id": self.ref_id,
            "sent_id": self.sent_id,
            "sentence": self.sentence,
            "kind": self.kind,
            "source": self.source,
            "objects": self.objects,
            "height": self.size[0],
            "width": self.size[1],
        }


@dataclass(frozen=True)
class Picture:
    """A picture's expressions, with what they refer to by the index of the ref.

    Attributes:
        pairs: (index of the ref, index of the sentence) of each.
        key: what tells the picture from others.
        samples: the refs.
        masks: what they mean.
    """

    pairs: list[tuple[int, int]]
    key: str
    samples: Mapping[int, Sample]
    masks: Mapping[int, Mask]

    @classmethod
    def read(cls, dataset: ReferringDataset, pairs: list[tuple[int, int]], key: str) -> Picture:
        """Read the refs of a picture and their masks."""
        samples = {index: dataset[index] for index, _ in pairs}
        return cls(pairs, key, samples, {index: each.mask for index, each in samples.items()})

    @property
    def path(self) -> Path:
        """The picture's file."""
        return self.samples[self.pairs[0][0]].image_path

    @property
    def sentences(self) -> list[str]:
        """The expressions."""
        return [self.samples[index].sentences[order] for index, order in self.pairs]

    def cases(self, size: tuple[int, int]) -> Iterator[tuple[dict[str, Any], Mask]]:
        """Yield what `ExpressionCase` says of each expression, and the mask that it means.

        Args:
            size: (h, w) of the picture.
        """
        for index, order in self.pairs:
            sample = self.samples[index]
            about = {
                "index": index,
                "order": order,
                "image": str(sample.image_path),
                "picture": self.key,
                "ref_id": sample.ref_id,
                "sent_id": sample.sent_ids[order],
                "sentence": sample.sentences[order],
                "kind": sample.kinds[order],
                "source": sample.source,
                "objects": len(sample.ann_ids),
                "size": size,
            }
            yield about, self.masks[index]


def plan_batches(dataset: ReferringDataset, batch_size: int, first_sentence: bool) -> list[Batch]:
    """Group a split's pictures into batches of as many expressions each, so that none is padded.

    Returns:
        The batches, those of pictures with few expressions first.

    Raises:
        FileNotFoundError: pictures are missing.
        ValueError: there is no expression.
    """
    dataset.require_pictures()
    counts = dataset.sentence_counts()
    most = 1 if first_sentence else max(counts, default=0)
    of_length: dict[int, Batch] = {}
    for refs in dataset.pictures():
        pairs = [(i, j) for i in refs for j in range(min(counts[i], most))]
        if pairs:
            of_length.setdefault(len(pairs), []).append(pairs)
    batches = []
    for length, pictures in sorted(of_length.items()):
        together = max(1, batch_size // length)
        batches += [pictures[at : at + together] for at in range(0, len(pictures), together)]
    if not batches:
        raise ValueError(f"{dataset!r} has no expression to judge")
    return batches


def count_expressions(batch: Batch) -> int:
    """Return how many expressions a batch holds."""
    return sum(map(len, batch))


def encode(
    model: BridgedModel, processor: Processor, pictures: Sequence[Picture]
) -> tuple[BridgedFeatures, list[Placement]]:
    """Return the bridged features of pictures with as many expressions each, and placements."""
    pixels, placements = processor.images([picture.path for picture in pictures])
    words = processor.text([text for picture in pictures for text in picture.sentences])
    device = next(model.parameters()).device
    ids, mask = (
        rearrange(words[key], "(b n) l -> b n l", b=len(pictures)).to(device)
        for key in ("input_ids", "attention_mask")
    )
    return model.encode(pixels.to(device), ids, mask), placements
