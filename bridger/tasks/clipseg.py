"""Referring segmentation with CLIPSeg's decoder."""

from __future__ import annotations

from bridger.tasks.referring_segmentation import ReferringSegmentation
from bridger.tasks.registry import register_task


@register_task
class CLIPSeg(ReferringSegmentation):
    """A mask for each expression, by CLIPSeg's decoder."""

    name = "clipseg"
    recipe = "scenes-clipseg"
