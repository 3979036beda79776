"""Many maps of one picture, brought to its own size a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

    from bridger.warp import Placement

Maps = npt.NDArray[np.float32]

CELLS_AT_ONCE = 2**24
"""Numbers of maps at the picture's size that are made at a time: 64 MiB."""


@dataclass(frozen=True)
class Piece:
    """What a head says about one window of a picture, or about all of it.

    Attributes:
        cells: (N, h', w') probabilities in the input.
        placement: where the window lies in the input.
        top: first row of the window in the picture.
        left: its first column.
    """

    cells: Tensor
    placement: Placement
    top: int = 0
    left: int = 0


@dataclass(frozen=True)
class PictureMaps:
    """N maps at the picture's size (h, w), made when asked for.

    All of them for 1,203 classes would fill gigabytes. `np.asarray(maps)` makes them all,
    `chunks` a few at a time.

    Attributes:
        pieces: windows that cover the picture; where they overlap, their mean counts.
        size: (h, w).
        restore: brings a piece's cells (n, h', w') to the size of its window.
    """

    pieces: tuple[Piece, ...]
    size: tuple[int, int]
    restore: Callable[[Tensor, Placement], Maps]

    def __len__(self) -> int:
        """Return N."""
        return len(self.pieces[0].cells)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return all of them, (N, h, w)."""
        maps = self[0 : len(self)]
        return maps if dtype is None else maps.astype(dtype, copy=False)

    def __getitem__(self, some: slice) -> Maps:
        """Return some of them, (n, h, w) float32."""
        if len(self.pieces) == 1:
            return self.restore(self.pieces[0].cells[some], self.pieces[0].placement)
        total = np.zeros((len(range(*some.indices(len(self)))), *self.size), dtype=np.float32)
        covered = np.zeros(self.size, dtype=np.float32)
        for piece in self.pieces:
            height, width = piece.placement.size
            rows = slice(piece.top, piece.top + height)
            columns = slice(piece.left, piece.left + width)
            total[:, rows, columns] += self.restore(piece.cells[some], piece.placement)
            covered[rows, columns] += 1
        total /= covered
        return total

    def chunks(self) -> Iterator[tuple[int, Maps]]:
        """Yield the maps in order, as many at a time as `CELLS_AT_ONCE` allows.

        Yields:
            The number of the first one, and the maps (n, h, w).
        """
        count = max(1, CELLS_AT_ONCE // (self.size[0] * self.size[1]))
        for first in range(0, len(self), count):
            yield first, self[first : first + count]
