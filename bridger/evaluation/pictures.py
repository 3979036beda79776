"""What all evaluations share: pictures in batches, each process's share, what a head answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from bridger.answering import answer
from bridger.class_phrases import ClassName, name_key
from bridger.data.labelled import LabelledDataset, LabelledPicture
from bridger.evaluation.ranks import gather, rank_and_world
from bridger.freezing import in_eval_mode
from bridger.heads import HeadOutput
from bridger.model import BridgedModel
from bridger.processing import Placement, Processor
from bridger.texts import Texts

Report = Callable[[int, int, float], None]
"""Called with how much is judged, of how much, and the headline so far, nan where it takes all."""

BatchT = TypeVar("BatchT")
CaseT = TypeVar("CaseT")
FoundT = TypeVar("FoundT")
PictureT = TypeVar("PictureT", bound=LabelledPicture)

Count = Callable[[Sequence[PictureT], HeadOutput, list[Placement], Texts], list[CaseT]]
"""Turns what a head answered about some pictures into a case for each of them."""


def judge_batches(
    model: BridgedModel,
    batches: Sequence[BatchT],
    judge: Callable[[BatchT], FoundT],
    size: Callable[[BatchT], int],
    so_far: Callable[[FoundT], float],
    report: Report | None,
) -> list[FoundT]:
    """Judge this process's share of the batches in eval mode, and gather everybody's.

    Args:
        model: its modules' modes are restored at the end.
        batches: the same in every process.
        judge: computes a batch.
        size: how many cases a batch has.
        so_far: is shown what came out of each batch, and returns the headline so far.
        report: called after every batch, by every process as often as by the others.

    Returns:
        What came out of each batch, in their order, the same in every process.
    """
    rank, world = rank_and_world()
    total = sum(map(size, batches[rank::world]))
    mine, done, headline = [], 0, 0.0
    with in_eval_mode(model), torch.no_grad():
        for start in range(0, len(batches), world):
            number = start + rank
            # Where parameters are sharded, every forward needs all processes: those for whom no
            # batch is left in the last round repeat one, which does not count.
            batch = batches[min(number, len(batches) - 1)]
            found = judge(batch)
            if number < len(batches):
                mine.append((number, found))
                done += size(batch)
                headline = so_far(found)
            if report is not None:
                report(done, total, headline)
    return [found for _, found in sorted(gather(mine), key=lambda numbered: numbered[0])]


def judge_pictures(
    model: BridgedModel,
    data: LabelledDataset[PictureT],
    head: str,
    count: Count[PictureT, CaseT],
    so_far: Callable[[Sequence[CaseT]], float],
    batch_size: int,
    report: Report | None,
) -> list[CaseT]:
    """Ask a head about all classes of a data set, for every picture.

    Args:
        model: the model, with its processor.
        data: the split.
        head: name of the head that answers.
        count: makes the cases of a batch.
        so_far: as of `judge_batches`.
        batch_size: pictures that are computed together.
        report: called after every batch with how many pictures of this process's share are done.

    Returns:
        The cases in the order of the data set.

    Raises:
        RuntimeError: the model has no processor.
        FileNotFoundError: pictures are missing; nothing was computed yet.
        ValueError: a batch size that cannot be, or a split without pictures.
    """
    processor = processor_for(model, batch_size)
    if not len(data):
        raise ValueError(f"{data!r} has no picture to judge")
    data.require_pictures()
    texts = model.heads[head].texts(processor, asked_of(model.heads[head], data))

    def judge(batch: range) -> list[CaseT]:
        pictures = [data[index] for index in batch]
        pixels, placements = processor.images([picture.picture for picture in pictures])
        return count(pictures, answer(model, head, pixels, texts), placements, texts)

    starts = range(0, len(data), batch_size)
    batches = [range(at, min(at + batch_size, len(data))) for at in starts]
    judged = judge_batches(model, batches, judge, len, so_far, report)
    return [case for cases in judged for case in cases]


def asked_of(head: Any, data: LabelledDataset[Any]) -> Sequence[ClassName] | None:
    """Return the classes that a head is asked about: the data set's, or its own fixed list."""
    return None if head.fixed_classes else data.classes


def places_of(texts: Texts, data: LabelledDataset[Any]) -> npt.NDArray[np.int64]:
    """Return the number in the data set of every class that was asked, -1 where it has none.

    They are the same unless the head has a fixed list: of the data set's classes those that it
    lacks are never found, and what it finds of others is nothing that the data set knows.
    """
    numbers = {name_key(entry): number for number, entry in enumerate(data.classes)}
    return np.array([numbers.get(name_key(name), -1) for name in texts.names], dtype=np.int64)


def processor_for(model: BridgedModel, batch_size: int) -> Processor:
    """Return the model's processor.

    Raises:
        RuntimeError: it has none.
        ValueError: a batch size that cannot be.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if model.processor is None:
        raise RuntimeError("evaluating needs the model's processor; set model.processor")
    return model.processor


def head_for(model: BridgedModel, asked: str | None, kind: type[Any], purpose: str) -> str:
    """Return the name of the head that answers.

    Args:
        model: the model.
        asked: name of the head; None: the only one.
        kind: class of the heads that the task is for.
        purpose: what those are trained to do.

    Raises:
        ValueError: there is no such head, or it is of another task.
    """
    name = model.head_name(asked)
    head = model.heads[name]
    if not isinstance(head, kind):
        raise ValueError(
            f"head {name!r} is a {head.name} head, which was not trained to {purpose}: name "
            f"another one, or a data set of its own task"
        )
    return name


class MeanSoFar(Generic[CaseT]):
    """The mean score of all cases that it has been shown.

    Args:
        score: of a case.
    """

    def __init__(self, score: Callable[[CaseT], float]) -> None:
        self.score, self.sum, self.count = score, 0.0, 0

    def __call__(self, cases: Sequence[CaseT]) -> float:
        """Add cases, and return the mean."""
        self.sum += math.fsum(map(self.score, cases))
        self.count += len(cases)
        return self.sum / max(self.count, 1)
