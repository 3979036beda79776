"""Judging a model on a split: every sentence once, masks at the pictures' own size."""

from __future__ import annotations

import math
from typing import cast

from bridger.data import ReferringDataset
from bridger.evaluation.expressions import count_expressions, plan_batches
from bridger.evaluation.judge import Judge
from bridger.evaluation.metrics import EPSILON
from bridger.evaluation.pictures import (
    MeanSoFar,
    Report,
    head_for,
    judge_batches,
    processor_for,
)
from bridger.evaluation.result import Case, Evaluation
from bridger.heads.masks import MaskHead
from bridger.model import BridgedModel

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
    processor = processor_for(model, batch_size)
    name = head_for(model, head, MaskHead, "segment what sentences mean")
    batches = plan_batches(dataset, batch_size, first_sentence)
    thresholds = (threshold, *(t for t in THRESHOLDS if t != threshold))
    judge = Judge(model, processor, cast(MaskHead, model.heads[name]), dataset, thresholds)
    so_far = MeanSoFar(_iou)
    judged = judge_batches(
        model, batches, judge, count_expressions, lambda found: so_far(found[0]), report
    )
    cases = sorted((case for own, _ in judged for case in own), key=lambda c: (c.index, c.order))
    return Evaluation(
        name=dataset.name,
        split=dataset.split,
        sentences="first" if first_sentence else "every",
        cases=tuple(cases),
        thresholds=thresholds,
        threshold=threshold,
        generalized=any(case.objects != 1 for case in cases),
        loss=math.fsum(loss * len(own) for own, loss in judged) / len(cases),
    )


def _iou(case: Case) -> float:
    both, predicted = case.intersections[0], case.predicted[0]
    return both / (predicted + case.area - both + EPSILON)
