"""Heads that score every pixel: their maps at the picture's own size, whole or in windows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bridger.heads.base import Head, HeadOutput
from bridger.processing import Placement, Processor
from bridger.texts import Texts

Maps = npt.NDArray[np.float32]


class DenseHead(Head):
    """A head whose logits are maps (B, N, h, w)."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits into the probabilities that results are made of, in the same shape."""

    @abstractmethod
    def result(self, maps: Maps, texts: Texts, output: HeadOutput, index: int) -> Any:
        """Turn a picture's probabilities into what `predict` returns.

        Args:
            maps: (N, h, w) at the picture's size.
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
        """Bring probabilities to the pictures' sizes, and make results of them."""
        rows = self.probabilities(output.logits).float().cpu()
        return [
            self.result(processor.restore(maps, placement), texts, output, index, **options)
            for index, (maps, placement) in enumerate(zip(rows, placements, strict=True))
        ]
