"""How much each head's loss in a batch counts in an update, and what is logged of it.

A batch's loss counts by its items: real expressions, or pictures for heads that read class names.
Where a head's loss is a mean over these, as of masks, the update's loss is the mean over all of
its items. Other heads divide by something else in each batch: detection and comprehension by the
cells matched to a true box; semantic segmentation by the cells, classification by the pictures
(multi-label: pairs of picture and class), that are not IGNORE or padding. Their update's loss is
near to that of one large batch, and the same only where all batches have as many of these for
each of their items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bridger.answering import TEXT_KEYS, texts_by_head
from bridger.evaluation.ranks import gather
from bridger.heads import HeadOutput
from bridger.model import BridgedModel


def items_by_head(model: BridgedModel, batch: Mapping[str, Any]) -> dict[str, int]:
    """Return by how many items of a batch each head's loss in it counts.

    Real expressions; of heads that read class names, pictures; none of a head without labels. Not
    every loss is a mean over just these, see above.
    """
    targets = model.targets(batch.get("labels"))
    flat = {key: batch.get(key) for key in TEXT_KEYS}
    counts = dict.fromkeys(model.heads, 0)
    for names, text in texts_by_head(model, flat, batch.get("texts"), targets).values():
        for name in names:
            if name in targets:
                classes = model.heads[name].text == "classes"
                counts[name] = len(batch["pixel_values"]) if classes else _expressions(text)
    return counts


def _expressions(text: Mapping[str, Any]) -> int:
    mask = text.get("expression_mask")
    return math.prod(text["input_ids"].shape[:-1]) if mask is None else int(mask.sum())


class LossLog:
    """The summands of the loss, each its mean over the updates since the last log.

    Of one head they are called "loss/dice" and so on; of several, each head's own loss is
    "loss/masks", and its summands "loss/masks/dice".
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._updates: set[int] = set()

    def add(
        self, update: int, outputs: Mapping[str, HeadOutput], factors: Mapping[str, float]
    ) -> None:
        """Add what a batch contributes to an update.

        Args:
            update: its number.
            outputs: of the heads by name.
            factors: what each head's loss is multiplied by.
        """
        self._updates.add(update)
        for name, factor in factors.items():
            output, prefix = outputs[name], "loss"
            if len(outputs) > 1 and output.loss is not None:
                prefix = f"loss/{name}"
                self._add(prefix, output.loss, factor)
            for part, value in output.losses.items():
                self._add(f"{prefix}/{part}", value, factor)

    def _add(self, name: str, value: Tensor, factor: float) -> None:
        added = factor * value.detach()
        self._sums[name] = self._sums[name] + added if name in self._sums else added

    def take(self) -> dict[str, float]:
        """Return the means over the updates and over all processes, and begin anew.

        Every process must call it as often as the others.
        """
        updates = len(self._updates)
        own = {name: float(value) / updates for name, value in self._sums.items()}
        self._sums, self._updates = {}, set()
        every = gather([own])
        names = dict.fromkeys(name for each in every for name in each)
        return {name: math.fsum(e.get(name, 0.0) for e in every) / len(every) for name in names}
