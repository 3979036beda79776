"""Heads that score every pixel: their maps at the picture's own size, whole or in windows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bridger.heads.base import Head, HeadOutput, options_beside
from bridger.predictions.maps import PictureMaps, Piece
from bridger.processing import Placement, Processor
from bridger.texts import Texts

WINDOW_OPTIONS = ("window", "overlap")
"""Options of `predict` that cut a picture in windows; see `bridger.heads.windows.in_windows`."""


class DenseHead(Head):
    """A head whose logits are maps (B, N, h, w)."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits into the probabilities that results are made of, in the same shape.

        Args:
            logits: (B, N, h, w).
        """

    @abstractmethod
    def result(self, maps: PictureMaps, texts: Texts, output: HeadOutput, index: int) -> Any:
        """Turn a picture's probabilities into what `predict` returns.

        Args:
            maps: N of them at the picture's size; `np.asarray(maps)` is an array (N, h, w).
            texts: what was asked.
            output: where the maps come from.
            index: number of the picture in it.

        Further options are the head's own, with defaults.
        """

    def results(
        self,
        output: HeadOutput,
        processor: Processor,
        placements: Sequence[Placement],
        texts: Texts,
        **options: Any,
    ) -> list[Any]:
        """Bring probabilities to the pictures' sizes, and make results of them.

        Args:
            output: of B pictures.
            processor: what made their pixels.
            placements: (B) where each picture lies in the input.
            texts: what was asked.
            **options: of `result`.
        """
        pieces = self.pieces(output, placements)
        return [
            self.result(
                PictureMaps((piece,), piece.placement.size, processor.restore),
                texts,
                output,
                index,
                **options,
            )
            for index, piece in enumerate(pieces)
        ]

    @classmethod
    def result_options(cls) -> tuple[str, ...]:
        """Return the options of one picture's result, and those of windows."""
        return *options_beside(cls.result, DenseHead.result), *WINDOW_OPTIONS

    def pieces(
        self,
        output: HeadOutput,
        placements: Sequence[Placement],
        corners: Sequence[tuple[int, int]] | None = None,
    ) -> list[Piece]:
        """Return the probabilities of B pictures, or of B windows of one.

        Args:
            output: about them.
            placements: (B) where each lies in the input.
            corners: (B) where each window begins in its picture, row and column.
        """
        cells = self.probabilities(output.logits).float().cpu()
        corners = corners or [(0, 0)] * len(cells)
        return [
            Piece(c, placement, *corner)
            for c, placement, corner in zip(cells, placements, corners, strict=True)
        ]
