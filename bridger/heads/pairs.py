"""Which class is asked for in which row, for heads that answer about each row on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bridger.features import Mentions


@dataclass(frozen=True)
class Pairs:
    """P pairs of a class and a row that mentions it, ordered by class, then by row.

    Within its row each class has a slot, 0 to C - 1, with C the most classes of a row.

    Attributes:
        rows: (P,) int64, 0 to S - 1.
        classes: (P,) int64, 0 to K - 1.
        num_rows: S, rows of text for each picture.
        num_classes: K.
    """

    rows: Tensor
    classes: Tensor
    num_rows: int
    num_classes: int

    @classmethod
    def of(cls, mentions: Mentions, num_rows: int) -> tuple[Pairs, Tensor]:
        """Return the pairs, and the pair (M,) of every mention: synonyms in a row share one."""
        keys, pair_of = torch.unique(
            mentions.classes * num_rows + mentions.rows, return_inverse=True
        )
        pairs = cls(keys % num_rows, keys // num_rows, num_rows, mentions.num_classes)
        return pairs, pair_of

    @classmethod
    def join(cls, parts: Sequence[Pairs]) -> Pairs:
        """Join the pairs of chunks of texts, in order."""
        rows, classes, num_rows, num_classes = [], [], 0, 0
        for part in parts:
            rows.append(part.rows + num_rows)
            classes.append(part.classes + num_classes)
            num_rows, num_classes = num_rows + part.num_rows, num_classes + part.num_classes
        return cls(torch.cat(rows), torch.cat(classes), num_rows, num_classes)

    @cached_property
    def slots(self) -> Tensor:
        """Slot (P,) of each pair in its row, in the order of the classes."""
        order = self.rows.argsort(stable=True)
        counts = self.rows.bincount(minlength=self.num_rows)
        before = (counts.cumsum(0) - counts)[self.rows[order]]
        slots = torch.empty_like(order)
        slots[order] = torch.arange(len(order), device=order.device) - before
        return slots

    @cached_property
    def width(self) -> int:
        """C, the most classes of a row."""
        return int(self.slots.max()) + 1

    @cached_property
    def slot_of(self) -> Tensor:
        """Slot (S, K) of each class in each row, -1 where the row does not mention it."""
        slots = self.rows.new_full((self.num_rows, self.num_classes), -1)
        slots[self.rows, self.classes] = self.slots
        return slots

    @cached_property
    def class_of(self) -> Tensor:
        """Class (S, C) of each slot of each row, -1 where it has none."""
        return self.per_row(self.classes[None], -1)[0]

    def per_row(self, values: Tensor, fill: float) -> Tensor:
        """Sort values (B, P, ...) by row and slot, (B, S, C, ...), with `fill` in empty slots."""
        shape = (values.shape[0], self.num_rows, self.width, *values.shape[2:])
        sorted_ = values.new_full(shape, fill)
        sorted_[:, self.rows, self.slots] = values
        return sorted_

    def per_pair(self, values: Tensor) -> Tensor:
        """Undo `per_row`: (B, P, ...) of values (B, S, C, ...)."""
        return values[:, self.rows, self.slots]
