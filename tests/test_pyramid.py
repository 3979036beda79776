"""Levels of flat and hierarchical towers, and which boxes their cells are responsible for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers_boxes import SIZE, boxes, make, shaken
from helpers_heads import SPEC, features
from torch import Tensor, nn
from torch.nn import functional as F

from bridger.features import EncoderSpec
from bridger.heads import DetectionHead
from bridger.heads.boxes import make_fcos
from bridger.heads.pyramid import Pyramid, anchor_boxes

FLAT = replace(SPEC, map_strides=(16, 16, 16))
PYRAMIDS = {
    "hierarchical": (SPEC, (8, 16, 32)),
    "flat": (FLAT, (8, 16, 32)),
    "flat, fine": (replace(SPEC, map_strides=(8, 8, 8)), (4, 8, 16)),
    "flat, 14": (replace(SPEC, map_strides=(14, 14, 14)), (7, 14, 28)),
    "two of a stride": (replace(SPEC, map_strides=(16, 32, 32)), (16, 32)),
    "deepest first": (replace(SPEC, map_strides=(32, 16, 8)), (8, 16, 32)),
}


def build(spec: EncoderSpec, **options: Any) -> Pyramid:
    pyramid: Pyramid = shaken(
        Pyramid(spec.map_widths, spec.map_strides, spec.sentence_width, 32, **options)
    )
    return pyramid


@pytest.mark.parametrize("name", sorted(PYRAMIDS))
def test_levels_go_from_fine_to_coarse(name: str) -> None:
    spec, strides = PYRAMIDS[name]
    pyramid, given = build(spec), features(spec, image_size=(112, 224))
    assert pyramid.strides == strides
    levels = pyramid(list(given.maps), given.sentence)
    for level, stride in zip(levels, strides, strict=True):
        # Maps are rounded up before they are halved or doubled.
        height, width = level.shape[2:]
        assert level.shape[:2] == (2, 32)
        assert (
            112 <= height * stride < 112 + 2 * stride and 224 <= width * stride < 224 + 2 * stride
        )


def test_each_stride_has_a_level_that_torchvisions_fpn_makes_of_its_maps() -> None:
    """The FPN written out, with its convolutions' weights."""
    pyramid, given = build(SPEC), features(image_size=SIZE)
    above: Tensor | None = None
    for i in (2, 1, 0):
        inner = pyramid.fpn.inner_blocks[i](given.maps[i])
        if above is not None:
            inner = inner + F.interpolate(above, inner.shape[-2:], mode="nearest")
        above = inner
        gate = pyramid.gate[1](F.layer_norm(given.sentence, (12,), *pyramid.gate[0].parameters()))
        expected = pyramid.fpn.layer_blocks[i](inner) * (1 + gate[:, :, None, None])
        found = pyramid(list(given.maps), given.sentence)[i]
        torch.testing.assert_close(found, expected)


def test_a_fresh_gate_is_open() -> None:
    pyramid = Pyramid(SPEC.map_widths, SPEC.map_strides, SPEC.sentence_width, 32)
    given = features()
    some, other = (pyramid(list(given.maps), s) for s in (given.sentence, -3 * given.sentence))
    assert all(torch.equal(a, b) for a, b in zip(some, other, strict=True))


def test_flat_maps_are_all_heard() -> None:
    pyramid, given = build(FLAT), features(FLAT)
    before = pyramid(list(given.maps), given.sentence)
    for i in range(3):
        maps = [m.clone() for m in given.maps]
        maps[i][0, 0, 0, 0] += 5
        after = pyramid(maps, given.sentence)
        assert not any(torch.allclose(a[0], b[0]) for a, b in zip(before, after, strict=True))
        assert all(torch.equal(a[1], b[1]) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("extra", "strides"), [("pool", (8, 16, 32, 64)), ("p6p7", (8, 16, 32, 64, 128))]
)
def test_extra_levels_halve_the_last(extra: str, strides: tuple[int, ...]) -> None:
    pyramid, given = build(SPEC, extra_levels=extra), features(image_size=(128, 256))
    assert pyramid.strides == strides
    levels = pyramid(list(given.maps), given.sentence)
    assert [tuple(x.shape[2:]) for x in levels] == [(128 // s, 256 // s) for s in strides]
    head = make(DetectionHead, extra_levels=extra)
    assert head(given, [boxes((0, 0, 250, 120))] * 2).loss.isfinite()


def test_squares_lie_around_the_middles_of_cells() -> None:
    fine, coarse = anchor_boxes([(2, 3), (1, 2)], (8, 16), torch.device("cpu"))
    assert fine[[0, 1, 3]].tolist() == [[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16]]
    assert coarse.tolist() == [[0, 0, 16, 16], [16, 0, 32, 16]]
    fine, coarse = anchor_boxes([(4, 4), (1, 1)], (8, 32), torch.device("cpu"))
    assert fine[0].tolist() == [-4, -4, 12, 12]  # a range of 0 to 128, then from 128 on
    assert coarse[0].tolist() == [0, 0, 32, 32]


class Matches(nn.Module):
    """Stands in FCOS's place for a head, and keeps what is matched with what."""

    def compute_loss(self, targets: Any, outputs: Any, anchors: Any, matched: Any) -> Any:
        self.matched = matched
        return {}


@pytest.mark.parametrize("strides", [(4, 8, 16), (8, 16, 32), (7, 14, 28), (8, 32), (16, 32)])
@pytest.mark.parametrize("side", [128, 800])
def test_every_object_from_20_pixels_on_has_cells(strides: tuple[int, ...], side: int) -> None:
    grids = [(-(-side // s), -(-side // s)) for s in strides]
    levels = anchor_boxes(grids, strides, torch.device("cpu"))
    sizes = [s for s in (20, 27, 40, 64, 65, 90, 128, 200, 256, 257, 400, 512, 800) if s <= side]
    corners = [(0.0, 0.0), (3.3, 7.7), (11.1, 5.2), (8.0, 8.0), (1e9, 1e9)]
    targets = [
        boxes((min(x, side - w), min(y, side - h), min(x, side - w) + w, min(y, side - h) + h))
        for x, y in corners
        for w in sizes
        for h in (w, max(20, w // 2))
    ]
    head = Matches()
    fcos = make_fcos(head)
    anchors = [torch.cat(levels)] * len(targets)
    fcos.compute_loss(targets, {}, anchors, [len(level) for level in levels])
    lonely = [
        t["boxes"].tolist() for t, m in zip(targets, head.matched, strict=True) if m.max() < 0
    ]
    assert lonely == []
