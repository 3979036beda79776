"""Judging referring comprehension: one box for every sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from bridger.data import ReferringDataset
from bridger.evaluation.bootstrap import percentile_intervals
from bridger.evaluation.expressions import (
    Batch,
    ExpressionCase,
    Picture,
    count_expressions,
    encode,
    plan_batches,
)
from bridger.evaluation.labelled import Intervals
from bridger.evaluation.metrics import Floats, Ratio, values_of
from bridger.evaluation.pictures import (
    MeanSoFar,
    Report,
    head_for,
    judge_batches,
    processor_for,
)
from bridger.heads import ComprehensionHead
from bridger.model import BridgedModel
from bridger.predictions.masks import box_of
from bridger.texts import Texts

Box = tuple[float, float, float, float]

LEAST_IOU = 0.5


@dataclass(frozen=True)
class ComprehensionCase(ExpressionCase):
    """One expression, judged by its box.

    Attributes:
        true: x0 y0 x1 y1 around the true mask in the picture's pixels; zeros where it is empty.
        found: the box that was found.
        score: what the head gives it.
        iou: of both.
    """

    true: Box
    found: Box
    score: float
    iou: float


@dataclass(frozen=True)
class ComprehensionEvaluation:
    """The judged expressions of a split in the order of the data set; figures are from 0 to 1.

    Attributes:
        name: of the data set.
        split: name of the split.
        sentences: whether "every" sentence was judged, or the "first" of each ref.
        cases: the expressions.
    """

    name: str
    split: str
    sentences: Literal["first", "every"]
    cases: tuple[ComprehensionCase, ...]

    def __len__(self) -> int:
        """Return the number of expressions."""
        return len(self.cases)

    @property
    def headline(self) -> str:
        """Name of the metric that is told where only one is."""
        return "Acc@0.5"

    @property
    def ious(self) -> Floats:
        """IoU (E,) of every expression's box."""
        return np.array([case.iou for case in self.cases], dtype=np.float64)

    def ratios(self) -> dict[str, Ratio]:
        """Return every figure as a ratio of sums over the expressions."""
        ious = self.ious
        each = np.ones_like(ious)
        return {
            "Acc@0.5": Ratio((ious >= LEAST_IOU).astype(np.float64), each),
            "mean IoU": Ratio(ious, each),
        }

    def metrics(self) -> dict[str, float]:
        """Return "Acc@0.5" and "mean IoU".

        "Acc@0.5": the share of expressions whose box has an IoU of 0.5 or more with the true one,
        as MAttNet and mmdetection count (MDETR's code takes the generalised IoU in its place,
        which is lower for the same boxes). "mean IoU": of boxes. An expression without a true mask
        counts as missed.
        """
        return values_of(self.ratios())

    def figures(self) -> dict[str, float]:
        """Return the metrics, as a Trainer reports them."""
        return self.metrics()

    def bootstrap(self, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Intervals:
        """Return an interval (low, high) for every metric; see `percentile_intervals`.

        Args:
            level: share of resamples that an interval holds.
            resamples: how many are drawn.
            seed: of the draws.
        """
        pictures = np.array([case.picture for case in self.cases])
        return percentile_intervals(self.ratios(), pictures, level, resamples, seed)

    def rows(self) -> list[dict[str, Any]]:
        """Return a record for every expression."""
        return [
            {
                "dataset": self.name,
                "split": self.split,
                **case.about(),
                "true_box": case.true,
                "found_box": case.found,
                "score": case.score,
                "iou": case.iou,
            }
            for case in self.cases
        ]


def evaluate_comprehension(
    model: BridgedModel,
    data: ReferringDataset,
    head: str | None = None,
    batch_size: int = 32,
    *,
    first_sentence: bool = False,
    report: Report | None = None,
) -> ComprehensionEvaluation:
    """Judge a head for referring comprehension, every sentence once.

    The box that `predict` finds for a sentence is compared with the box around the true mask, in
    the picture's own pixels. Several processes share the work as in `bridger.evaluation.evaluate`.

    Args:
        model: the model, with its processor; its modules' modes are restored at the end.
        data: the split.
        head: which head answers, where there are several.
        batch_size: expressions that are computed together; a picture's stay together.
        first_sentence: take the first sentence of every ref only.
        report: called after every batch with how many expressions of this process's share are
            done, of how many, and their accuracy so far.

    Raises:
        RuntimeError: the model has no processor.
        FileNotFoundError: pictures are missing; nothing was computed yet.
        ValueError: an unknown head or one of another task, or a split without expressions.
    """
    processor = processor_for(model, batch_size)
    name = head_for(model, head, ComprehensionHead, "find the box of what sentences mean")
    chosen: Any = model.heads[name]
    keys = data.picture_keys()

    def judge(batch: Batch) -> list[ComprehensionCase]:
        pictures = [Picture.read(data, pairs, keys[pairs[0][0]]) for pairs in batch]
        features, placements = encode(model, processor, pictures)
        # Of several pictures each has sentences of its own; here their boxes alone are looked at.
        texts = Texts.of_sentences(processor, pictures[0].sentences)
        results = chosen.results(chosen(features), processor, placements, texts)
        return [
            ComprehensionCase(**about, **compare(box_of(mask > 0), *found))
            for picture, placement, result in zip(pictures, placements, results, strict=True)
            for (about, mask), *found in zip(
                picture.cases(placement.size), result.boxes, result.scores, strict=True
            )
        ]

    so_far: MeanSoFar[ComprehensionCase] = MeanSoFar(lambda case: case.iou >= LEAST_IOU)
    batches = plan_batches(data, batch_size, first_sentence)
    judged = judge_batches(model, batches, judge, count_expressions, so_far, report)
    cases = sorted((case for own in judged for case in own), key=lambda c: (c.index, c.order))
    sentences: Literal["first", "every"] = "first" if first_sentence else "every"
    return ComprehensionEvaluation(data.name, data.split, sentences, tuple(cases))


def compare(true: Sequence[float], found: Any, score: Any) -> dict[str, Any]:
    """Set a box beside the true one; an empty one has nothing in common with any."""
    from torchvision.ops import box_iou

    boxes = (torch.tensor([tuple(map(float, box))], dtype=torch.float64) for box in (true, found))
    iou = float(box_iou(*boxes)[0, 0].nan_to_num())
    both = (tuple(map(float, box)) for box in (true, found))
    return {**dict(zip(("true", "found"), both, strict=True)), "score": float(score), "iou": iou}
