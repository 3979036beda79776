"""Judging a model on a split: every sentence once, masks at the pictures' own size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from einops import rearrange

from bridger.data import ReferringDataset, Sample
from bridger.evaluation.metrics import SegmentationMetrics
from bridger.model import BridgedModel

Report = Callable[[int, int], None]


def evaluate(
    model: BridgedModel,
    dataset: ReferringDataset,
    threshold: float = 0.35,
    batch_size: int = 32,
    *,
    first_sentence: bool = False,
    head: str | None = None,
    report: Report | None = None,
) -> dict[str, float]:
    """Judge a referring segmentation model as in docs/method.md, section 6.

    Probabilities are brought to the picture's own size as in `predict`, and what lies above the
    threshold is compared with the mask.

    Args:
        model: the model, with its processor; its mode is restored at the end.
        dataset: the split.
        threshold: probability above which a pixel belongs to the mask.
        batch_size: expressions that are computed together.
        first_sentence: take the first sentence of every ref only, as is usual for choosing a
            checkpoint; by default every sentence counts.
        head: which head answers, where there are several.
        report: called with how many expressions are done, of how many.

    Returns:
        mIoU, oIoU and P@0.5 ... P@0.9, from 0 to 1, by name, and "loss", the mean loss of
        the expressions at the model's input size.

    Raises:
        RuntimeError: the model has no processor.
        ValueError: an unknown head, or a threshold or batch size that cannot be.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability between 0 and 1, got {threshold}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    metrics, losses = SegmentationMetrics(), 0.0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            batches = _Batches(dataset, batch_size, first_sentence)
            for batch in batches:
                losses += _judge(model, batch, threshold, head, metrics)
                if report is not None:
                    report(len(metrics), batches.total)
    finally:
        model.train(was_training)
    return {**metrics.compute(), "loss": losses / len(metrics)}


class _Batches:
    """Pictures with as many expressions each, so that nothing is padded."""

    def __init__(self, dataset: ReferringDataset, batch_size: int, first_sentence: bool) -> None:
        self.dataset, self.batch_size, self.first = dataset, batch_size, first_sentence
        pairs = [(i, j) for i, j in dataset.expressions() if j == 0 or not first_sentence]
        self.total = len(pairs)
        counts = [0] * len(dataset)
        for index, _ in pairs:
            counts[index] += 1
        self._of_size: dict[int, list[list[int]]] = {}
        for refs in dataset.pictures():
            self._of_size.setdefault(sum(counts[ref] for ref in refs), []).append(refs)

    def __iter__(self) -> Iterator[list[list[tuple[Sample, str]]]]:
        for count, pictures in sorted(self._of_size.items()):
            together = max(1, self.batch_size // count)
            for start in range(0, len(pictures), together):
                yield [self._pairs(refs) for refs in pictures[start : start + together]]

    def _pairs(self, refs: list[int]) -> list[tuple[Sample, str]]:
        samples = [self.dataset[ref] for ref in refs]
        return [
            (sample, sentence)
            for sample in samples
            for sentence in (sample.sentences[:1] if self.first else sample.sentences)
        ]


def _judge(
    model: BridgedModel,
    batch: list[list[tuple[Sample, str]]],
    threshold: float,
    head: str | None,
    metrics: SegmentationMetrics,
) -> float:
    """Count a batch's expressions; return the sum of their losses."""
    processor = model.processor
    if processor is None:
        raise RuntimeError("evaluating needs the model's processor; set model.processor")
    name = model.head_name(head)
    device = next(model.parameters()).device
    pixels, placements = processor.images([pairs[0][0].image_path for pairs in batch])
    targets = torch.stack(
        [
            torch.stack([processor.target(sample.mask, placement) for sample, _ in pairs])
            for pairs, placement in zip(batch, placements, strict=True)
        ]
    )
    words = processor.text([sentence for pairs in batch for _, sentence in pairs])
    ids, mask = (
        rearrange(words[key], "(b n) l -> b n l", b=len(batch)).to(device)
        for key in ("input_ids", "attention_mask")
    )
    features = model.encode(pixels.to(device), ids, mask)
    output = model.heads[name](features, targets.to(device))
    probabilities = model.heads[name].probabilities(output.logits).float().cpu()
    for pairs, placement, rows in zip(batch, placements, probabilities, strict=True):
        restored = processor.restore(rows, placement)
        for (sample, _), own in zip(pairs, restored, strict=True):
            metrics.update(own > threshold, sample.mask > 0)
    return float(output.loss) * sum(map(len, batch))
