"""Evaluations without a model, and small data sets to judge one on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import bridger
from bridger import attach_bridgers
from bridger.data import ReferringDataset, Sample
from bridger.data.masks import Box, Segments
from bridger.evaluation import Case, Evaluation
from bridger.heads import ReferringSegmentationHead
from bridger.model import BridgedModel

HEAD = {"width": 64, "num_layers": 1, "num_heads": 2}


def untrained_model(**options: object) -> BridgedModel:
    """The embedded pair with a head that knows nothing yet."""
    vision, text, processor = bridger.load_tiny_clip()
    model = attach_bridgers(vision, text, 2).with_head(
        ReferringSegmentationHead, **{**HEAD, **options}
    )
    model.processor = processor
    return model.eval()


class Few(ReferringDataset):
    """The samples that it is given."""

    def __init__(self, samples: Sequence[Sample], name: str = "few", split: str = "val") -> None:
        self.samples, self.name, self.split = list(samples), name, split

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def sentence_counts(self) -> list[int]:
        return [len(sample.sentences) for sample in self.samples]

    def picture_keys(self) -> list[str]:
        return [str(sample.image_path) for sample in self.samples]


def few(folder: Path, refs: Sequence[tuple[int, int, int]], size: int = 40) -> Few:
    """Make a data set with noise for pictures, and boxes for masks.

    Args:
        folder: of the pictures.
        refs: (number of the picture, of sentences, of objects); no object: nothing is meant.
        size: of the pictures; every second one is wider.
    """
    numbers = np.random.default_rng(0)
    samples = []
    for ref_id, (picture, sentences, objects) in enumerate(refs):
        path = folder / f"{picture}.png"
        shape = (size, size + 20 * (picture % 2))
        if not path.exists():
            noise = numbers.integers(0, 256, (*shape, 3)).astype(np.uint8)
            Image.fromarray(noise).save(path)
        corners = (2.0 + picture, 3.0, 20.0 + ref_id, 30.0)
        samples.append(
            Sample(
                image_path=path,
                sentences=tuple(f"the thing number {ref_id} {i}" for i in range(sentences)),
                outline=Box(corners) if objects else Segments(()),
                ref_id=100 + ref_id,
                ann_ids=tuple(range(objects)),
                sent_ids=tuple(range(10 * ref_id, 10 * ref_id + sentences)),
                kinds=tuple("place" if i % 2 else "name" for i in range(sentences)),
                size=shape,
                source="few/all",
            )
        )
    return Few(samples)


def case(
    intersection: int = 0, predicted: int = 0, area: int = 0, *, index: int = 0, **changes: object
) -> Case:
    """One expression, with masks of these sizes."""
    values: dict[str, object] = {
        "index": index,
        "order": 0,
        "image": f"{index}.jpg",
        "picture": f"coco/{index}",
        "ref_id": index,
        "sent_id": index,
        "sentence": f"sentence {index}",
        "kind": "",
        "source": "refcoco/unc",
        "objects": 1 if area else 0,
        "size": (480, 640),
        "area": area,
        "intersections": (intersection,),
        "predicted": (predicted,),
    }
    return Case(**{**values, **changes})  # type: ignore[arg-type]


def evaluation(cases: Sequence[Case], **changes: object) -> Evaluation:
    """An evaluation of these cases."""
    values: dict[str, object] = {
        "name": "refcoco/unc",
        "split": "val",
        "sentences": "every",
        "cases": tuple(cases),
        "thresholds": (0.35,),
        "threshold": 0.35,
        "generalized": False,
        "loss": 0.5,
    }
    return Evaluation(**{**values, **changes})  # type: ignore[arg-type]
