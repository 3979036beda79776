"""Judging detection by COCO's average precision, through pycocotools."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from bridger.data.labelled import BoxedPicture, LabelledDataset
from bridger.evaluation.labelled import LabelledEvaluation, PictureCase, by_name, defined
from bridger.evaluation.metrics import Floats
from bridger.evaluation.pictures import Report, head_for, judge_pictures, places_of
from bridger.heads import DetectionHead, HeadOutput
from bridger.model import BridgedModel
from bridger.processing import Placement, Processor
from bridger.texts import Texts

Box = tuple[float, float, float, float]

AREAS = ("all", "small", "medium", "large")
MAX_DETECTIONS = 100


@dataclass(frozen=True)
class TrueBox:
    """A box of the data set; see `BoxedPicture`."""

    box: Box
    label: int
    crowd: bool
    area: float


@dataclass(frozen=True)
class FoundBox:
    """A box that was found: x0 y0 x1 y1 in the picture's pixels, its class and its score."""

    box: Box
    label: int
    score: float


@dataclass(frozen=True)
class DetectionCase(PictureCase):
    """One picture, judged.

    Attributes:
        size: (h, w) of the picture.
        true: its boxes.
        found: what was found.
    """

    size: tuple[int, int]
    true: tuple[TrueBox, ...]
    found: tuple[FoundBox, ...]


@dataclass(frozen=True)
class DetectionEvaluation(LabelledEvaluation[DetectionCase]):
    """What `evaluate_detection` found; see `LabelledEvaluation`."""

    scored = "mAP"

    @property
    def headline(self) -> str:
        """Name of the metric that is told where only one is."""
        return "mAP"

    @cached_property
    def precision(self) -> Floats:
        """COCO's interpolated precision (T, R, K, A); -1 where a class has no object.

        At T IoUs from 0.5 to 0.95, R recalls from 0 to 1, of K classes, for objects of A `AREAS`.
        """
        return average_precisions(self.cases, range(len(self.classes)))

    def metrics(self) -> dict[str, float]:
        """Return COCO's figures as pycocotools computes them, as far as they are defined.

        "mAP": average precision, the mean over IoU thresholds 0.5, 0.55 ... 0.95 and over the
        classes that have objects; "mAP50" and "mAP75" at one threshold; "mAP small", "mAP
        medium" and "mAP large" of objects below 32^2 pixels, below 96^2 and above; "mAP seen" and
        "mAP unseen" over the classes that the head was trained on, and over the others. At most
        100 boxes of a picture count.
        """
        known, precision = np.array(self.seen, dtype=bool), self.precision
        return defined(
            {
                "mAP": _mean(precision[..., 0]),
                "mAP50": _mean(precision[0, ..., 0]),
                "mAP75": _mean(precision[5, ..., 0]),
                **{f"mAP {area}": _mean(precision[..., AREAS.index(area)]) for area in AREAS[1:]},
                "mAP seen": _mean(precision[:, :, known, 0]),
                "mAP unseen": _mean(precision[:, :, ~known, 0]),
            }
        )

    def per_class(self) -> dict[str, dict[str, float]]:
        """Return "AP" and "AP50" of every class that has objects."""
        places = range(len(self.classes))
        parts = {"AP": self.precision[..., 0], "AP50": self.precision[:1, ..., 0]}
        return by_name(
            self.classes,
            {name: np.array([_mean(own[:, :, k]) for k in places]) for name, own in parts.items()},
        )

    def scores(self) -> Floats:
        """Return each picture's own mAP (E,), over the classes of its objects."""
        return np.array([_of_picture(case) for case in self.cases])

    def rows(self) -> list[dict[str, Any]]:
        """Return the true boxes of every picture, and those that were found."""
        return [
            {
                "dataset": self.name,
                "split": self.split,
                "image": case.image,
                "height": case.size[0],
                "width": case.size[1],
                "true": [
                    {"class": self.classes[t.label], "box": t.box, "crowd": t.crowd, "area": t.area}
                    for t in case.true
                ],
                "found": [
                    {"class": self.classes[f.label], "box": f.box, "score": f.score}
                    for f in case.found
                ],
            }
            for case in self.cases
        ]


def average_precisions(cases: Sequence[DetectionCase], labels: Sequence[int]) -> Floats:
    """Return what pycocotools' COCOeval accumulates: see `DetectionEvaluation.precision`.

    Args:
        cases: the pictures.
        labels: the numbers of the K classes that are judged, in ascending order.
    """
    from pycocotools.cocoeval import COCOeval

    numbered = list(enumerate(cases, 1))  # from 1: pycocotools takes an id of 0 for no match
    images = [{"id": n, "height": case.size[0], "width": case.size[1]} for n, case in numbered]
    categories = [{"id": label, "name": str(label)} for label in labels]
    true = [
        {**_annotation(n, each.box, each.label), "area": each.area, "iscrowd": int(each.crowd)}
        for n, case in numbered
        for each in case.true
    ]
    found = [
        {**_annotation(n, each.box, each.label), "score": each.score}
        for n, case in numbered
        for each in case.found
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(_coco(images, categories, true), _coco(images, categories, found), "bbox")
        judge.evaluate()
        judge.accumulate()
    precision: Floats = judge.eval["precision"][..., judge.params.maxDets.index(MAX_DETECTIONS)]
    return precision


def _of_picture(case: DetectionCase) -> float:
    """Return the mAP of one picture; classes of which it has no object have no part in it."""
    labels = sorted({each.label for each in case.true})  # few, where 1,203 would take seconds
    return _mean(average_precisions([case], labels)[..., 0]) if labels else math.nan


def _annotation(image: int, box: Box, label: int) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    return {
        "image_id": image,
        "category_id": label,
        "bbox": [x0, y0, width, height],
        "area": width * height,
        "iscrowd": 0,
    }


def _coco(images: Sequence[Any], categories: Sequence[Any], annotations: Sequence[Any]) -> Any:
    from pycocotools.coco import COCO

    coco = COCO()
    numbered = [{**each, "id": n} for n, each in enumerate(annotations, 1)]
    coco.dataset = {"images": images, "categories": categories, "annotations": numbered}
    coco.createIndex()
    return coco


def _mean(precision: Floats) -> float:
    """Return the mean of what is defined, as COCOeval.summarize does; nan where nothing is."""
    known = precision[precision > -1]
    return float(np.mean(known)) if known.size else math.nan


def evaluate_detection(
    model: BridgedModel,
    data: LabelledDataset[BoxedPicture],
    head: str | None = None,
    batch_size: int = 8,
    report: Report | None = None,
) -> DetectionEvaluation:
    """Judge a detection head by COCO's average precision, over all classes at once.

    Boxes are those of `predict` at threshold 0 with `agnostic=False`, at most 100 a picture, in its
    own pixels. Several processes
    share the pictures as in `bridger.evaluation.evaluate`.

    Args:
        model: the model, with its processor; its modules' modes are restored at the end.
        data: the split; the head is asked about all of its classes, or about its own fixed list.
        head: which head answers, where there are several.
        batch_size: pictures that are computed together.
        report: called after every batch with how many pictures of this process's share are done,
            of how many, and nan, since precision takes all of them.

    Raises:
        RuntimeError: the model has no processor.
        FileNotFoundError: pictures are missing; nothing was computed yet.
        ValueError: an unknown head or one of another task, or a split without pictures.
    """
    name = head_for(model, head, DetectionHead, "find objects of classes")
    chosen: Any = model.heads[name]

    def count(
        pictures: Sequence[BoxedPicture],
        output: HeadOutput,
        placements: list[Placement],
        texts: Texts,
    ) -> list[DetectionCase]:
        processor = cast(Processor, model.processor)
        # Precision and recall are judged at all scores.
        results = chosen.results(
            output, processor, placements, texts, threshold=0.0, agnostic=False
        )
        places = places_of(texts, data)
        return [
            _case(picture, found, places, placement.size)
            for picture, found, placement in zip(pictures, results, placements, strict=True)
        ]

    cases = judge_pictures(model, data, name, count, lambda _: math.nan, batch_size, report)
    return DetectionEvaluation.of(data, chosen, cases)


def _case(
    picture: BoxedPicture, found: Any, places: npt.NDArray[np.int64], size: tuple[int, int]
) -> DetectionCase:
    """Set a picture's boxes beside those that were found, in the data set's numbers."""
    picture.require_size(size)
    true = zip(
        picture.boxes.tolist(),
        picture.labels.tolist(),
        picture.crowd.tolist(),
        picture.areas.tolist(),
        strict=True,
    )
    labels = places[found.labels]
    known = labels >= 0
    predicted = zip(
        found.boxes[known].tolist(),
        labels[known].tolist(),
        found.scores[known].tolist(),
        strict=True,
    )
    return DetectionCase(
        image=str(picture.image_path),
        picture=picture.key,
        size=size,
        true=tuple(TrueBox(tuple(box), *rest) for box, *rest in true),
        found=tuple(FoundBox(tuple(box), *rest) for box, *rest in predicted),
    )
