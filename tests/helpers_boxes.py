"""Features, mentions and labels for heads that find boxes, and torchvision's FCOS beside them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from helpers_heads import SPEC, features
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead

import bridger
from bridger.features import BridgedFeatures, Mentions
from bridger.heads import BoxHead, DetectionHead
from bridger.processing import Processor
from bridger.texts import Texts
from bridger.warp import Placement

SIZE = (64, 96)
CLASSES = ("owl", "bus", "pill")
FIXED = {"classes": CLASSES, "scores": "fixed"}


def asked(
    rows: Sequence[int], classes: Sequence[int], batch: int = 2, words: int = 6
) -> BridgedFeatures:
    """Random features in which mention i names a class in a row, by the row's i-th token."""
    tokens = torch.zeros(1, len(rows), words, dtype=torch.bool)
    tokens[0, torch.arange(len(rows)), torch.arange(len(rows)) % (words // 2)] = True
    mentions = Mentions(torch.tensor(rows), torch.tensor(classes), tokens, max(classes) + 1)
    given = features(batch=batch, expressions=max(rows) + 1, image_size=SIZE, words=words)
    return replace(given, mentions=mentions)


def joint(batch: int = 2) -> BridgedFeatures:
    """One row for each picture, which mentions all three classes."""
    return asked([0, 0, 0], [0, 1, 2], batch)


def shaken(head: nn.Module) -> Any:
    """Move every parameter, so that nothing hides behind zeros."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return head.eval()


def make(head: type[BoxHead], **config: Any) -> Any:
    return shaken(head.from_spec(SPEC, **config))


def boxes(*rows: Sequence[float], labels: Sequence[int] | None = None) -> dict[str, Tensor]:
    numbers = list(range(len(rows))) if labels is None else labels
    return {
        "boxes": torch.tensor(rows, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(numbers, dtype=torch.int64),
    }


def labels() -> list[dict[str, Tensor]]:
    """Of two pictures: four objects of three classes, two of which overlap, and one of them."""
    many = boxes((3, 5, 30, 44), (20, 10, 60, 60), (50, 0, 96, 64), (70, 30, 82, 44))
    return [{**many, "labels": torch.tensor([0, 2, 1, 0])}, boxes((8, 8, 40, 40), labels=[1])]


class Middles(AnchorGenerator):
    """Squares of the strides' size around the middles of the cells, one after the other."""

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__(tuple((s,) for s in strides), ((1.0,),) * len(strides))
        self.strides = strides

    def forward(self, image_list: Any, feature_maps: list[Tensor]) -> list[Tensor]:
        squares = [
            [s * j, s * i, s * j + s, s * i + s]
            for s, level in zip(self.strides, feature_maps, strict=True)
            for i in range(level.shape[2])
            for j in range(level.shape[3])
        ]
        return [torch.tensor(squares, dtype=torch.float32)] * len(image_list.image_sizes)


class Levels(nn.Module):
    """A backbone that always gives the same maps."""

    def __init__(self, levels: Sequence[Tensor]) -> None:
        super().__init__()
        self.levels, self.out_channels = levels, levels[0].shape[1]

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict((str(i), level) for i, level in enumerate(self.levels))


def torchvision_fcos(head: BoxHead, given: BridgedFeatures, **options: Any) -> FCOS:
    """torchvision's whole FCOS with a head of its own that has the same weights."""
    parts = FCOSHead(head.config.width, 1, len(CLASSES), head.config.num_convs)
    parts.load_state_dict(head.parts.state_dict())
    levels = head.pyramid(list(given.maps), given.sentence)
    size = {"min_size": min(SIZE), "max_size": max(SIZE)}  # pictures come as large as they are
    anchors = Middles(head.spec.map_strides)
    return FCOS(
        Levels(levels), len(CLASSES), anchor_generator=anchors, head=parts, **size, **options
    )


def small_processor() -> Processor:
    """Of pictures of `SIZE`."""
    tokenizer = bridger.load_tiny_clip()[2].words
    return Processor(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), tokenizer, max_length=24)


def named(*names: str) -> Texts:
    """Texts of which only the names are read."""
    nothing = torch.zeros(0, 0)
    return Texts(names, nothing, nothing)


def results(head: BoxHead, output: Any, processor: Processor, **options: Any) -> Any:
    """What the head finds in pictures of the input's own size, each class for itself."""
    if isinstance(head, DetectionHead):
        options = {"agnostic": False, **options}
    places = [Placement.fit(SIZE, SIZE)] * len(output.logits)
    return head.results(output, processor, places, named(*CLASSES), **options)
