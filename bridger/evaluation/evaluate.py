"""Judging a model on a split: every sentence once, masks at the pictures' own size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bridger.data import ReferringDataset
from bridger.evaluation.judge import Batch, Judge
from bridger.evaluation.metrics import EPSILON
from bridger.evaluation.ranks import gather, rank_and_world
from bridger.evaluation.result import Case, Evaluation
from bridger.freezing import in_eval_mode
from bridger.heads import ReferringSegmentationHead
from bridger.model import BridgedModel

Report = Callable[[int, int, float], None]

THRESHOLDS = tuple(step / 20 for step in range(1, 20))
"""At which masks are counted besides the one that is asked for: 0.05, 0.1 ... 0.95."""


def evaluate(
    model: BridgedModel,
    dataset: ReferringDataset,
    threshold: float = 0.35,
    batch_size: int = 32,
    *,
    first_sentence: bool = False,
    head: str | None = None,
    report: Report | None = None,
) -> Evaluation:
    """Judge a referring segmentation model as in docs/method.md, section 6.

    Probabilities are brought to the picture's own size as in `predict`, and what lies above the
    threshold is compared with the mask. Of heads that score whether an expression means nothing,
    masks are emptied as in `predict`.

    In a distributed run every process calls it, each judges its share of the batches, and all
    return the same: batches are those of one process, so that the result is the same too.

    Args:
        model: the model, with its processor; its modules' modes are restored at the end.
        dataset: the split.
        threshold: probability above which a pixel belongs to the mask.
        batch_size: expressions that are computed together; a picture's stay together.
        first_sentence: take the first sentence of every ref only, as the reference does to choose
            a checkpoint; by default every sentence counts, as in its tests.
        head: which head answers, where there are several.
        report: called after every batch with how many expressions of this process's share are
            done, of how many, and their mean IoU so far; by every process of a distributed run
            as often as by the others.

    Raises:
        RuntimeError: the model has no processor.
        FileNotFoundError: pictures are missing; nothing was computed yet.
        ValueError: an unknown head, a threshold or batch size that cannot be, or a split without
            expressions.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability between 0 and 1, got {threshold}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if model.processor is None:
        raise RuntimeError("evaluating needs the model's processor; set model.processor")
    dataset.require_pictures()
    batches = plan_batches(dataset, batch_size, first_sentence)
    if not batches:
        raise ValueError(f"{dataset!r} has no expression to judge")
    thresholds = (threshold, *(t for t in THRESHOLDS if t != threshold))
    judge = Judge(model, model.processor, _referring_head(model, head), dataset, thresholds)
    with in_eval_mode(model), torch.no_grad():
        judged = _run(judge, batches, report)
    judged = sorted(gather(judged), key=lambda batch: batch.number)
    cases = sorted(
        (case for batch in judged for case in batch.cases), key=lambda c: (c.index, c.order)
    )
    return Evaluation(
        name=dataset.name,
        split=dataset.split,
        sentences="first" if first_sentence else "every",
        cases=tuple(cases),
        thresholds=thresholds,
        threshold=threshold,
        generalized=any(case.objects != 1 for case in cases),
        loss=math.fsum(batch.loss * len(batch.cases) for batch in judged) / len(cases),
    )


def plan_batches(dataset: ReferringDataset, batch_size: int, first_sentence: bool) -> list[Batch]:
    """Group a split's pictures into batches of as many expressions each, so that none is padded.

    Returns:
        The batches, those of pictures with few expressions first.
    """
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
    return batches


def _referring_head(model: BridgedModel, asked: str | None) -> ReferringSegmentationHead:
    name = model.head_name(asked)
    head = model.heads[name]
    if not isinstance(head, ReferringSegmentationHead):
        raise ValueError(
            f"head {name!r} is a {head.name} head, which was not trained to segment what "
            f"sentences mean: name another one, or a data set of its own task"
        )
    return head


@dataclass(frozen=True)
class _Judged:
    """What came out of one batch."""

    number: int
    cases: list[Case]
    loss: float  # the mean


def _run(judge: Judge, batches: list[Batch], report: Report | None) -> list[_Judged]:
    """Judge this process's share: every batch whose number leaves its rank as the remainder."""
    rank, world = rank_and_world()
    total = sum(len(pairs) for batch in batches[rank::world] for pairs in batch)
    judged, done, ious = [], 0, 0.0
    for start in range(0, len(batches), world):
        number = start + rank
        # Where parameters are sharded, every forward needs all processes: those for whom no batch
        # is left in the last round repeat one, which does not count.
        cases, loss = judge(batches[min(number, len(batches) - 1)])
        if number < len(batches):
            judged.append(_Judged(number, cases, loss))
            done += len(cases)
            for case in cases:
                both, predicted = case.intersections[0], case.predicted[0]
                ious += both / (predicted + case.area - both + EPSILON)
        if report is not None:
            report(done, total, ious / max(done, 1))
    return judged
