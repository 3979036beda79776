"""A small head of every kind, with valid labels: rows for tests that hold for all heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bridger.features import BridgedFeatures, EncoderSpec
from bridger.heads import Head, get_head, list_heads
from bridger.labels import BACKGROUND, IGNORE


def rows_of(given: BridgedFeatures, rows: list[int], expressions: int) -> BridgedFeatures:
    """Return some rows of features without mentions, in that order."""
    return replace(
        given,
        maps=tuple(maps[rows] for maps in given.maps),
        tokens=given.tokens[rows],
        token_mask=given.token_mask[rows],
        sentence=given.sentence[rows],
        pooled=None if given.pooled is None else given.pooled[rows],
        num_expressions=expressions,
    )


Labels = Callable[[int, int, tuple[int, int]], Any]


@dataclass(frozen=True)
class HeadRow:
    """A kind of head for tests that hold for all of them.

    Attributes:
        name: the registered name.
        labels: makes valid ones for B pictures, N classes or expressions, and a size (H, W).
        options: that make it small.
        nothing: makes the labels of pictures that show nothing at all; None: there are none.
        joined: whether one answer for all rows of text comes out, so that rows are not separate.
        prediction: name of the class of what `predict` returns.
        asked: options of `predict` with which even a head that knows nothing finds something.
    """

    name: str
    labels: Labels
    options: Mapping[str, Any] = field(default_factory=dict)
    nothing: Labels | None = None
    joined: bool = False
    prediction: str = "Prediction"
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> bool:
        """Whether it reads class names."""
        return get_head(self.name).text == "classes"

    def build(self, spec: EncoderSpec) -> Head:
        """Build it in eval mode, with numbers that hide nothing behind zeros."""
        head = get_head(self.name).from_spec(spec, **self.options)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        for name, buffer in head.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        return head.eval()


def _masks(batch: int, classes: int, size: tuple[int, int]) -> Tensor:
    return (torch.rand(batch, classes, *size) > 0.5).float()


def _label_map(batch: int, classes: int, size: tuple[int, int]) -> Tensor:
    labels = torch.randint(classes, (batch, *size))
    labels[:, :8], labels[:, -8:] = IGNORE, BACKGROUND
    return labels


def _boxes(batch: int, classes: int, size: tuple[int, int]) -> list[dict[str, Tensor]]:
    """One box for each class, large enough to hold cells of any map."""
    corners = torch.rand(batch, classes, 2) * torch.tensor([size[1], size[0]]) / 3
    sides = (0.4 + 0.2 * torch.rand(batch, classes, 2)) * torch.tensor([size[1], size[0]])
    boxes = torch.cat([corners, corners + sides], dim=-1)
    return [{"boxes": each, "labels": torch.arange(classes)} for each in boxes]


def _no_boxes(batch: int, classes: int, size: tuple[int, int]) -> list[dict[str, Tensor]]:
    return [
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        for _ in range(batch)
    ]


CLASSES = ("owl", ("dog", "hound"), "ball")
WORDS = ["the owl on the left", "red dog", "ball"]
REFERRING = {"width": 32, "num_layers": 1, "num_heads": 2}
SEMANTIC = {"width": 32, "classes": CLASSES}
BOXES = {"width": 32, "num_convs": 1}
ROWS: Mapping[str, HeadRow] = {
    "referring": HeadRow(
        "referring_segmentation", _masks, REFERRING, lambda b, n, s: torch.zeros(b, n, *s)
    ),
    "referring, all options": HeadRow(
        "referring_segmentation",
        _masks,
        {**REFERRING, "no_target": True, "dice_weight": 1.0, "decoder_text": "sentence"},
        lambda b, n, s: torch.zeros(b, n, *s),
    ),
    "CLIPSeg": HeadRow(
        "clipseg",
        _masks,
        {"width": 16, "num_heads": 2, "ffn_width": 32},
        lambda b, n, s: torch.zeros(b, n, *s),
    ),
    "CLIPSeg, refined": HeadRow(
        "clipseg", _masks, {"width": 16, "num_heads": 2, "ffn_width": 32, "refined": True}
    ),
    "semantic": HeadRow(
        "semantic_segmentation",
        _label_map,
        SEMANTIC,
        lambda b, n, s: torch.full((b, *s), BACKGROUND),
        prediction="SemanticPrediction",
    ),
    "semantic, without background": HeadRow(
        "semantic_segmentation",
        _label_map,
        {**SEMANTIC, "background": False, "zero_shot": False},
        lambda b, n, s: torch.full((b, *s), IGNORE),
        prediction="SemanticPrediction",
    ),
    "semantic, multi-label": HeadRow(
        "semantic_segmentation",
        _masks,
        {**SEMANTIC, "multi_label": True},
        lambda b, n, s: torch.zeros(b, n, *s),
        prediction="SemanticPrediction",
        asked={"threshold": 0.0},
    ),
    "detection": HeadRow(
        "detection",
        _boxes,
        {**BOXES, "classes": CLASSES},
        _no_boxes,
        prediction="DetectionPrediction",
        asked={"threshold": 0.0},
    ),
    "detection, fixed": HeadRow(
        "detection",
        _boxes,
        {**BOXES, "classes": CLASSES, "scores": "fixed", "extra_levels": "p6p7"},
        _no_boxes,
        joined=True,
        prediction="DetectionPrediction",
        asked={"threshold": 0.0},
    ),
    "comprehension": HeadRow(
        "referring_comprehension", _boxes, BOXES, prediction="DetectionPrediction"
    ),
    "classification": HeadRow(
        "classification",
        lambda b, n, s: torch.randint(n, (b,)),
        {"classes": CLASSES},
        lambda b, n, s: torch.full((b,), IGNORE),
        prediction="ClassificationPrediction",
    ),
    "classification, multi-label": HeadRow(
        "classification",
        lambda b, n, s: (torch.rand(b, n) > 0.5).float(),
        {"classes": CLASSES, "multi_label": True},
        lambda b, n, s: torch.zeros(b, n),
        prediction="ClassificationPrediction",
        asked={"threshold": 0.0},
    ),
    "classification, fixed": HeadRow(
        "classification",
        lambda b, n, s: torch.randint(n, (b,)),
        {"classes": CLASSES, "scores": "fixed"},
        lambda b, n, s: torch.full((b,), IGNORE),
        joined=True,
        prediction="ClassificationPrediction",
    ),
}
"""Every head of the library by a name of the test, with what its options change."""

COUNT = len(CLASSES)
"""Classes or expressions in tests of all heads: those with a fixed list have as many."""


def own_heads() -> list[str]:
    """Return the registered names of the library's own heads; tests register others."""
    return [name for name in list_heads() if get_head(name).__module__.startswith("bridger.")]
